"""Read folders of numbered images as videos: `ID/00001.jpg, ID/00002.jpg, ...`, as in Something-Something V1.

Images (JPEG, PNG) are ordered by number, with any zero padding; number n is shown (n - first) / fps seconds after the
first one. The frame rate must be given. A missing number is a gap of that length; an image that cannot be decoded is a
damaged frame (`video.damage`); an image of another size than the first one raises. Hidden files, names without a
number, and series named flow, thumb, cover, poster or preview next to another series are ignored.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.errors import VideoError
from internvideo.video.conversion import first_frame
from internvideo.video.damage import CHECKS, DamageError
from internvideo.video.index import Index
from internvideo.video.opening import MAX_PIXELS, Deadline, fail, reason_of

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png"))
ENVIRONMENT = "INTERNVIDEO_FRAME_RATE"
"""Environment variable: frame rate of the folders without their own."""

MAX_IMAGE_BYTES = 2**28
"""Maximum file size of one image."""

_NUMBERED = re.compile(r"^(?P<series>.*?)(?P<number>[0-9]{1,18})$", re.DOTALL)
_AUXILIARY_SERIES = re.compile(r"^(flow|thumb|cover|poster|preview)", re.IGNORECASE)
_CODECS = {b"\xff\xd8\xff": "mjpeg", b"\x89PNG\r\n\x1a\n": "png"}


class _FrameFile(NamedTuple):
    """A file, its size (bytes; -1: unreadable) and modification time (ns)."""

    name: str
    size: int
    modified: int


def parse_rate(fps: float | str, where: object) -> float:
    """Parse a rate in frames per second. Raises VideoError."""
    try:
        rate = float(fps)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 1000:
        raise VideoError(where, f"{fps!r} frames a second", "a number above 0, at most 1000")
    return rate


def resolve_rate(fps: float | None) -> float | None:
    """Resolve the frame rate: the argument, else the environment, else None. Raises VideoError."""
    value = os.environ.get(ENVIRONMENT)
    return parse_rate(fps, "fps") if fps is not None else parse_rate(value, ENVIRONMENT) if value else None


def rate_metadata() -> dict[str, float]:
    """Return the environment's frame rate, if set, for the metadata of results. Raises VideoError."""
    rate = resolve_rate(None)
    return {} if rate is None else {"frame_rate_of_folders": rate}


def frame_names(folder: str, names: Iterable[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Select the file names of the frames in a folder; return them with their numbers (F,), in increasing order.

    Raises VideoError: no frame, several series, a duplicate number, or more missing numbers than images.
    """
    series: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    num_images = 0
    for name in names:
        stem, ending = os.path.splitext(name)
        if name.startswith(".") or ending.lower() not in IMAGE_SUFFIXES:
            continue
        num_images += 1
        if found := _NUMBERED.match(stem):
            series[found["series"]].append((int(found["number"]), name))
    frame_series = [name for name in series if not _AUXILIARY_SERIES.match(name)] or list(series)
    if not frame_series:
        reason = f"is a folder of {num_images} images without numbers" if num_images else "is a folder, not a video"
        raise fail(folder, reason, hint="folders of numbered images (00001.jpg, ...) are read as videos")
    if len(frame_series) > 1:
        shown = ", ".join(f"{name or '(number)'} ({len(series[name])})" for name in sorted(frame_series)[:4])
        raise fail(folder, f"holds {len(frame_series)} series of numbered images: {shown}", hint="give each a folder")
    frames = sorted(series[frame_series[0]])
    numbers = np.array([number for number, _ in frames], np.int64)
    steps = np.diff(numbers)
    if (steps == 0).any():
        repeated = int(np.argmin(steps))
        raise fail(folder, f"holds two images with one number, {frames[repeated][1]} and {frames[repeated + 1][1]}")
    missing = int(numbers[-1] - numbers[0]) + 1 - len(frames)
    if missing and missing >= len(frames) - 1:
        first, last = numbers[0], numbers[-1]
        reason = f"holds {len(frames)} images with numbers from {first} to {last}, most of which are missing"
        raise fail(folder, reason, hint="number the frames one after another")
    return [name for _, name in frames], numbers


def is_frame_folder(folder: str, names: Iterable[str]) -> bool:
    """Return whether the files of these names in a folder are two or more frames of a video."""
    try:
        return len(frame_names(folder, names)[0]) > 1
    except VideoError:
        return False


class FrameFolder:
    """An open folder of frames.

    Args:
        path: the folder. fps: frames per second; None for the environment's.

    Raises VideoError: it cannot be listed, is not a series of images, or its frame rate is not known.
    """

    time_base = Fraction(1, 10**6)

    def __init__(self, path: str, fps: float | None) -> None:
        self.path = path
        try:
            names, self._numbers = frame_names(path, os.listdir(path))
        except OSError as error:
            raise fail(path, f"cannot be opened: {reason_of(error)}") from error
        rate = resolve_rate(fps)
        if rate is None:
            hint = f"give fps: in the manifest's row or column, as --frame-rate, or as {ENVIRONMENT}"
            raise fail(path, f"is a folder of {len(names)} frames, whose rate is not known", hint=hint)
        self.fps = rate
        self._frames = [_stat_frame(os.path.join(path, name), name) for name in names]
        self.codec_context: Any = None

    def index(self, deadline: Deadline, max_seconds: float) -> Index:
        """Build the frame index; images are decoded up to the first intact one. Raises VideoError."""
        times = (self._numbers - self._numbers[0]) / self.fps
        end = float(times[-1]) + 1 / self.fps
        if end > max_seconds:
            raise fail(self.path, f"is longer than {max_seconds:g} s", hint="raise max_seconds or give fewer frames")
        corrupt = np.array([frame.size <= 0 for frame in self._frames])
        reason = "empty, or no file that can be read"
        for index in np.flatnonzero(~corrupt).tolist():
            deadline.check()
            try:
                first = first_frame(self._decode(index))
                break
            except _CorruptImageError as error:
                corrupt[index], reason = True, str(error)
        else:
            found = f"not one of its {len(corrupt)} images can be decoded ({self._frames[-1].name}: {reason})"
            raise fail(self.path, found)
        after = np.flatnonzero(np.diff(self._numbers) > 1)
        holes = np.stack([times[after] + 1 / self.fps, times[after + 1]], axis=1)
        damaged = [int(corrupt.argmax())] * bool(corrupt.any()) + (after[:1] + 1).tolist()
        num_before_damage = min(damaged, default=2**62)
        damage_reason = f"an image is damaged or missing after frame {num_before_damage - 1}" if damaged else ""
        return Index(
            times, end, 0.0, first, seekable=False, corrupt=corrupt, holes=holes,
            num_before_damage=num_before_damage, damage_reason=damage_reason,
        )  # fmt: skip

    def decoded_frames(self, wanted: list[int], index: Index, deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """Yield (frame index, decoded frame) of `wanted`, in increasing order.

        Raises:
            DamageError: one is damaged; `index.corrupt` then marks all damaged ones of `wanted`.
            VideoError: one has another size than the first, or was changed since the folder was opened.
        """
        damage: DamageError | None = None
        for frame_index in wanted:
            deadline.check()
            try:
                frame = self._decode(frame_index)
            except _CorruptImageError as error:
                index.corrupt[frame_index] = True
                at, name = index.times[frame_index], self._frames[frame_index].name
                reason = f"frame {frame_index} ({name}) is damaged at {at:.3f} s: {error}"
                damage = damage or DamageError(self.path, reason)
                continue
            if damage is not None:
                continue
            self._check_consistent(first_frame(frame), index, frame_index)
            yield frame_index, frame
        if damage is not None:
            raise damage

    def _check_consistent(self, properties: Any, index: Index, frame_index: int) -> None:
        first, frame = index.first, f"frame {frame_index} ({self._frames[frame_index].name})"
        if (properties.width, properties.height) != (first.width, first.height):
            sizes = f"{properties.width} x {properties.height}, not {first.width} x {first.height}"
            raise fail(self.path, f"{frame} is {sizes} as the first", hint="bring all to one size")
        if (properties.rotation, properties.mirrored) != (first.rotation, first.mirrored):
            raise fail(self.path, f"{frame} is turned in another way (EXIF) than the first")

    def _decode(self, frame_index: int) -> Any:
        """Decode one image. Raises _CorruptImageError; VideoError where the file changed since it was listed."""
        file = self._frames[frame_index]
        path = os.path.join(self.path, file.name)
        if _stat_frame(path, file.name) != file:
            raise fail(self.path, f"{file.name} was changed since the folder was opened", hint="open it again")
        if not 0 < file.size <= MAX_IMAGE_BYTES:
            raise _CorruptImageError("too large" if file.size > 0 else "empty, or no file that can be read")
        try:
            with open(path, "rb") as stream:
                data = stream.read(MAX_IMAGE_BYTES)
            codec = next((name for start, name in _CODECS.items() if data.startswith(start)), None)
            if codec is None:
                raise _CorruptImageError("neither JPEG nor PNG")
            context: Any = av.CodecContext.create(codec, "r")
            context.thread_count = 1
            context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": CHECKS + "+explode"}
            decoded = [*context.decode(av.Packet(data)), *context.decode(None)]
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise _CorruptImageError(reason_of(error)) from error
        if not decoded or decoded[0].is_corrupt:
            raise _CorruptImageError("no intact image in it")
        self.codec_context = self.codec_context or context
        return decoded[0]

    def close(self) -> None:
        """Do nothing: no file is kept open."""


class _CorruptImageError(Exception):
    """An image cannot be decoded."""


def _stat_frame(path: str, name: str) -> _FrameFile:
    """Return name, size and modification time of a frame's file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return _FrameFile(name, -1, 0)
    return _FrameFile(name, status.st_size if stat.S_ISREG(status.st_mode) else -1, status.st_mtime_ns)
