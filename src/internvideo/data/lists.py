"""Read raw rows of manifests: JSONL, list files, csv files with a header, folders.

Nothing is checked here beyond the syntax; `manifest.py` validates the rows.

List files (Kinetics, VideoMAE): `path label` with a space, tab or comma between; the label is a number, or a name where
the path ends in a video extension; paths may contain spaces and commas; the label may be left out; `path 0 -1` (the
VideoMAE pre-training lists) is a whole video without label. `folder frames label` (VideoMAE, TSN) is a folder of that
many frames (`frame_folder.py`). Times behind a label need a csv header and are refused.

Csv files: the header names at least `path`; `id`, `label`, `split`, `group`, `start` and `end` (s), `caption`,
`caption2`, ..., `question`, `answer`, `question2`, ... (`csv_columns.py`); every other column becomes an attribute and
is reported.

Folders: `CLASS/**/video`, `SPLIT/CLASS/**/video` (SPLIT is train, val, valid, validation or test), or videos only; a
folder of frames is a video. A class is named as its folder is, also where that looks like a number.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from internvideo import untrusted
from internvideo.data.csv_columns import CsvColumns, read_columns
from internvideo.errors import ManifestError, VideoError, shown
from internvideo.video.frame_folder import frame_names, is_frame_folder

RawRow = tuple[int, str | dict[str, Any]]  # line number and a JSON text or the fields
VIDEO_EXTENSIONS = frozenset((
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".ts", ".mts",
    ".m2ts", ".vob", ".asf", ".gif",
))  # fmt: skip
FOLDER_MANIFESTS = ("manifest.jsonl", "index.jsonl", "manifest.csv", "index.csv")
FILE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".list", ".lst", "")
SPLIT_FOLDERS = frozenset(("train", "val", "valid", "validation", "test"))

SPLIT_LIKE_NAMES = SPLIT_FOLDERS | frozenset(("training", "testing", "dev", "eval", "evaluation"))
"""Folder names that look like splits."""

_EXTENSION = "|".join(sorted((extension[1:] for extension in VIDEO_EXTENSIONS), key=len, reverse=True))
_PATH_ONLY = re.compile(rf"^(?P<path>.+\.(?:{_EXTENSION}))$", re.IGNORECASE)
_PATH_AND_INDEX = re.compile(r"^(?P<path>.+?)(?:\s*,\s*|\s+)(?P<label>[+-]?\d+)$")
_TWO_NUMBERS = re.compile(
    r"(?:^|[\s,])\s*\d+(?:\.\d+)?\s*[\s,]\s*\d+(?:\.\d+)?(?:[\s,].*)?$"
)  # two numbers after a name
_PATH_AND_NAME = re.compile(rf"^(?P<path>.+?\.(?:{_EXTENSION}))(?:\s*,\s*|\s+)(?P<label>.+)$", re.IGNORECASE)


_SURROGATE = re.compile("[\ud800-\udfff]")
"""Surrogates: Python decodes the bytes of a file name that are not UTF-8 to them."""


@dataclass
class Listing:
    """Lazily read rows; `notes` is complete after all rows were read.

    With `untyped` all labels are text, so that "7" may be the class index 7.
    """

    rows: Iterable[RawRow]
    untyped: bool = False
    notes: list[str] = field(default_factory=list)


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark. Raises ManifestError: missing, a folder, or not UTF-8."""
    with _open(path) as stream:
        try:
            return "".join(untrusted.read_lines(stream))
        except ValueError:
            raise _not_text_error(path) from None


def read_file(source: Path, *, path_column: str = "path", label_column: str = "label") -> Listing:
    """Read the rows of a manifest file of any of the three kinds.

    Raises ManifestError: the file is missing, empty, of another format, or has a malformed line.
    """
    suffix = source.suffix.lower()
    if source.exists() and suffix not in FILE_SUFFIXES:
        kind = "a video" if suffix in VIDEO_EXTENSIONS else f"a {suffix} file"
        expected = "jsonl, csv with a header, a list of 'path label', parquet, arrow, or a folder of videos"
        raise ManifestError(source, f"{kind}, not a manifest", expected)
    head = _first_line(source)
    if suffix in (".jsonl", ".ndjson") or head.startswith("{"):
        reject_columns(source, path_column, label_column)
        return Listing(_json_rows(source))
    delimiter = next((mark for mark in "\t;" if mark in head), ",")
    columns = header_cells(source, head, delimiter)
    listing = Listing((), untyped=True)
    if path_column in columns:
        listing.rows = _csv_rows(source, delimiter, path_column, label_column, listing.notes)
        return listing
    if path_column != "path" or label_column != "label":
        missing = path_column if path_column != "path" else label_column
        raise ManifestError(f"{source}:1", f"no column '{missing}'", f"the columns {', '.join(columns)}")
    listing.rows = _list_rows(source, listing.notes)
    return listing


def reject_columns(source: Path, path_column: str, label_column: str) -> None:
    """Raise ManifestError if the caller names columns, although the source (a folder or JSONL) has none."""
    for column, default in ((path_column, "path"), (label_column, "label")):
        if column != default:
            kind = "a folder" if source.is_dir() else "JSONL"
            raise ManifestError(source, f"{kind} has no column '{column}'", f"'{default}'; only csv files have columns")


def read_folder(folder: Path) -> Listing:
    """List a folder of videos; its subfolders are classes, or splits that contain the class folders.

    Raises ManifestError: no video in it, or videos both beside and inside the class folders.
    """
    try:
        found = _find_videos(folder)
    except OSError as error:
        raise ManifestError(error.filename or folder, f"cannot be read: {error.strerror or error}") from None
    non_utf8 = {video for video, _, _ in found if _SURROGATE.search(str(video.relative_to(folder)))}
    found = [entry for entry in found if entry[0] not in non_utf8]
    if not found and not non_utf8:
        raise ManifestError(folder, "no video in this folder", "files ending in " + " ".join(sorted(VIDEO_EXTENSIONS)))
    labeled = sum(label is not None for _, _, label in found)
    if 0 < labeled < len(found):
        example = next(video for video, _, label in found if label is None)
        raise ManifestError(folder, f"{example.name} lies beside the class folders", "every video in a class folder")
    rows: list[RawRow] = []
    for row_number, (video, split_name, label) in enumerate(found, start=1):
        name = video.relative_to(folder).as_posix()
        rows.append((row_number, {"id": name, "path": name, "split": split_name, "label": label}))
    listing = Listing(rows)
    listing.notes += _folder_layout_notes(folder, found)
    if non_utf8:
        example_name = shown(min(non_utf8).name)
        listing.notes.append(f"{len(non_utf8)} videos left out, their names are not UTF-8, such as {example_name}")
    if note := skipped_files_note(_other_files(folder, {os.fspath(video) for video, _, _ in found})):
        listing.notes.append(note)
    return listing


def skipped_files_note(names: Iterable[str]) -> str:
    """Return a message that counts, by suffix, the files of a folder that are no videos; "" where there are none."""
    others = [name for name in names if not name.startswith(".")]
    suffixes = Counter(os.path.splitext(name)[1].lower() or "none" for name in others)
    suffixes = Counter({suffix: count for suffix, count in suffixes.items() if suffix not in VIDEO_EXTENSIONS})
    if not suffixes:
        return ""
    examples = ", ".join(f"{shown(suffix)} ({count})" for suffix, count in suffixes.most_common(4))
    more = ", ..." if len(suffixes) > 4 else ""
    return f"{suffixes.total()} files skipped, their endings are not those of videos: {examples}{more}"


def _find_videos(folder: Path) -> list[tuple[Path, str | None, str | None]]:
    """Return path, split and class of every video under the folder."""
    videos_in_root, folders = _videos_and_folders(folder)
    split_folders = [entry for entry in folders if entry.name.lower() in SPLIT_FOLDERS]
    videos_found: list[tuple[Path, str | None, str | None]] = [(video, None, None) for video in videos_in_root]
    if folders and len(split_folders) == len(folders):
        for split in folders:
            videos, classes = _videos_and_folders(split)
            videos_found += [(video, split.name, None) for video in videos]
            for entry in classes:
                videos_found += [(video, split.name, entry.name) for video in _videos_under(entry)]
    else:
        for entry in folders:
            videos_found += [(video, None, entry.name) for video in _videos_under(entry)]
    return videos_found


def _folder_layout_notes(folder: Path, found: Sequence[tuple[Path, str | None, str | None]]) -> Iterator[str]:
    """Warn of ambiguous folder layouts: splits taken for classes, classes without a video."""
    classes = {label for _, _, label in found if label is not None}
    divided = any(split is not None for _, split, _ in found)
    splits = [] if divided else sorted(name for name in classes if name.lower() in SPLIT_LIKE_NAMES)
    if splits:
        listed = ", ".join(f"'{shown(name)}'" for name in splits)
        yield f"folders named like splits are classes here: {listed}; splits are {', '.join(sorted(SPLIT_FOLDERS))}"
    inner = {
        video.parent.relative_to(folder).as_posix()
        for video, split, label in found
        if label is not None and video.parent != (folder / split if split else folder) / label
    }
    if deep := sorted(inner) if not splits else []:
        yield f"{len(deep)} folders are inside a class folder and belong to its class, such as '{shown(deep[0])}'"
    parents = [split for split in folder.iterdir() if split.is_dir()] if divided else [folder]
    subfolders = {entry.name for parent in parents for entry in parent.iterdir() if entry.is_dir()}
    empty = sorted(name for name in subfolders - classes if not name.startswith("."))
    if classes and empty:
        yield f"{len(empty)} folders without a video are no classes, such as '{shown(empty[0])}'"


def holds_frames(folder: str, names: Sequence[str]) -> bool:
    """Return whether a folder with files of these names is a video: numbered images without a video file."""
    suffixes = {os.path.splitext(name)[1].lower() for name in names}
    return not suffixes & VIDEO_EXTENSIONS and is_frame_folder(folder, names)


def non_frame_names(folder: str, names: Sequence[str]) -> list[str]:
    """Return the names of files in a folder of frames that are no frames."""
    frames = set(frame_names(folder, names)[0])
    return [name for name in names if name not in frames]


def _other_files(folder: Path, videos: Collection[str]) -> Iterator[str]:
    for path, _, names in os.walk(folder):
        yield from non_frame_names(path, names) if path in videos else names


def _videos_and_folders(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the videos of a folder, and its subfolders that are no videos."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    frames = {entry for entry in folders if holds_frames(os.fspath(entry), os.listdir(entry))}
    videos = [entry for entry in entries if entry in frames or _is_video(entry)]
    return videos, [entry for entry in folders if entry not in frames]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _videos_under(folder: Path) -> list[Path]:
    videos = []
    for path, folders, names in os.walk(folder):
        if holds_frames(path, names):
            videos.append(Path(path))
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        videos += [Path(path, name) for name in names if _is_video(Path(path, name))]
    return sorted(videos)


def _open(path: Path) -> TextIO:
    if path.is_dir():
        raise ManifestError(path, "a folder", "a file")
    try:
        return untrusted.open_text(path)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
        raise ManifestError(path, reason, "an existing file or folder") from None


def _not_text_error(path: Path) -> ManifestError:
    return ManifestError(path, "not a UTF-8 text", "jsonl, csv or a list, in UTF-8", "save it again as UTF-8")


def _lines(source: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered non-blank lines; any line ending."""
    with _open(source) as stream:
        try:
            for number, line in enumerate(untrusted.read_lines(stream), start=1):
                if text := line.strip():
                    yield number, text
        except ValueError:
            raise _not_text_error(source) from None


def _first_line(source: Path) -> str:
    _, line = next(_lines(source), (0, ""))
    if not line:
        raise ManifestError(source, "an empty file", "at least one row")
    return line


def _json_rows(source: Path) -> Iterator[RawRow]:
    for number, line in _lines(source):
        if number == 1 and line.startswith("["):
            raise ManifestError(f"{source}:1", "a JSON array", "JSONL: one JSON object per line")
        yield number, line


def _list_rows(source: Path, notes: list[str]) -> Iterator[RawRow]:
    mismatches: list[str] = []
    label: str | None
    for number, line in _lines(source):
        if folder := _parse_frames_line(source, line):
            path, label, declared = folder
            num_frames = _count_frames(source.parent / path)
            if num_frames not in (int(declared), None):
                mismatches.append(f"{path} ({num_frames}, not {declared})")
        else:
            path, label = _parse_list_line(source, number, line)
        yield number, {"id": path, "path": path, "label": label}
    if mismatches:
        notes.append(
            f"{len(mismatches)} folders have another number of frames than in the list, such as {mismatches[0]}"
        )


def _parse_frames_line(source: Path, line: str) -> tuple[str, str, str] | None:
    """Parse a line `folder frames label` to path, label and number of frames; None unless the folder exists."""
    last = _PATH_AND_INDEX.match(line)
    inner = _PATH_AND_INDEX.match(last["path"]) if last else None
    if last is None or inner is None or _PATH_ONLY.match(inner["path"]) or not inner["label"].isdecimal():
        return None
    path, label = _strip_quotes(inner["path"]), last["label"].removeprefix("+")
    pretraining = label == "-1" and inner["label"] == "0"
    return None if pretraining or not (source.parent / path).is_dir() else (path, label, inner["label"])


def _count_frames(folder: Path) -> int | None:
    """Count the frames of a folder; None if it is no valid video, which is reported when it is opened."""
    try:
        return len(frame_names(os.fspath(folder), os.listdir(folder))[0])
    except (OSError, VideoError):
        return None


def _parse_list_line(source: Path, number: int, line: str) -> tuple[str, str | None]:
    where = f"{source}:{number}"
    if match := _PATH_ONLY.match(line):
        return _strip_quotes(match["path"]), None
    if match := _PATH_AND_INDEX.match(line):
        path, label = match["path"], match["label"]
        inner = _PATH_AND_INDEX.match(path)
        if inner and not _PATH_ONLY.match(path):
            if label == "-1" and inner["label"] == "0":  # VideoMAE pre-training list: start 0, all frames
                return _strip_quotes(inner["path"]), None
            if _PATH_ONLY.match(inner["path"]):
                raise ManifestError(where, f"two numbers after {inner['path']}", "'path label', or 'path 0 -1'")
        if _PATH_ONLY.match(path) or not _PATH_AND_NAME.match(path):  # else a name that ends in a number
            return _strip_quotes(path), label.removeprefix("+")
    if match := _PATH_AND_NAME.match(line):
        if _TWO_NUMBERS.search(match["label"]) and match["label"][0] not in "\"'":
            found = f"'{match['label']}' after {match['path']}"
            raise ManifestError(where, found, "only a label", "give times in a csv file: path,label,start,end")
        return _strip_quotes(match["path"]), _strip_quotes(match["label"])
    shown = line if len(line) <= 80 else line[:77] + "..."
    expected = "'path label' with a space or a comma, or a csv header with a column 'path' in line 1"
    raise ManifestError(where, f"'{shown}'", expected)


def _strip_quotes(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text


def csv_cells(
    path: Path, lines: Iterable[str], delimiter: str, *, quoted: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and stripped cells of the csv rows that are not blank. Raises ManifestError: not csv."""
    reader = untrusted.CsvReader(lines, delimiter, quoted=quoted)
    try:
        for row in reader:
            if any(cells := [cell.strip() for cell in row]):
                yield reader.line_num, cells
    except csv.Error as error:
        raise ManifestError(f"{path}:{reader.line_num}", f"not csv ({error})") from None


def header_cells(path: Path, line: str, delimiter: str = ",") -> list[str]:
    """Return the stripped cells of the first line of a file. Raises ManifestError: not csv."""
    try:
        return [cell.strip() for cell in next(untrusted.CsvReader([line], delimiter, strict=False), [])]
    except csv.Error as error:
        raise ManifestError(f"{path}:1", f"not csv ({error})") from None


def _csv_rows(source: Path, delimiter: str, path_column: str, label_column: str, notes: list[str]) -> Iterator[RawRow]:
    without_path = 0
    with _open(source) as stream:
        columns: CsvColumns | None = None
        try:
            for number, cells in csv_cells(source, untrusted.read_lines(stream), delimiter):
                where = f"{source}:{number}"
                if columns is None:
                    columns = read_columns(where, cells, path_column, label_column)
                    continue
                if len(cells) != len(columns.names):
                    raise ManifestError(where, f"{len(cells)} cells", f"{len(columns.names)}, as the header has")
                values = dict(zip(columns.names, cells, strict=True))
                if values[path_column]:
                    yield number, columns.fields(values, where)
                else:
                    without_path += 1
        except ValueError:
            raise _not_text_error(source) from None
    if without_path:
        notes.append(f"{without_path} rows without {path_column} left out")
    notes += columns.notes() if columns else []
