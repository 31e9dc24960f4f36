"""Export moments: lists as CSV, JSON or EDL (CMX 3600), and clips as video files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from internvideo.errors import RecipeError, shown
from internvideo.features.remote_files import local_copy
from internvideo.search.finding import Moment
from internvideo.storage import write_text
from internvideo.video.cut import cut

EDL_FPS = 25
"""Frames per second of the time codes of an EDL."""
FORMATS = ("csv", "json", "edl")
COLUMNS = ("path", "start", "end", "score", "p_value", "labels")


def check_list(target: Path) -> None:
    """Raise RecipeError for a list whose name does not end in .csv, .json or .edl."""
    if target.suffix.lstrip(".") not in FORMATS:
        raise RecipeError("export", f"'{target.name}'", "a name that ends in ." + ", .".join(FORMATS))


def write_list(target: Path, moments: Sequence[Moment], title: str = "") -> None:
    """Write moments as a file. Raises RecipeError for another ending, RunError if it cannot be written."""
    check_list(target)
    write_text(target, format_list(target.suffix.lstrip("."), moments, title))


def format_list(kind: str, moments: Sequence[Moment], title: str = "") -> str:
    """Format moments as "csv", "json" or "edl". Raises RecipeError for another one."""
    if kind not in FORMATS:
        raise RecipeError("export", repr(kind), ", ".join(FORMATS))
    if kind == "json":
        return json.dumps([moment.to_json() for moment in moments], ensure_ascii=False, indent=1) + "\n"
    return _csv(moments) if kind == "csv" else _edl(moments, title)


def _csv(moments: Sequence[Moment]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for moment in moments:
        p_value = "" if moment.p_value is None else f"{moment.p_value:.6g}"
        row = [f"{moment.start:.3f}", f"{moment.end:.3f}", f"{moment.score:.6f}", p_value, "; ".join(moment.labels)]
        # A spreadsheet takes a text that begins with one of these for a formula.
        row = [shown(moment.path), *row]
        writer.writerow(["'" + cell if cell[:1] in ("=", "+", "@") else cell for cell in row])
    return text.getvalue()


def _edl(moments: Sequence[Moment], title: str) -> str:
    """An edit decision list (CMX 3600): one event per moment, one behind the other on the record side."""
    lines = [f"TITLE: {_line(title) or 'moments'}", "FCM: NON-DROP FRAME", ""]
    record = 0
    for number, moment in enumerate(moments[:999], 1):
        first, last = (round(seconds * EDL_FPS) for seconds in (moment.start, moment.end))
        last = max(last, first + 1)
        reel = re.sub(r"\W", "", Path(moment.path).stem.upper(), flags=re.ASCII)[:8] or "AX"
        codes = " ".join(_time_code(frame) for frame in (first, last, record, record + last - first))
        lines += [f"{number:03d}  {reel:<8} V     C        {codes}", f"* FROM CLIP NAME: {_line(moment.path)}", ""]
        record += last - first
    return "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(shown(text).split())


def _time_code(frame: int) -> str:
    seconds, frames = divmod(frame, EDL_FPS)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frames:02d}"


def save_clips(moments: Sequence[Moment], folder: Path) -> Iterator[Path]:
    """Write each moment as FOLDER/01_NAME_START-END.mp4; yield the files. Raises VideoError."""
    for number, moment in enumerate(moments, 1):
        stem = re.sub(r"[^\w.-]", "_", os.path.splitext(os.path.basename(moment.path))[0])[:80]
        target = folder / f"{number:02d}_{stem}_{moment.start:.1f}-{moment.end:.1f}.mp4"
        with local_copy(moment.path) as path:
            cut(path, target, moment.start, moment.end)
        yield target
