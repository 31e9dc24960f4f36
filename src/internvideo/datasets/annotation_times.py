"""Compare times of annotations with durations of the videos, and suggest the offset of videos that were cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor

from internvideo.data.key_frame_indices import SLACK
from internvideo.data.sample import Box, Sample, Segment

CUTS = (900, 600, 300, 60, 30, 10, 1)
"""Offsets are suggested as multiples of these seconds, the first that fits: AVA's movies are cut at 15:00."""


@dataclass(frozen=True)
class Outside:
    """Rows with a time after the end of their video.

    Attributes:
        rows: (id, time in s, duration of its video in s). compared: number of rows with times whose video was opened.
        offset: if the videos start at this second of the annotated video, all times lie inside; None without such one.
    """

    rows: tuple[tuple[str, float, float], ...]
    compared: int
    offset: float | None

    @property
    def warning(self) -> str:
        """The warning in one line, "" without such rows."""
        if not self.rows:
            return ""
        name, moment, seconds = self.rows[0]
        found = f"{len(self.rows):,} of {self.compared:,} rows have times after the end of their video"
        found += f", such as '{name}': {moment:g} s in a file of {seconds:.1f} s"
        if self.offset is None:
            return f"{found}; training and evaluation will refuse them"
        start = f"{self.offset:g}"
        return f"{found}; if the files start at second {start} of the annotated videos, add --offset {start}"


def moments(row: Sample) -> list[float]:
    """Return the start times (s) of the row's segments, boxes and span."""
    parts = [part.start for part in row.segments] + [box.time for box in row.boxes]
    return [*parts, row.span[0]] if row.span else parts


def compare(rows: Iterable[Sample], seconds: Mapping[str, float]) -> Outside:
    """Compare times of rows with the durations (s) of their videos, by path; rows of other videos are skipped."""
    late, compared, lowest, highest = [], 0, 0.0, float("inf")
    for row in rows:
        times, length = moments(row), seconds.get(row.path)
        if not times or length is None:
            continue
        compared += 1
        lowest, highest = max(lowest, max(times) - length - SLACK), min(highest, min(times))
        if max(times) > length + SLACK:
            late.append((row.id, max(times), length))
    return Outside(tuple(late), compared, _offset(lowest, highest) if late else None)


def _offset(lowest: float, highest: float) -> float | None:
    """Return the roundest number of seconds between two limits; None if there is none."""
    for cut in CUTS:
        offset = floor(highest / cut) * cut
        if offset >= max(lowest, 1):
            return float(offset)
    return None


def shifted(row: Sample, offset: float) -> Sample | None:
    """Subtract `offset` (s, where the file starts) from all times of a row; None if a time lies before it."""
    times = moments(row)
    if not times or not offset:
        return row
    if min(times) < offset:
        return None

    def moved(part: Segment | Box, *names: str) -> object:
        return part.model_copy(update={name: getattr(part, name) - offset for name in names})

    span = row.span and (row.span[0] - offset, row.span[1] - offset)
    segments = tuple(moved(part, "start", "end") for part in row.segments)
    boxes = tuple(moved(box, "time") for box in row.boxes)
    return row.model_copy(update={"span": span, "segments": segments, "boxes": boxes})
