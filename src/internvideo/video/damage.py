"""Damaged pictures: which are, what becomes of them, and the gaps they leave.

A decoder rarely knows all that is wrong. Of 14 copies of a file of each kind (48 pictures, a key frame every 12) with
bytes changed at random, so many of a hundred pictures that were handed out were wrong, where everything decoded after a
known fault is refused up to the next key frame; with FFmpeg's default checks | with `CHECKS`:

    avi   mpeg4 3|2   mpeg4 with B-frames 8|5   msmpeg4 18|3   h264 3|3   mjpeg 4|4 (2 with "explode")   ffv1 19|19
    wmv   wmv2 24|5   flv   h264 3|3   flv1 0|0   ts   h264 0|0   hevc 15|15   mpeg2 0|0   mxf   mpeg2 5|5
    mpg   mpeg2 12|12 (mean error 0.6 of 255)   mpeg1 4|4   ivf   vp8 27|27   vp9 40|40   av1 13|13   gif   15|15

No sound file of these kinds loses a picture by it. "explode" finds nothing more in the others and loses sound pictures
of H.264 and MPEG-2. What is left has no checksum that a decoder could compare, and looks like any other picture to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import VideoError
from internvideo.video.index import Index

POLICIES = ("skip", "stop", "repeat")
"""What becomes of a video after damage: it goes on at the next key frame and the damaged pictures are left out; it ends
there; or the last sound picture stands for them."""

ENVIRONMENT = "INTERNVIDEO_DAMAGE"

CHECKS = "crccheck+bitstream+buffer"
CHECKS_OF = {
    **dict.fromkeys(("mpeg4", "h263", "flv1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"), CHECKS),
    "mjpeg": CHECKS + "+explode",
}
"""Codec -> FFmpeg's err_detect where everything is decoded. Others gain nothing, and MPEG-1 loses sound pictures."""

MARKING = frozenset({"h264", "hevc", "vvc"})
"""Codecs whose decoders know where pictures get whole without a key frame (recovery points), and mark those before."""


class DamageError(VideoError):
    """A frame that is damaged; others of the video may be sound."""


def chosen_policy(damage: str | None) -> str:
    """The policy asked for: the argument, else the environment, else "skip". Raises VideoError for another word."""
    name = damage or os.environ.get(ENVIRONMENT) or POLICIES[0]
    if name not in POLICIES:
        raise VideoError("damage" if damage else ENVIRONMENT, f"'{name}'", ", ".join(POLICIES))
    return name


def damage_told() -> dict[str, str]:
    """The policy for the protocol of a run over many files, where it is not the default one. Raises VideoError."""
    policy = chosen_policy(None)
    return {} if policy == POLICIES[0] else {"damage": policy}


def untrusted(
    numbers: Sequence[int], keys: Sequence[bool], damaged: Sequence[int], *, from_start: bool
) -> NDArray[np.bool_]:
    """Which pictures are damaged or may be built on damaged ones.

    Args:
        numbers: (F,) of the packet that each picture came from, in the order in which pictures are shown.
        keys: (F,) whether it is a key frame.
        damaged: numbers of packets with a fault.
        from_start: the pictures before the first key frame are as well.
    """
    bad = np.zeros(len(numbers), np.bool_)
    faults = sorted(damaged)
    dirty, fault, leading = from_start, -1, -1
    for place in np.argsort(numbers, kind="stable").tolist():
        while faults and faults[0] <= numbers[place]:
            dirty, fault = True, faults.pop(0)
        if dirty and keys[place] and numbers[place] > fault:
            # Pictures that follow it and are shown before it lean on what was before it.
            dirty, leading = False, place
        bad[place] = dirty or place < leading
    return bad


def holes_of(
    times: NDArray[np.float64], numbers: Sequence[int], keys: Sequence[bool], damaged: Sequence[int]
) -> NDArray[np.float64]:
    """(H, 2) from and to (s) where packets with a fault gave no picture at all: what is longer than a picture stands
    between the key frames around them. Arguments as for `untrusted`, and the times (F,) of the pictures."""
    known, starts = np.asarray(numbers), np.flatnonzero(keys)
    step = float(np.median(np.diff(times))) if len(times) > 1 else np.inf
    wide = np.flatnonzero(np.diff(times) > 1.5 * step)
    found: set[int] = set()
    for number in set(damaged) - set(numbers):
        first = starts[known[starts] < number].max(initial=0)
        after = starts[known[starts] > number].min(initial=len(times))
        found.update(wide[(wide >= first) & (wide < after)].tolist())
    return np.array([(times[at] + step, times[at + 1]) for at in sorted(found)], np.float64).reshape(-1, 2)


def gaps_of(index: Index) -> list[tuple[float, float]]:
    """From and to (s, of the clock of `VideoInfo.times`) where nothing sound is shown, as far as it is known."""
    ends = np.append(index.times[1:], index.end)
    parts = [*zip(index.times[index.bad], ends[index.bad], strict=True), *map(tuple, index.holes)]
    joined: list[tuple[float, float]] = []
    for begin, stop in sorted((float(begin) - index.zero, float(stop) - index.zero) for begin, stop in parts):
        if joined and begin <= joined[-1][1] + 1e-6:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((begin, stop))
    return joined


def told(gaps: Sequence[tuple[float, float]], stopped: str) -> str:
    """What of a video is not to be had, in words; "" when it is whole."""
    parts = []
    if gaps:
        named = ", ".join(f"{begin:.3f} to {stop:.3f} s" for begin, stop in gaps[:5]) + ", ..." * (len(gaps) > 5)
        parts.append(f"damaged, {sum(stop - begin for begin, stop in gaps):.3f} s in all: {named}")
    if stopped:
        parts.append(stopped)
    return "; ".join(parts)


def stand_ins(bad: NDArray[np.bool_], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of `wanted` the last sound frame up to it, else the first one; as they are where none is sound."""
    sound = np.flatnonzero(~bad)
    return sound[np.maximum(np.searchsorted(sound, wanted, side="right") - 1, 0)] if len(sound) else wanted
