"""Times of annotations beside the lengths of the videos: films that were cut, and where the cut may begin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor

from internvideo.data.key_frame_indices import SLACK
from internvideo.data.sample import Sample

CUTS = (900, 600, 300, 60, 30, 10, 1)
"""Steps (s) of beginnings that are offered, the usual ones first: AVA's films are cut at 15:00."""


@dataclass(frozen=True)
class Outside:
    """Rows with a moment behind the end of their video.

    Attributes:
        rows: (id, moment s, length of its video s). compared: rows with times whose video was opened.
        offset: s that the videos may begin with, such that all would lie inside; None where there is no such number.
    """

    rows: tuple[tuple[str, float, float], ...]
    compared: int
    offset: float | None

    @property
    def warning(self) -> str:
        """One line for a person, "" where all is well."""
        if not self.rows:
            return ""
        name, moment, seconds = self.rows[0]
        found = f"{len(self.rows):,} of {self.compared:,} rows have times behind the end of their video"
        found += f", such as '{name}': {moment:g} s in a file of {seconds:.1f} s"
        if self.offset is None:
            return f"{found}; training and evaluation will refuse them"
        return (
            f"{found}; if the files begin at second {self.offset:g} of what was annotated, add --offset {self.offset:g}"
        )


def moments(row: Sample) -> list[float]:
    """Seconds at which something of the row begins: its span, its segments, its boxes."""
    parts = [part.start for part in row.segments] + [box.time for box in row.boxes]
    return [*parts, row.span[0]] if row.span else parts


def compare(rows: Iterable[Sample], seconds: Mapping[str, float]) -> Outside:
    """Times of rows beside the lengths (s) of their videos, by path; others are passed over."""
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
    """The roundest number of seconds between two."""
    for cut in CUTS:
        offset = floor(highest / cut) * cut
        if offset >= max(lowest, 1):
            return float(offset)
    return None


def shifted(row: Sample, offset: float) -> Sample | None:
    """The row with its times counted from the start of a file that begins at `offset` s; None where one lies before."""
    times = moments(row)
    if not times or not offset:
        return row
    if min(times) < offset:
        return None
    changed: dict[str, object] = {}
    if row.span:
        changed["span"] = (row.span[0] - offset, row.span[1] - offset)
    if row.segments:
        changed["segments"] = tuple(
            part.model_copy(update={"start": part.start - offset, "end": part.end - offset}) for part in row.segments
        )
    if row.boxes:
        changed["boxes"] = tuple(box.model_copy(update={"time": box.time - offset}) for box in row.boxes)
    return row.model_copy(update=changed)
