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
"""Minimum frames from the start of a block to that of the next one. A block decodes from the key frame before its first
clip to some frames after its last one: about 25 frames that its neighbors decode too."""

MAX_READY_BYTES = 2**28
"""Maximum bytes of clips that all readers together read ahead; each reads at least two clips ahead."""

SMALL_MODEL_FLOPS = 10**9
"""Floating-point operations per window or text, below which one thread computes as fast as several."""


def default_readers(device: str) -> int:
    """Return how many threads should decode each video in the process of a model on a device ("cpu", "cuda" ...).

    One for a model on the CPU, which needs the other cores: a second one costs CPU time (benchmarks/README.md).
    """
    return 1 if device == "cpu" else min(4, cores())


def threads_beside_reader(model: VideoModel) -> AbstractContextManager[None]:
    """Run the operators of a small model on the CPU on one thread of torch.

    Idle threads of torch spin until the next operator, on the cores that the reader needs: a film took 1.3 times the
    CPU time (benchmarks/README.md).
    """
    frames, size = model.preprocessing.frames, model.preprocessing.size
    return one_thread_if_small(model, frames * size**2 / (2 * 16 * 16))  # tubelets of 2 x 16 x 16, as in VideoMAE


@contextmanager
def one_thread_if_small(model: VideoModel, num_tokens: float) -> Generator[None]:
    """Use one thread of torch if a model on the CPU needs less than SMALL_MODEL_FLOPS for an input of `num_tokens`.

    The decision is estimated and not timed, so that the vectors do not depend on the load of the machine.
    """
    flops = 2 * num_tokens * sum(parameter.numel() for parameter in model.module.parameters())
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

    A single reader is used if the video has no key frames to start at, is known to be damaged, or has the damage policy
    "repeat".

    Args:
        frame_indices: (T,) of each clip; the first frames of the clips never decrease.
        readers: number of threads, 1 or more.
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
            pass  # `iter_clips` meets the same error and applies the damage policy
    yield from iter_clips(video, preprocessing, frame_indices[position:])


def _blocks(key_frames: Indices, frame_indices: Sequence[Indices]) -> list[range]:
    """Split the clips into ranges; each but the first begins with the first clip after a key frame."""
    first_frames = np.array([indices.min() for indices in frame_indices])
    groups = np.searchsorted(key_frames, first_frames, side="right")
    starts = [0]
    for position in (np.flatnonzero(np.diff(groups)) + 1).tolist():
        if first_frames[position] - first_frames[starts[-1]] >= MIN_BLOCK_FRAMES:
            starts.append(position)
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(frame_indices)], strict=True)]


def _read_blocks(
    video: Video, preprocessing: Preprocessing, frame_indices: Sequence[Indices], blocks: list[range], readers: int
) -> Iterator[Tensor]:
    queue_size = max(2, MAX_READY_BYTES // (readers * clip_bytes(preprocessing)))
    with ExitStack() as stack:
        streams = []
        for reader in range(readers):
            clips = _clips_of_blocks(video, preprocessing, frame_indices, blocks[reader::readers])
            streams.append(stack.enter_context(closing(from_thread(clips, queue_size))))
        for stream in streams:  # a thread starts at the first `next`, which yields None
            next(stream)
        for index, block in enumerate(blocks):
            for clip in islice(streams[index % readers], len(block)):
                assert clip is not None
                yield clip


def clip_bytes(preprocessing: Preprocessing) -> int:
    """Return the size of a clip in bytes."""
    values = 3 * preprocessing.frames * preprocessing.size**2
    return values * (4 if preprocessing.resize_backend == "torch" else 1)


def _clips_of_blocks(
    video: Video, preprocessing: Preprocessing, frame_indices: Sequence[Indices], blocks: list[range]
) -> Iterator[Tensor | None]:
    """Yield None, then the clips of the blocks. Raises VideoError for damaged frames, whatever the damage policy."""
    yield None
    with video.again() as reader:
        for block in blocks:
            clips = decode_clips(
                reader, preprocessing, frame_indices[block.start : _last_clip_to_decode(frame_indices, block.stop)]
            )
            yield from islice(clips, len(block))


def _last_clip_to_decode(frame_indices: Sequence[Indices], stop: int) -> int:
    """Return the clip before which decoding stops, so that a block meets the same damage as `iter_frames`.

    That reads REORDER_BUFFER frames ahead, and so meets damage after the last frame of the block.
    """
    last, later_frames = frame_indices[stop - 1].max(), set[int]()
    while stop < len(frame_indices) and len(later_frames) <= REORDER_BUFFER:
        later_frames.update(frame_indices[stop][frame_indices[stop] > last].tolist())
        stop += 1
    return stop
