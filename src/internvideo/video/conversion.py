"""Convert decoded frames to upright RGB: color conversion, deinterlacing, scaling, rotation."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from internvideo.errors import VideoError
from internvideo.video.tone_map import KINDS, tone_mapped

_BT2020, _UNKNOWN = 9, 2  # of ITU-T H.273, for the matrix and for the primaries


class Conversion(NamedTuple):
    """Options for interlaced and for high-dynamic-range video."""

    deinterlace: bool = True
    tone_map: bool = False


ENVIRONMENT = ("INTERNVIDEO_DEINTERLACE", "INTERNVIDEO_TONE_MAP")

FIELDS = frozenset({"hevc", "vvc"})
"""Codecs whose frames, where FFmpeg marks them as interlaced, are single fields that need no deinterlacing."""

_SMALLEST = 16
"""Minimum side in pixels of FFmpeg's deinterlacing filter."""


def resolve_conversion(deinterlace: bool | None = None, tone_map: bool | None = None) -> Conversion:
    """Resolve the options: the arguments, else the environment (1 or 0), else the defaults. Raises VideoError."""
    values = []
    for argument, name, default in zip((deinterlace, tone_map), ENVIRONMENT, Conversion(), strict=True):
        word = os.environ.get(name) or str(int(default))
        if argument is None and word not in ("0", "1"):
            raise VideoError(name, f"'{word}'", "0, 1")
        values.append(word == "1" if argument is None else argument)
    return Conversion(*values)


def conversion_metadata() -> dict[str, bool]:
    """Return the non-default options for the metadata of results. Raises VideoError."""
    values, defaults = resolve_conversion()._asdict(), Conversion()._asdict()
    return {name: value for name, value in values.items() if value != defaults[name]}


class Converter:
    """Convert frames of any pixel format, depth and size to 8-bit RGB. Reuse it per video: building its tables is slow.

    Color matrix and range are those of the frame; unspecified ones are BT.601 and the limited range (full for "yuvj"),
    as in FFmpeg. Each frame is converted by its own properties, independent of its neighbors.

    Args:
        codec: FFmpeg's name of the codec. conversion: by default that of the environment.
    """

    def __init__(self, codec: str = "", conversion: Conversion | None = None) -> None:
        self._reformatter = VideoReformatter()
        self._conversion = conversion or resolve_conversion()
        self._fields = codec in FIELDS

    def write(self, frame: Any, out: NDArray[np.uint8]) -> None:
        """Convert a decoded frame into `out` (H, W, 3) uint8, scaled to its size; an alpha plane is dropped.

        Raises ValueError: the frame's color matrix is not supported.
        """
        if self._conversion.deinterlace and frame.interlaced_frame and not self._fields:
            frame = deinterlace(frame)
        kind = KINDS.get(frame.color_trc) if self._conversion.tone_map else None
        if kind is None:
            out[:] = self._pixels(frame, out, "rgb24")
        else:
            wide = frame.color_primaries in (_BT2020, _UNKNOWN)
            out[:] = tone_mapped(self._pixels(frame, out, "rgb48"), kind, wide=wide)

    def _pixels(self, frame: Any, out: NDArray[np.uint8], form: str) -> NDArray[Any]:
        """Return the pixels of a frame in the size of `out`, as "rgb24" (uint8) or "rgb48" (uint16)."""
        height, width = out.shape[:2]
        # PQ and HLG frames without a matrix are taken as BT.2020.
        matrix = _BT2020 if form == "rgb48" and frame.colorspace == _UNKNOWN else None
        try:
            rgb = self._reformatter.reformat(
                frame, width=width, height=height, format=form + "le" * (form == "rgb48"), threads=1,
                src_colorspace=matrix,
            )  # fmt: skip
        except OSError as error:
            named = f"matrix {int(frame.colorspace)} of ITU-T H.273, {frame.format.name}"
            raise ValueError(f"its colors ({named}) are not converted") from error
        plane = rgb.planes[0]
        kind = np.dtype("<u2" if form == "rgb48" else np.uint8)
        rows = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
        return rows[:height, : 3 * width].reshape(height, width, 3)


def deinterlace(frame: Any) -> Any:
    """Deinterlace a frame: keep its first field (in time) and interpolate the lines of the other one.

    Uses FFmpeg's "w3fdif" (BBC R&D) on this frame alone, so the result does not depend on what was read before.
    """
    if min(frame.width, frame.height) < _SMALLEST:
        return frame
    graph = Graph()
    graph.threads = 1
    base = frame.time_base or Fraction(1, 25)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
    graph.link_nodes(source, graph.add("w3fdif", "mode=frame:deint=all"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    graph.vpush(None)
    result = graph.vpull()
    # The filter unpacks packed formats, which loses the color properties.
    result.colorspace, result.color_range = frame.colorspace, frame.color_range
    result.color_trc, result.color_primaries = frame.color_trc, frame.color_primaries
    return result


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Return (width, height) with the shorter side reduced to `short_side`; smaller frames keep their size."""
    short = min(width, height)
    if short_side is None or short <= short_side:
        return width, height
    return max(1, round(width * short_side / short)), max(1, round(height * short_side / short))


def orientation(frame: Any) -> tuple[int, bool]:
    """Return (clockwise degrees, left-right flip before it) of the display matrix, to the nearest quarter turn."""
    # PyAV's side data and its frame reference each other until garbage collection, so that thousands of opened videos
    # would each keep a frame in memory: use a tiny one.
    frame = VideoReformatter().reformat(frame, width=16, height=16, format="gray", interpolation="POINT", threads=1)
    try:
        data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    except ValueError:  # this version of the library does not know some other side data of the frame
        angle = frame.rotation  # counter-clockwise; a huge negative number when the matrix makes no sense
        return (round(-angle / 90) % 4 * 90 if abs(angle) <= 360 else 0), False
    if data is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if a * d - b * c == 0:
        return 0, False
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90, mirrored


class FirstFrame(NamedTuple):
    """Properties of the first frame, which hold for all: stored size and format, orientation."""

    width: int = 0
    height: int = 0
    pixel_format: str = ""
    colors: tuple[object, object] = (None, None)
    rotation: int = 0
    mirrored: bool = False
    interlaced: bool = False
    hdr: str = ""


def first_frame(frame: Any) -> FirstFrame:
    """Return the properties of a decoded frame, without a reference to it."""
    size, colors = (frame.width, frame.height), (frame.colorspace, frame.color_range)
    interlaced, hdr = frame.interlaced_frame, KINDS.get(frame.color_trc, "")
    return FirstFrame(*size, frame.format.name, colors, *orientation(frame), interlaced, hdr)


def upright(frames: NDArray[np.uint8], rotation: int, mirrored: bool) -> NDArray[np.uint8]:
    """Apply a left-right flip, then a clockwise rotation, to (T, H, W, 3) frames."""
    if mirrored:
        frames = frames[:, :, ::-1]
    if rotation:
        frames = np.rot90(frames, -rotation // 90, axes=(1, 2))
    return np.ascontiguousarray(frames)
