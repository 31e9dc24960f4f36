"""From a decoded picture to upright RGB pixels: conversion, scaling, rotation."""

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
    """What is done to the pictures of interlaced and of high-dynamic-range video."""

    deinterlace: bool = True
    tone_map: bool = False


ENVIRONMENT = ("INTERNVIDEO_DEINTERLACE", "INTERNVIDEO_TONE_MAP")

FIELDS = frozenset({"hevc", "vvc"})
"""Codecs whose pictures are single fields where FFmpeg marks them as interlaced, so that there is nothing to undo."""

_SMALLEST = 16
"""Pixels of a side below which FFmpeg's filter does not work."""


def chosen_conversion(deinterlace: bool | None = None, tone_map: bool | None = None) -> Conversion:
    """What is asked for: the arguments, else the environment (1 or 0), else the defaults. Raises VideoError."""
    found = []
    for asked, name, usual in zip((deinterlace, tone_map), ENVIRONMENT, Conversion(), strict=True):
        word = os.environ.get(name) or str(int(usual))
        if asked is None and word not in ("0", "1"):
            raise VideoError(name, f"'{word}'", "0, 1")
        found.append(word == "1" if asked is None else asked)
    return Conversion(*found)


def conversion_told() -> dict[str, bool]:
    """The conversion for the protocol of a run over many files, where it is not the default. Raises VideoError."""
    found, usual = chosen_conversion()._asdict(), Conversion()._asdict()
    return {name: value for name, value in found.items() if value != usual[name]}


class Converter:
    """Pixels of any format, depth and size to 8-bit RGB. Keep one for a video: building its tables is the slow part.

    The matrix and the range are those that the picture is marked with; without a mark BT.601 and the limited range
    (full for "yuvj"), as FFmpeg does. Each picture is judged and converted by itself, whatever lies around it.

    Args:
        codec: FFmpeg's name of it. conversion: by default what the environment says.
    """

    def __init__(self, codec: str = "", conversion: Conversion | None = None) -> None:
        self._reformatter = VideoReformatter()
        self._conversion = conversion or chosen_conversion()
        self._fields = codec in FIELDS

    def write(self, picture: Any, out: NDArray[np.uint8]) -> None:
        """Write a decoded picture into `out` (H, W, 3) uint8, scaled to its size; an alpha plane is left out.

        Raises:
            ValueError: its colors are coded in a way that is not converted.
        """
        if self._conversion.deinterlace and picture.interlaced_frame and not self._fields:
            picture = deinterlaced(picture)
        kind = KINDS.get(picture.color_trc) if self._conversion.tone_map else None
        if kind is None:
            out[:] = self._pixels(picture, out, "rgb24")
        else:
            wide = picture.color_primaries in (_BT2020, _UNKNOWN)
            out[:] = tone_mapped(self._pixels(picture, out, "rgb48"), kind, wide=wide)

    def _pixels(self, picture: Any, out: NDArray[np.uint8], form: str) -> NDArray[Any]:
        """The pixels of a picture in the size of `out`, as "rgb24" (uint8) or "rgb48" (uint16)."""
        height, width = out.shape[:2]
        # PQ and HLG without a matrix can hardly be anything but BT.2020.
        matrix = _BT2020 if form == "rgb48" and picture.colorspace == _UNKNOWN else None
        try:
            rgb = self._reformatter.reformat(
                picture, width=width, height=height, format=form + "le" * (form == "rgb48"), threads=1,
                src_colorspace=matrix,
            )  # fmt: skip
        except OSError as error:
            named = f"matrix {int(picture.colorspace)} of ITU-T H.273, {picture.format.name}"
            raise ValueError(f"its colors ({named}) are not converted") from error
        plane = rgb.planes[0]
        kind = np.dtype("<u2" if form == "rgb48" else np.uint8)
        rows = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
        return rows[:height, : 3 * width].reshape(height, width, 3)


def deinterlaced(picture: Any) -> Any:
    """The first field (in time) of an interlaced picture with the lines of the other one filled in from its own.

    FFmpeg's "w3fdif" (BBC R&D), which is given nothing but this picture: one picture for each, the same whatever was
    read before it.
    """
    if min(picture.width, picture.height) < _SMALLEST:
        return picture
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=picture.width,
        height=picture.height,
        format=picture.format,
        time_base=picture.time_base or Fraction(1, 25),
    )
    graph.link_nodes(source, graph.add("w3fdif", "mode=frame:deint=all"), graph.add("buffersink")).configure()
    graph.vpush(picture)
    graph.vpush(None)
    result = graph.vpull()
    # A packed format is unpacked on the way, which loses the marks.
    result.colorspace, result.color_range = picture.colorspace, picture.color_range
    result.color_trc, result.color_primaries = picture.color_trc, picture.color_primaries
    return result


def scaled(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """(width, height) with the shorter side brought down to `short_side`; smaller pictures stay as they are."""
    short = min(width, height)
    if short_side is None or short <= short_side:
        return width, height
    return max(1, round(width * short_side / short)), max(1, round(height * short_side / short))


def orientation(picture: Any) -> tuple[int, bool]:
    """(degrees clockwise, left-right flip first) that the display matrix asks for, to the nearest quarter turn."""
    # The library's view of side data and its picture hold each other until the garbage collector comes, so that
    # thousands of opened videos would each keep a picture in memory: let that be a tiny one.
    picture = VideoReformatter().reformat(picture, width=16, height=16, format="gray", interpolation="POINT", threads=1)
    try:
        data = picture.side_data.get(SideDataType.DISPLAYMATRIX)
    except ValueError:  # this version of the library does not know some other side data of the picture
        angle = picture.rotation  # counter-clockwise; a huge negative number when the matrix makes no sense
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


class FirstPicture(NamedTuple):
    """What the first picture tells of all: pixels as stored, and how they are turned upright."""

    width: int = 0
    height: int = 0
    pixel_format: str = ""
    colours: tuple[object, object] = (None, None)
    rotation: int = 0
    mirrored: bool = False
    interlaced: bool = False
    hdr: str = ""


def first_picture(picture: Any) -> FirstPicture:
    """The properties of a decoded picture, which is not held."""
    colours = (picture.colorspace, picture.color_range)
    kind = KINDS.get(picture.color_trc, "")
    return FirstPicture(
        picture.width,
        picture.height,
        picture.format.name,
        colours,
        *orientation(picture),
        picture.interlaced_frame,
        kind,
    )


def upright(frames: NDArray[np.uint8], rotation: int, mirrored: bool) -> NDArray[np.uint8]:
    """Apply a left-right flip, then a clockwise rotation, to (T, H, W, 3) frames."""
    if mirrored:
        frames = frames[:, :, ::-1]
    if rotation:
        frames = np.rot90(frames, -rotation // 90, axes=(1, 2))
    return np.ascontiguousarray(frames)
