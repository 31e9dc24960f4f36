"""Read and write AVA's csv files: annotations, results, exclusions (AlphAction).

Rows are `video, timestamp, x1, y1, x2, y2, action_id, person_id or score` without header; action ids start at 1,
corners are fractions. A frame is identified by video and whole second, as in the published evaluator.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.datasets.reading import read_text
from internvideo.errors import ManifestError
from internvideo.untrusted import MAX_DIGITS, CsvReader


@dataclass(frozen=True)
class AvaRows:
    """Columns of an AVA file.

    Attributes:
        frame: N pairs (video, time in whole seconds). box: (N, 4). action: (N,) ids from 1.
        score: (N,), 0 for annotations.
    """

    frame: tuple[tuple[str, int], ...]
    box: NDArray[np.float64]
    action: NDArray[np.int64]
    score: NDArray[np.float64]


def _iterate_rows(path: Path, min_cells: int) -> Iterator[tuple[int, list[str]]]:
    reader = CsvReader(read_text(path).splitlines())
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) < min_cells:
                raise ManifestError(f"{path}:{reader.line_num}", f"{len(cells)} cells", f"{min_cells} or more")
            yield reader.line_num, cells
    except csv.Error as error:
        raise ManifestError(f"{path}:{reader.line_num}", f"not csv ({error})") from None


def _parse_number(where: str, field: str, cell: str) -> float:
    """Parse a finite number. Raises ManifestError."""
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ManifestError(f"{where} {field}", f"'{cell[:80]}'", "a finite number")
    return value


def _parse_action(where: str, cell: str) -> int:
    """Parse an action id, at least 1. Raises ManifestError."""
    if not cell.strip().isdecimal() or len(cell) > MAX_DIGITS or int(cell) < 1:
        raise ManifestError(f"{where} action_id", f"'{cell[:80]}'", "an id, from 1")
    return int(cell)


def read_rows(path: Path, *, has_scores: bool, excluded: frozenset[tuple[str, int]] = frozenset()) -> AvaRows:
    """Read a file of annotations, or (`has_scores`) of results, without excluded frames and rows without a box.

    Raises:
        ManifestError: a row with too few cells, a cell that is not a number, an action below 1.
    """
    frames, boxes, actions, scores = [], [], [], []
    for line, cells in _iterate_rows(path, 8 if has_scores else 7):
        if not cells[6].strip():  # a clip without persons
            continue
        where = f"{path}:{line}"
        key = (cells[0], int(_parse_number(where, "timestamp", cells[1])))
        box = [
            _parse_number(where, name, cell) for name, cell in zip(("x1", "y1", "x2", "y2"), cells[2:6], strict=True)
        ]
        action = _parse_action(where, cells[6])
        score = _parse_number(where, "score", cells[7]) if has_scores else 0.0
        if key not in excluded:
            frames.append(key)
            boxes.append(box)
            actions.append(action)
            scores.append(score)
    return AvaRows(
        tuple(frames),
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
        np.asarray(actions, dtype=np.int64),
        np.asarray(scores, dtype=np.float64),
    )


def read_exclusions(path: Path) -> frozenset[tuple[str, int]]:
    """Read a file of frames to exclude from evaluation, `video, timestamp`. Raises ManifestError."""
    return frozenset(
        (cells[0], int(_parse_number(f"{path}:{line}", "timestamp", cells[1])))
        for line, cells in _iterate_rows(path, 2)
    )


def timestamp(time: float) -> str:
    """Format a time like AVA: whole seconds with four digits, others to the microsecond."""
    return f"{time:04.0f}" if float(time).is_integer() else f"{time:.6f}".rstrip("0")


def result_lines(
    videos: Iterable[str], times: Iterable[float], boxes: NDArray[Any], actions: Iterable[int], scores: Iterable[float]
) -> Iterator[str]:
    """Format the lines of a results file: corners clipped to 0..1, five digits; `actions` are ids from 1."""
    for video, time, box, action, score in zip(
        videos, times, np.asarray(boxes).clip(0, 1).tolist(), actions, scores, strict=True
    ):
        corners = ",".join(f"{value:.5f}" for value in box)
        yield f"{video},{timestamp(time)},{corners},{action},{score:.5f}"
