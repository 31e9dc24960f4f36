"""Read and write a folder of features: ID.npy for each video and one index of all of them.

    FOLDER/ID.npy        float32 (T, C), one row per window; a / in an ID makes a folder
    FOLDER/index.json    "protocol" (provenance of the features), "database": ID -> subset, duration, fps, frame ...
    FOLDER/classes.txt   class names, where the videos came with actions
    FOLDER/.work/        state of a run for resuming: a record of every finished video, leases of running processes

`database` is the annotation format of ActivityNet with the keys of ActionFormer (`fps`) and OpenTAD (`frame`), so both
take FOLDER as their feature folder, index.json as their annotation file and classes.txt as their class map.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo import untrusted
from internvideo.data.manifest import read_manifest
from internvideo.data.sample import Segment
from internvideo.errors import RecipeError, RunError, VideoError, unwritable
from internvideo.features.vector_files import check_same_settings
from internvideo.features.video_files import (
    MAX_NAME_BYTES,
    VideoFile,
    find_videos,
    is_manifest,
    unique_file_names,
    video_of_row,
)
from internvideo.storage import atomic_path, write_text
from internvideo.terminal import LOGGER

INDEX = "index.json"
CLASSES = "classes.txt"
WORK = ".work"
END_TOLERANCE = 1.0
"""Seconds by which an action may end after its video before it is told."""
RESERVED = frozenset({"index", "index.json", "classes", "protocol"})  # files of the folder itself, or of .work


@dataclass(frozen=True)
class Item:
    """A video whose features are to be extracted.

    Attributes:
        id: name of the feature file. video: the file, or a span of it.
        subset: split of the video, "" if unknown. segments: labeled actions, seconds from the start of the video file.
    """

    id: str
    video: VideoFile
    subset: str = ""
    segments: tuple[Segment, ...] = ()


def find_items(inputs: Iterable[str | Path], *, recursive: bool = False) -> tuple[list[Item], tuple[str, ...]]:
    """Return the videos and class names of files, folders and manifests.

    A video of a manifest has the id of its row. Every other video has the name of its file, without the extension if no
    other file of the folder has that name. Equal names are prefixed with the names of their folders.

    Raises:
        VideoError, ManifestError: as `find_videos`. RecipeError: manifests with different classes, or an id that
        cannot be a file name.
    """
    items: list[Item] = []
    classes: tuple[str, ...] = ()
    for given in inputs:
        if not is_manifest(given):
            items += [Item("", video) for video in find_videos([given], recursive=recursive)]
            continue
        manifest = read_manifest(given).with_notes_logged()
        if classes and manifest.classes and classes != manifest.classes:
            raise RecipeError(given, "has other classes than the manifest before it", "manifests of the same classes")
        classes = classes or manifest.classes
        for row in manifest.rows:
            # In a list of paths the id is the path; an absolute path cannot name a file in this folder.
            name = "" if row.id == row.path and not _is_valid_id(row.id) else _validate_id(row.id)
            items.append(Item(name, video_of_row(manifest, row), row.split or "", row.segments))
    if not items:
        raise VideoError("videos", "none given", "files, folders or manifests")
    return _assign_ids(items), classes


def _is_valid_id(name: str) -> bool:
    """Return whether NAME.npy can be a file below the folder; a / makes subfolders, which feature readers follow."""
    parts = name.split("/")
    plain = all(part and not part.startswith(".") and len(os.fsencode(part)) <= MAX_NAME_BYTES for part in parts)
    return plain and name not in RESERVED and "\\" not in name and "\0" not in name


def _validate_id(name: str) -> str:
    if not _is_valid_id(name):
        expected = f"a file name of at most {MAX_NAME_BYTES} bytes, other than {', '.join(sorted(RESERVED))}"
        raise RecipeError("id", f"'{name}'", expected, "change the id")
    return name


def _assign_ids(items: list[Item]) -> list[Item]:
    """Drop repeated videos and give each of the others a unique id."""
    by_source: dict[object, Item] = {}
    for item in items:
        by_source.setdefault((item.id, os.path.abspath(item.video.path), item.video.start, item.video.end), item)
    unique = list(by_source.values())
    names = unique_file_names([item.video for item in unique], [item.id for item in unique], RESERVED)
    return [replace(item, id=name) for name, item in zip(names, unique, strict=True)]


@dataclass(frozen=True)
class Record:
    """Outcome of one video; saved as .work/ID.json, whose keys are these names.

    Attributes:
        identity: of the file that was read (`VideoFile.identity`). path: of that file.
        num_vectors, dim: T and C; T is 0 if nothing could be read.
        fps, num_frames, duration: frame rate, number of frames and duration (s) of the frame grid.
        failure: why the video was not read, or not to its end; "" if it was.
        started_at: when the run that wrote this began, in seconds since 1970.
        gaps: (start, end) of spans without a decodable frame, in seconds from the start of the span that was read.
        properties: "interlaced", "pq", "hlg" (`VideoInfo.properties`).
    """

    identity: str
    path: str
    num_vectors: int
    dim: int
    fps: float
    num_frames: int
    duration: float
    failure: str
    started_at: float
    gaps: Sequence[Sequence[float]] = ()
    properties: Sequence[str] = ()


_OLD_RECORD_KEYS = {"vectors": "num_vectors", "width": "dim", "frames": "num_frames", "trouble": "failure"}
_OLD_RECORD_KEYS |= {"at": "started_at", "marks": "properties"}
"""Key of a record of an older version -> attribute of `Record`."""


@dataclass
class FeatureFolder:
    """A folder of features that is being written."""

    root: Path
    classes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Folder of records and leases."""
        return self.root / WORK

    def create_or_resume(self, provenance: Mapping[str, Any], classes: tuple[str, ...], *, overwrite: bool) -> None:
        """Create the folder, or resume it; `overwrite` discards the records of earlier runs.

        Raises:
            RunError: it was created with other settings or another model, or holds .npy files of other programs.
        """
        plain = untrusted.parse_json(json.dumps(provenance))
        previous = untrusted.read_json_object(self.work / "protocol.json")
        if previous is None and self.root.is_dir() and any(self.root.rglob("*.npy")) and not overwrite:
            raise RunError(self.root, "holds .npy files of another program", "a new folder", "choose another output")
        if overwrite:
            shutil.rmtree(self.work, ignore_errors=True)
        elif previous is not None:
            check_same_settings(self.root, previous, plain, ignored=("source", "internvideo"))
        if overwrite or previous is None:
            write_text(self.work / "protocol.json", json.dumps(plain, indent=1) + "\n")
        self.provenance, self.classes = plain, classes

    def feature_path(self, name: str) -> Path:
        """Return the path of the features of a video."""
        return self.root / f"{name}.npy"

    def load_record(self, name: str) -> Record | None:
        """Return the record of a video, None if there is none or its feature file is missing."""
        content = untrusted.read_json_object(self.work / f"{name}.json") or {}
        try:
            record = Record(**{_OLD_RECORD_KEYS.get(key, key): value for key, value in content.items()})
        except TypeError:  # no record, or of another version
            return None
        return None if record.num_vectors and not self.feature_path(name).is_file() else record

    def commit_video(self, name: str, record: Record, raw_file: Path | None) -> None:
        """Write the record of a finished video, and ID.npy from a file of its raw float32 values. Raises RunError."""
        if raw_file is not None:
            shape = (record.num_vectors, record.dim)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            if raw_file.stat().st_size != 4 * record.num_vectors * record.dim:
                raise RunError(raw_file, "was changed by another process", "", "start the same command again")
            target = self.feature_path(name)
            with atomic_path(target) as temporary, temporary.open("wb") as file, raw_file.open("rb") as source:
                np.lib.format.write_array_header_1_0(file, header)
                shutil.copyfileobj(source, file, 1 << 20)
        write_text(self.work / f"{name}.json", json.dumps(vars(record)) + "\n")

    def write_index(self, items: Sequence[Item]) -> None:
        """Write the index of all finished videos of this and earlier runs. Raises RunError."""
        old = untrusted.read_json_object(self.root / INDEX) or {}
        database: dict[str, Any] = dict(old.get("database", {}))
        unreadable: dict[str, Any] = {row["id"]: row for row in old.get("unreadable", [])}
        for item in items:
            record = self.load_record(item.id)
            if record is None:
                continue
            database.pop(item.id, None)
            unreadable.pop(item.id, None)
            if record.num_vectors:
                database[item.id] = self._index_entry(item, record)
            else:
                unreadable[item.id] = {"id": item.id, "path": record.path, "reason": record.failure}
        present = [item for item in items if item.id in database]
        if num_dropped := sum(len(item.segments) - len(database[item.id]["annotations"]) for item in present):
            LOGGER.warning("%s: %d actions outside their video left out; times are seconds", self.root, num_dropped)
        num_cut = sum(
            action.start < database[item.id]["duration"] < action.end - END_TOLERANCE
            for item in present
            if item.video.end is None
            for action in item.segments
        )
        if num_cut:
            what = "%s: %d actions that end more than %g s after their video end there now; times are seconds"
            LOGGER.warning(what, self.root, num_cut, END_TOLERANCE)
        database = {name: entry for name, entry in sorted(database.items()) if self.feature_path(name).is_file()}
        content = {
            "version": "internvideo features 1",
            "protocol": self.provenance,
            "classes": list(self.classes),
            "unreadable": list(unreadable.values()),
            "database": database,
        }
        write_text(self.root / INDEX, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        if self.classes:
            write_text(self.root / CLASSES, "".join(f"{name}\n" for name in self.classes))

    def _index_entry(self, item: Item, record: Record) -> dict[str, Any]:
        annotations = []
        for action in item.segments:
            offset = item.video.start or 0.0
            start, end = (round(min(max(t - offset, 0.0), record.duration), 6) for t in (action.start, action.end))
            if end > start:
                label = {"label": self.classes[action.label], "label_id": action.label}
                annotations.append({**label, "segment": [start, end]})
        entry: dict[str, Any] = {"subset": item.subset, "duration": record.duration, "fps": record.fps}
        entry |= {"frame": record.num_frames, "vectors": record.num_vectors}
        entry |= {name: self.provenance[name] for name in ("stride", "window")}
        entry["path"] = record.path
        if record.failure:
            entry |= {"read": "in part", "reason": record.failure}
        if record.gaps:
            entry["gaps"] = [[round(float(time), 6) for time in gap] for gap in record.gaps]
        if record.properties:
            entry["marks"] = list(record.properties)
        return {**entry, "annotations": annotations}


def append_rows(path: Path, rows: NDArray[np.float32]) -> None:
    """Append rows to a file of raw float32. Raises RunError (a full disk)."""
    try:
        with path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
    except OSError as error:
        raise unwritable(path, error) from error
