"""Compare times of annotations with durations of the videos, and suggest the offset of video files that were cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor

from internvideo.data.key_frame_indices import SLACK
from internvideo.data.sample import Box, Sample, Segment

OFFSET_UNITS = (900, 600, 300, 60, 30, 10, 1)
"""Suggested offsets are multiples of the first of these seconds that fits; AVA's movies are often cut at 15:00."""


@dataclass(frozen=True)
class LateRows:
    """Rows with a time after the end of their video.

    Attributes:
        rows: (id, time in s, duration of its video in s). num_compared: number of rows that could be compared.
        offset: second of the annotated videos at which the files must start for all times to lie in them; None if no
            offset fits.
    """

    rows: tuple[tuple[str, float, float], ...]
    num_compared: int
    offset: float | None

    @property
    def warning(self) -> str:
        """Warning in one line, "" if there are no such rows."""
        if not self.rows:
            return ""
        name, time, seconds = self.rows[0]
        found = f"{len(self.rows):,} of {self.num_compared:,} rows have times after the end of their video"
        found += f", such as '{name}': {time:g} s in a file of {seconds:.1f} s"
        if self.offset is None:
            return f"{found}; training and evaluation will refuse them"
        start = f"{self.offset:g}"
        return f"{found}; if the files start at second {start} of the annotated videos, add --offset {start}"


def start_times(row: Sample) -> list[float]:
    """Return the start times (s) of the row's segments, boxes and span."""
    starts = [item.start for item in row.segments] + [box.time for box in row.boxes]
    return [*starts, row.span[0]] if row.span else starts


def compare(rows: Iterable[Sample], seconds: Mapping[str, float]) -> LateRows:
    """Compare times of rows with the durations (s) of their videos, by path; rows of other videos are skipped."""
    late_rows, num_compared, lowest, highest = [], 0, 0.0, float("inf")
    for row in rows:
        times, length = start_times(row), seconds.get(row.path)
        if not times or length is None:
            continue
        num_compared += 1
        lowest, highest = max(lowest, max(times) - length - SLACK), min(highest, min(times))
        if max(times) > length + SLACK:
            late_rows.append((row.id, max(times), length))
    return LateRows(tuple(late_rows), num_compared, _offset(lowest, highest) if late_rows else None)


def _offset(lowest: float, highest: float) -> float | None:
    """Return the largest multiple of the first fitting OFFSET_UNITS between two limits; None if none fits."""
    for unit in OFFSET_UNITS:
        offset = floor(highest / unit) * unit
        if offset >= max(lowest, 1):
            return float(offset)
    return None


def shift_times(row: Sample, offset: float) -> Sample | None:
    """Subtract `offset` (s, where the file starts) from all times of a row; None if a time lies before it."""
    times = start_times(row)
    if not times or not offset:
        return row
    if min(times) < offset:
        return None

    def move(item: Segment | Box, *names: str) -> object:
        return item.model_copy(update={name: getattr(item, name) - offset for name in names})

    span = row.span and (row.span[0] - offset, row.span[1] - offset)
    segments = tuple(move(item, "start", "end") for item in row.segments)
    boxes = tuple(move(box, "time") for box in row.boxes)
    return row.model_copy(update={"span": span, "segments": segments, "boxes": boxes})
