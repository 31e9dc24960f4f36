"""From a decoded picture to upright RGB pixels: conversion, scaling, rotation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray


class Converter:
    """Pixels of any format, depth and size to 8-bit RGB. Keep one for a video: building its tables is the slow part."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def write(self, picture: Any, out: NDArray[np.uint8]) -> None:
        """Write a decoded picture into `out` (H, W, 3) uint8, scaled to its size; an alpha plane is left out."""
        height, width = out.shape[:2]
        rgb = self._reformatter.reformat(picture, width=width, height=height, format="rgb24", threads=1)
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        out[:] = rows[:height, : 3 * width].reshape(height, width, 3)


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


def first_picture(picture: Any) -> FirstPicture:
    """The properties of a decoded picture, which is not held."""
    colours = (picture.colorspace, picture.color_range)
    return FirstPicture(picture.width, picture.height, picture.format.name, colours, *orientation(picture))


def upright(frames: NDArray[np.uint8], rotation: int, mirrored: bool) -> NDArray[np.uint8]:
    """Apply a left-right flip, then a clockwise rotation, to (T, H, W, 3) frames."""
    if mirrored:
        frames = frames[:, :, ::-1]
    if rotation:
        frames = np.rot90(frames, -rotation // 90, axes=(1, 2))
    return np.ascontiguousarray(frames)
