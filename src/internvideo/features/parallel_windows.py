"""Decode the clips of one video in parallel, in several threads.

The windows are split at key frames into blocks, which separate readers decode in parallel (decoding, conversion and
resizing release the GIL); the clips are yielded in order and equal those of `iter_clips`. At the first decoding error
of a reader the video's own reader continues alone from that clip on and applies the damage policy.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from internvideo.data.preprocessing import Preprocessing
from internvideo.data.sampling import Indices
from internvideo.errors import VideoError
from internvideo.features.read_ahead import from_thread
from internvideo.features.windows import decode_clips, iter_clips
from internvideo.inference.video_model import VideoModel
from internvideo.system import cores
from internvideo.video.reader import Video
from internvideo.video.sequential import REORDER_BUFFER

MIN_BLOCK_FRAMES = 400
"""Minimum frames from the start of a block to that of the next one. A block decodes its first group of pictures from
the key frame on and some frames past its end: about 25 that its neighbors decode too."""

MAX_READY_BYTES = 2**28
"""Maximum bytes of clips that all readers together hold ready; each holds at least two clips."""

SMALL_MODEL_FLOPS = 10**9
"""Floating-point operations per window or text, below which several threads mostly wait for each other and a reader."""


def default_readers(device: str) -> int:
    """Return the number of readers per video in the process of a model on a device ("cpu", "cuda" ...).

    One for a model on the CPU, which needs the other cores: a second one costs CPU time (benchmarks/README.md).
    """
    return 1 if device == "cpu" else min(4, cores())


def threads_beside_reader(model: VideoModel) -> AbstractContextManager[None]:
    """Run the operators of a small model on the CPU on one thread of torch.

    The other threads of an operator wait for the next one in a loop, on the cores that the reader needs: a film took
    1.3 times the CPU time (benchmarks/README.md).
    """
    clips = model.preprocessing
    return one_thread_if_small(
        model, clips.frames * clips.size**2 / (2 * 16 * 16)
    )  # tubes of 2 frames, as VideoMAE has


@contextmanager
def one_thread_if_small(model: VideoModel, tokens: float) -> Generator[None]:
    """Run the operators of a model on the CPU that is small for an input of so many tokens on one thread of torch.

    The size is estimated from the model and not timed, so that the vectors do not depend on what else runs.
    """
    flops = 2 * tokens * sum(parameter.numel() for parameter in model.module.parameters())
    threads = torch.get_num_threads()
    if model.device.type == "cpu" and flops < SMALL_MODEL_FLOPS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def parallel_clips(
    video: Video, preprocessing: Preprocessing, frame_indices: Sequence[Indices], readers: int
) -> Iterator[Tensor]:
    """Yield the clips as `iter_clips` does, read by several threads, which are joined at the end.

    A single reader is used if the video has no key frames to start at, is known to be damaged, or if damaged frames are
    repeated.

    Args:
        frame_indices: (T,) of each clip; their minima never decrease.
        readers: 1 or more.
    """
    position = 0
    blocks = (
        _blocks(video.key_frames, frame_indices) if readers > 1 and video.damage != "repeat" and not video.gaps else []
    )
    if len(blocks) > 1:
        try:
            for clip in _read_blocks(video, preprocessing, frame_indices, blocks, min(readers, len(blocks))):
                yield clip
                position += 1
        except VideoError:
            pass  # the video's own reader meets it too, and applies the policy
    yield from iter_clips(video, preprocessing, frame_indices[position:])


def _blocks(keys: Indices, frame_indices: Sequence[Indices]) -> list[range]:
    """Return runs of clips; each but the first begins with the first clip after a key frame."""
    firsts = np.array([indices.min() for indices in frame_indices])
    groups = np.searchsorted(keys, firsts, side="right")
    cuts = [0]
    for position in (np.flatnonzero(np.diff(groups)) + 1).tolist():
        if firsts[position] - firsts[cuts[-1]] >= MIN_BLOCK_FRAMES:
            cuts.append(position)
    return [range(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(frame_indices)], strict=True)]


def _read_blocks(
    video: Video, preprocessing: Preprocessing, frame_indices: Sequence[Indices], blocks: list[range], readers: int
) -> Iterator[Tensor]:
    queue_size = max(2, MAX_READY_BYTES // (readers * clip_bytes(preprocessing)))
    with ExitStack() as open_:
        streams = []
        for first in range(readers):
            source = _clips_of_blocks(video, preprocessing, frame_indices, blocks[first::readers])
            streams.append(open_.enter_context(closing(from_thread(source, queue_size))))
        for stream in streams:  # a thread starts at the first `next`, which yields None
            next(stream)
        for index, block in enumerate(blocks):
            for clip in islice(streams[index % readers], len(block)):
                assert clip is not None
                yield clip


def clip_bytes(preprocessing: Preprocessing) -> int:
    """Return the bytes of a clip."""
    values = 3 * preprocessing.frames * preprocessing.size**2
    return values * (4 if preprocessing.resize_backend == "torch" else 1)


def _clips_of_blocks(
    video: Video, preprocessing: Preprocessing, frame_indices: Sequence[Indices], blocks: list[range]
) -> Iterator[Tensor | None]:
    """Yield None, then the clips of the blocks. Raises VideoError also for damage, whatever the policy."""
    yield None
    with video.again() as reader:
        for block in blocks:
            clips = decode_clips(reader, preprocessing, frame_indices[block.start : _end(frame_indices, block.stop)])
            yield from islice(clips, len(block))


def _end(frame_indices: Sequence[Indices], stop: int) -> int:
    """Return where to stop decoding, so that damage that shows only in later frames is met as by `iter_frames`."""
    last, more = frame_indices[stop - 1].max(), set[int]()
    while stop < len(frame_indices) and len(more) <= REORDER_BUFFER:
        more.update(frame_indices[stop][frame_indices[stop] > last].tolist())
        stop += 1
    return stop
