"""Damaged frames: which are damaged, how they are handled, and the resulting gaps.

A decoder rarely detects all damage. Measured on 14 copies per file type (48 frames, a key frame every 12) with bytes
changed at random: percentage of returned frames that were wrong, when everything decoded after a detected error is
refused up to the next key frame; with FFmpeg's default checks | with `CHECKS`:

    avi   mpeg4 3|2   mpeg4 with B-frames 8|5   msmpeg4 18|3   h264 3|3   mjpeg 4|4 (2 with "explode")   ffv1 19|19
    wmv   wmv2 24|5   flv   h264 3|3   flv1 0|0   ts   h264 0|0   hevc 15|15   mpeg2 0|0   mxf   mpeg2 5|5
    mpg   mpeg2 12|12 (mean error 0.6 of 255)   mpeg1 4|4   ivf   vp8 27|27   vp9 40|40   av1 13|13   gif   15|15

No intact file of these types loses a frame by the checks. "explode" finds nothing more in the others and refuses intact
frames of H.264 and MPEG-2. The remaining damage is in formats without checksums and cannot be detected by a decoder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import VideoError
from internvideo.video.index import Index

POLICIES = ("skip", "stop", "repeat")
"""Handling of damage: leave the damaged frames out and continue at the next key frame; end the video there; or repeat
the last intact frame."""

ENVIRONMENT = "INTERNVIDEO_DAMAGE"

CHECKS = "crccheck+bitstream+buffer"
CHECKS_OF = {
    **dict.fromkeys(("mpeg4", "h263", "flv1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"), CHECKS),
    "mjpeg": CHECKS + "+explode",
}
"""Codec -> FFmpeg's err_detect in a full scan. Other codecs gain nothing, and MPEG-1 would lose intact frames."""

MARKING = frozenset({"h264", "hevc", "vvc"})
"""Codecs whose decoders detect recovery points without a key frame, and mark the frames before them as corrupt."""


class DamageError(VideoError):
    """A frame is damaged; other frames of the video may be intact."""


def resolve_policy(damage: str | None) -> str:
    """Resolve the policy: the argument, else the environment, else "skip". Raises VideoError for an unknown one."""
    name = damage or os.environ.get(ENVIRONMENT) or POLICIES[0]
    if name not in POLICIES:
        raise VideoError("damage" if damage else ENVIRONMENT, f"'{name}'", ", ".join(POLICIES))
    return name


def damage_metadata() -> dict[str, str]:
    """Return a non-default policy for the metadata of results. Raises VideoError."""
    policy = resolve_policy(None)
    return {} if policy == POLICIES[0] else {"damage": policy}


def corrupt_frames(
    packet_numbers: Sequence[int], keys: Sequence[bool], damaged: Sequence[int], *, from_start: bool
) -> NDArray[np.bool_]:
    """Return (F,) bool: which frames are damaged or may depend on damaged ones.

    Args:
        packet_numbers: (F,) number of the packet of each frame, in presentation order.
        keys: (F,) whether it is a key frame.
        damaged: numbers of the damaged packets.
        from_start: treat the frames before the first key frame as damaged as well.
    """
    corrupt = np.zeros(len(packet_numbers), np.bool_)
    pending = sorted(damaged)
    tainted, last_damaged, after_key = from_start, -1, -1
    for index in np.argsort(packet_numbers, kind="stable").tolist():
        while pending and pending[0] <= packet_numbers[index]:
            tainted, last_damaged = True, pending.pop(0)
        if tainted and keys[index] and packet_numbers[index] > last_damaged:
            # Frames that follow the key frame but are displayed before it reference the previous GOP.
            tainted, after_key = False, index
        corrupt[index] = tainted or index < after_key
    return corrupt


def holes_of(
    times: NDArray[np.float64], packet_numbers: Sequence[int], keys: Sequence[bool], damaged: Sequence[int]
) -> NDArray[np.float64]:
    """Return (H, 2) start and end (s) of gaps where damaged packets gave no frame: gaps longer than a frame between the
    key frames around them. Arguments as for `corrupt_frames`, and the times (F,) of the frames."""
    known, starts = np.asarray(packet_numbers), np.flatnonzero(keys)
    step = float(np.median(np.diff(times))) if len(times) > 1 else np.inf
    wide = np.flatnonzero(np.diff(times) > 1.5 * step)
    found: set[int] = set()
    for number in set(damaged) - set(packet_numbers):
        first = starts[known[starts] < number].max(initial=0)
        after = starts[known[starts] > number].min(initial=len(times))
        found.update(wide[(wide >= first) & (wide < after)].tolist())
    return np.array([(times[at] + step, times[at + 1]) for at in sorted(found)], np.float64).reshape(-1, 2)


def gaps_of(index: Index) -> list[tuple[float, float]]:
    """Return the known (start, end) intervals without an intact frame, in seconds of `VideoInfo.times`."""
    ends = np.append(index.times[1:], index.end)
    parts = [*zip(index.times[index.corrupt], ends[index.corrupt], strict=True), *map(tuple, index.holes)]
    joined: list[tuple[float, float]] = []
    for begin, stop in sorted((float(begin) - index.zero, float(stop) - index.zero) for begin, stop in parts):
        if joined and begin <= joined[-1][1] + 1e-6:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((begin, stop))
    return joined


def damage_report(gaps: Sequence[tuple[float, float]], truncation_reason: str) -> str:
    """Describe which parts of a video are damaged; "" for an intact one."""
    parts = []
    if gaps:
        named = ", ".join(f"{begin:.3f} to {stop:.3f} s" for begin, stop in gaps[:5]) + ", ..." * (len(gaps) > 5)
        parts.append(f"damaged, {sum(stop - begin for begin, stop in gaps):.3f} s in all: {named}")
    if truncation_reason:
        parts.append(truncation_reason)
    return "; ".join(parts)


def replacement_indices(corrupt: NDArray[np.bool_], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the last intact frame up to each of `wanted`, else the first intact one; unchanged without any."""
    intact = np.flatnonzero(~corrupt)
    return intact[np.maximum(np.searchsorted(intact, wanted, side="right") - 1, 0)] if len(intact) else wanted
