"""Folders of numbered pictures as videos: `ID/00001.jpg, ID/00002.jpg, ...`, as Something-Something V1 and others come.

Pictures (JPEG, PNG) follow each other by number, whatever zeros stand in front, and number n is shown (n - first) / fps
seconds after the first one. Such a folder does not tell its rate: it is given or the folder is refused. A missing
number is a gap of that length; a picture that cannot be decoded is a damaged one (`video.damage`); one of another size
than the first is refused. Hidden files, names without a number, and series that are called flow, thumb, cover, poster
or preview beside another one are no frames.
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
from internvideo.video.conversion import first_picture
from internvideo.video.damage import CHECKS, DamageError
from internvideo.video.index import Index
from internvideo.video.opening import MAX_PIXELS, Deadline, fail, reason_of

PICTURES = frozenset((".jpg", ".jpeg", ".png"))
ENVIRONMENT = "INTERNVIDEO_FRAME_RATE"
"""Rate of all folders of frames that have none of their own."""

MOST_BYTES = 2**28
"""Largest file that is read as one picture."""

_NUMBERED = re.compile(r"^(?P<series>.*?)(?P<number>[0-9]{1,18})$", re.DOTALL)
_ASIDE = re.compile(r"^(flow|thumb|cover|poster|preview)", re.IGNORECASE)
_CODECS = {b"\xff\xd8\xff": "mjpeg", b"\x89PNG\r\n\x1a\n": "png"}


class _Frame(NamedTuple):
    """A file, its size (bytes; -1: cannot be read) and the time of its last change (ns)."""

    name: str
    size: int
    modified: int


def checked_rate(fps: float | str, where: object) -> float:
    """A rate in frames a second. Raises VideoError for what is none."""
    try:
        rate = float(fps)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 1000:
        raise VideoError(where, f"{fps!r} frames a second", "a number above 0, at most 1000")
    return rate


def chosen_rate(fps: float | None) -> float | None:
    """The rate asked for: the argument, else the environment's, else None. Raises VideoError."""
    told = os.environ.get(ENVIRONMENT)
    return checked_rate(fps, "fps") if fps is not None else checked_rate(told, ENVIRONMENT) if told else None


def rate_told() -> dict[str, float]:
    """The environment's rate for the protocol of a run over many videos, where there is one. Raises VideoError."""
    rate = chosen_rate(None)
    return {} if rate is None else {"frame_rate_of_folders": rate}


def frame_names(folder: str, names: Iterable[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The pictures among the names in a folder that are its frames, and their numbers (F,), rising.

    Raises:
        VideoError: not one, several series, a number twice, or more numbers missing than pictures there.
    """
    series: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    pictures = 0
    for name in names:
        stem, ending = os.path.splitext(name)
        if name.startswith(".") or ending.lower() not in PICTURES:
            continue
        pictures += 1
        if found := _NUMBERED.match(stem):
            series[found["series"]].append((int(found["number"]), name))
    kept = [name for name in series if not _ASIDE.match(name)] or list(series)
    if not kept:
        reason = f"is a folder of {pictures} pictures without numbers" if pictures else "is a folder, not a video"
        raise fail(folder, reason, do="folders of numbered pictures (00001.jpg, ...) are read as videos")
    if len(kept) > 1:
        shown = ", ".join(f"{name or '(number)'} ({len(series[name])})" for name in sorted(kept)[:4])
        raise fail(folder, f"holds {len(kept)} series of numbered pictures: {shown}", do="give each a folder")
    frames = sorted(series[kept[0]])
    numbers = np.array([number for number, _ in frames], np.int64)
    steps = np.diff(numbers)
    if (steps == 0).any():
        twice = int(np.argmin(steps))
        raise fail(folder, f"holds two pictures with one number, {frames[twice][1]} and {frames[twice + 1][1]}")
    missing = int(numbers[-1] - numbers[0]) + 1 - len(frames)
    if missing and missing >= len(frames) - 1:
        found_ = (
            f"holds {len(frames)} pictures with numbers from {numbers[0]} to {numbers[-1]}, most of which are missing"
        )
        raise fail(folder, found_, do="number the frames one after another")
    return [name for _, name in frames], numbers


def is_frame_folder(folder: str, names: Iterable[str]) -> bool:
    """Whether the files of these names in a folder are the frames of a video, two or more."""
    try:
        return len(frame_names(folder, names)[0]) > 1
    except VideoError:
        return False


class FrameFolder:
    """An open folder of frames.

    Args:
        path: of the folder. fps: frames a second; None for the environment's.

    Raises:
        VideoError: it cannot be listed, is no series of pictures, or its rate is not known.
    """

    time_base = Fraction(1, 10**6)

    def __init__(self, path: str, fps: float | None) -> None:
        self.path = path
        try:
            names, self._numbers = frame_names(path, os.listdir(path))
        except OSError as error:
            raise fail(path, f"cannot be opened: {reason_of(error)}") from error
        rate = chosen_rate(fps)
        if rate is None:
            do = f"give fps: in the manifest's row or column, as --frame-rate, or as {ENVIRONMENT}"
            raise fail(path, f"is a folder of {len(names)} frames, whose rate is not known", do=do)
        self.fps = rate
        self._frames = [_file(os.path.join(path, name), name) for name in names]
        self.codec_context: Any = None

    def index(self, deadline: Deadline, max_seconds: float) -> Index:
        """Which frames there are; pictures are decoded up to the first sound one. Raises VideoError."""
        times = (self._numbers - self._numbers[0]) / self.fps
        end = float(times[-1]) + 1 / self.fps
        if end > max_seconds:
            raise fail(self.path, f"is longer than {max_seconds:g} s", do="raise max_seconds or give fewer frames")
        bad = np.array([frame.size <= 0 for frame in self._frames])
        reason = "empty, or no file that can be read"
        for number in np.flatnonzero(~bad).tolist():
            deadline.check()
            try:
                first = first_picture(self._picture(number))
                break
            except _UnsoundError as error:
                bad[number], reason = True, str(error)
        else:
            raise fail(
                self.path, f"not one of its {len(bad)} pictures can be decoded ({self._frames[-1].name}: {reason})"
            )
        after = np.flatnonzero(np.diff(self._numbers) > 1)
        holes = np.stack([times[after] + 1 / self.fps, times[after + 1]], axis=1)
        faults = [int(bad.argmax())] * bool(bad.any()) + (after[:1] + 1).tolist()
        whole = min(faults, default=2**62)
        fault = f"a picture is damaged or missing behind frame {whole - 1}" if faults else ""
        return Index(times, end, 0.0, first, exact=False, bad=bad, holes=holes, whole=whole, fault=fault)

    def pictures(self, wanted: list[int], index: Index, deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """(frame, decoded picture) of `wanted` (rising).

        Raises:
            DamageError: one is damaged; `index.bad` then tells of all damaged ones of `wanted`.
            VideoError: one has another size than the first, or was changed since the folder was opened.
        """
        damage: DamageError | None = None
        for number in wanted:
            deadline.check()
            try:
                picture = self._picture(number)
            except _UnsoundError as error:
                index.bad[number] = True
                at, name = index.times[number], self._frames[number].name
                damage = damage or DamageError(self.path, f"frame {number} ({name}) is damaged at {at:.3f} s: {error}")
                continue
            if damage is not None:
                continue
            self._check_like(first_picture(picture), index, number)
            yield number, picture
        if damage is not None:
            raise damage

    def _check_like(self, found: Any, index: Index, number: int) -> None:
        first = index.first
        if (found.width, found.height) != (first.width, first.height):
            name, sizes = (
                self._frames[number].name,
                f"{found.width} x {found.height}, not {first.width} x {first.height}",
            )
            raise fail(self.path, f"frame {number} ({name}) is {sizes} as the first", do="bring all to one size")
        if (found.rotation, found.mirrored) != (first.rotation, first.mirrored):
            name = self._frames[number].name
            raise fail(self.path, f"frame {number} ({name}) is turned in another way (EXIF) than the first")

    def _picture(self, number: int) -> Any:
        """Decode one picture. Raises _UnsoundError; VideoError where it is not the file that was listed."""
        frame = self._frames[number]
        place = os.path.join(self.path, frame.name)
        if _file(place, frame.name) != frame:
            raise fail(self.path, f"{frame.name} was changed since the folder was opened", do="open it again")
        if not 0 < frame.size <= MOST_BYTES:
            raise _UnsoundError("too large" if frame.size > 0 else "empty, or no file that can be read")
        try:
            with open(place, "rb") as file:
                data = file.read(MOST_BYTES)
            codec = next((name for start, name in _CODECS.items() if data.startswith(start)), None)
            if codec is None:
                raise _UnsoundError("neither JPEG nor PNG")
            context: Any = av.CodecContext.create(codec, "r")
            context.thread_count = 1
            context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": CHECKS + "+explode"}
            found = [*context.decode(av.Packet(data)), *context.decode(None)]
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise _UnsoundError(reason_of(error)) from error
        if not found or found[0].is_corrupt:
            raise _UnsoundError("no sound picture in it")
        self.codec_context = self.codec_context or context
        return found[0]

    def close(self) -> None:
        """Nothing is held open."""


class _UnsoundError(Exception):
    """Why a file gives no picture."""


def _file(place: str, name: str) -> _Frame:
    """What the disk tells of a frame."""
    try:
        found = os.stat(place)
    except (OSError, ValueError):
        return _Frame(name, -1, 0)
    return _Frame(name, found.st_size if stat.S_ISREG(found.st_mode) else -1, found.st_mtime_ns)
