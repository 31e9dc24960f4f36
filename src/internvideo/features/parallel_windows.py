"""Clips of one video, read by several threads, in their order.

The windows are cut at key frames into blocks, which readers of their own decode side by side (decoding, converting and
resizing happen outside of Python's lock); the clips come in their order, the same ones as `clips_of` gives. The first
fault that a reader meets ends it: from that clip on the video's own reader goes on alone and does what the policy says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice

import numpy as np
from torch import Tensor

from internvideo.data.preprocessing import Preprocessing
from internvideo.data.sampling import Indices
from internvideo.errors import VideoError
from internvideo.features.read_ahead import from_thread
from internvideo.features.windows import clips_of, clips_on_one_way
from internvideo.video.reader import Video
from internvideo.video.sequential import REORDER_BUFFER

LEAST = 400
"""Frames of the video from the start of a block to that of the next one, at least. A block decodes its first group of
pictures from the key frame on and some pictures behind its end, some 25 that its neighbors decode too."""

MOST_BYTES = 2**28
"""Clips that all readers together may have ready; each has two at least."""


def readers_beside(device: str) -> int:
    """Readers of a video in the process of a model on a device ("cpu", "cuda" ...).

    One beside a model on the CPU, which needs the other cores: a second one costs CPU time (benchmarks/README.md).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device == "cpu" else min(4, cores)


def parallel_clips(
    video: Video, preprocessing: Preprocessing, chosen: Sequence[Indices], readers: int
) -> Iterator[Tensor]:
    """`clips_of` by several readers in threads, which are gone when this ends; arguments and errors are the same.

    One reader is enough, and is used, where the video has no key frames to begin at, is known to be damaged, or where
    damaged pictures are repeated.

    Args:
        chosen: frame numbers (T,) of each clip; the least of each never falls.
        readers: 1 or more.
    """
    turn = 0
    blocks = _blocks(video.key_frames, chosen) if readers > 1 and video.damage != "repeat" and not video.gaps else []
    if len(blocks) > 1:
        try:
            for clip in _side_by_side(video, preprocessing, chosen, blocks, min(readers, len(blocks))):
                yield clip
                turn += 1
        except VideoError:
            pass  # the video's own reader meets it as well, and knows what is to be done
    yield from clips_of(video, preprocessing, chosen[turn:])


def _blocks(keys: Indices, chosen: Sequence[Indices]) -> list[range]:
    """Runs of clips, each of which but the first begins with the first clip behind a key frame."""
    firsts = np.array([indices.min() for indices in chosen])
    groups = np.searchsorted(keys, firsts, side="right")
    cuts = [0]
    for turn in (np.flatnonzero(np.diff(groups)) + 1).tolist():
        if firsts[turn] - firsts[cuts[-1]] >= LEAST:
            cuts.append(turn)
    return [range(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(chosen)], strict=True)]


def _side_by_side(
    video: Video, preprocessing: Preprocessing, chosen: Sequence[Indices], blocks: list[range], readers: int
) -> Iterator[Tensor]:
    ahead = max(2, MOST_BYTES // (readers * clip_bytes(preprocessing)))
    with ExitStack() as open_:
        streams = []
        for first in range(readers):
            source = _clips_of_blocks(video, preprocessing, chosen, blocks[first::readers])
            streams.append(open_.enter_context(closing(from_thread(source, ahead))))
        for stream in streams:  # a thread starts when it is first asked, for nothing here
            next(stream)
        for number, block in enumerate(blocks):
            for clip in islice(streams[number % readers], len(block)):
                assert clip is not None
                yield clip


def clip_bytes(preprocessing: Preprocessing) -> int:
    """Bytes of a clip."""
    values = 3 * preprocessing.frames * preprocessing.size**2
    return values * (4 if preprocessing.style == "torch" else 1)


def _clips_of_blocks(
    video: Video, preprocessing: Preprocessing, chosen: Sequence[Indices], blocks: list[range]
) -> Iterator[Tensor | None]:
    """None, then the clips of the blocks. Raises VideoError also for damage, which is left to others."""
    yield None
    with video.again() as reader:
        for block in blocks:
            clips = clips_on_one_way(reader, preprocessing, chosen[block.start : _end(chosen, block.stop)])
            yield from islice(clips, len(block))


def _end(chosen: Sequence[Indices], stop: int) -> int:
    """Clips up to here are asked for, so that damage which shows only in later pictures is met as `walk` would."""
    last, more = chosen[stop - 1].max(), set[int]()
    while stop < len(chosen) and len(more) <= REORDER_BUFFER:
        more.update(chosen[stop][chosen[stop] > last].tolist())
        stop += 1
    return stop
