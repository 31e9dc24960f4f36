"""A folder of features: ID.npy of every video and one index of them all.

    FOLDER/ID.npy        float32 (T, C), one row a window; a / in an ID makes a folder
    FOLDER/index.json    "protocol" (how they were made) and "database": ID -> subset, duration, fps, frame, annotations
    FOLDER/classes.txt   class names, where the videos came with actions
    FOLDER/.work/        what a run needs to go on: a record of every finished video, claims of running processes

`database` is the annotation format of ActivityNet with what ActionFormer (`fps`) and OpenTAD (`frame`) read besides, so
both take FOLDER as their feature folder, index.json as their annotation file and classes.txt as their class map.
"""

from __future__ import annotations

import json
import logging
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
from internvideo.errors import RecipeError, RunError, VideoError
from internvideo.features.video_files import LONGEST, VideoFile, file_names, find_videos, is_manifest
from internvideo.storage import atomic_path, write_text

INDEX = "index.json"
CLASSES = "classes.txt"
WORK = ".work"
RESERVED = frozenset({"index", "index.json", "classes", "protocol"})  # files of the folder itself, or of .work


@dataclass(frozen=True)
class Item:
    """A video to read.

    Attributes:
        id: name of its file of features. video: the file, or a piece of it.
        subset: its split, "" where none is known. segments: its actions, s from the start of the video file.
    """

    id: str
    video: VideoFile
    subset: str = ""
    segments: tuple[Segment, ...] = ()


def find_items(inputs: Iterable[str | Path], *, recursive: bool = False) -> tuple[list[Item], tuple[str, ...]]:
    """Videos and class names meant by files, folders and manifests.

    A video of a manifest has the id of its row, another one the name of its file, with the ending where a folder has
    several of that name; where two of these are equal, the names of their folders come in front.

    Raises:
        VideoError, ManifestError: as `find_videos`. RecipeError: manifests with other classes, an id that is no name.
    """
    items: list[Item] = []
    classes: tuple[str, ...] = ()
    for given in inputs:
        if not is_manifest(given):
            items += [Item("", video) for video in find_videos([given], recursive=recursive)]
            continue
        manifest = read_manifest(given).told()
        if classes and manifest.classes and classes != manifest.classes:
            raise RecipeError(given, "has other classes than the manifest before it", "manifests of the same classes")
        classes = classes or manifest.classes
        for row in manifest.rows:
            start, end = row.span or (None, None)
            video = VideoFile(str(manifest.video_path(row)), start, end, row.frame_rate)
            # A list has no ids but paths, and one from the root of the disk is no name below this folder.
            name = "" if row.id == row.path and not _is_name(row.id) else _checked(row.id)
            items.append(Item(name, video, row.split or "", row.segments))
    if not items:
        raise VideoError("videos", "none given", "files, folders or manifests")
    return _named(items), classes


def _is_name(name: str) -> bool:
    """Whether NAME.npy is a file below a folder; a / makes folders in it, where the readers of features look too."""
    parts = name.split("/")
    plain = all(part and not part.startswith(".") and len(os.fsencode(part)) <= LONGEST for part in parts)
    return plain and name not in RESERVED and "\\" not in name and "\0" not in name


def _checked(name: str) -> str:
    if not _is_name(name):
        raise RecipeError(
            "id", f"'{name}'", f"a file name of at most {LONGEST} bytes, not of the index", "change the id"
        )
    return name


def _named(items: list[Item]) -> list[Item]:
    """Every video once, every id once."""
    seen: dict[object, Item] = {}
    for item in items:
        seen.setdefault((item.id, os.path.abspath(item.video.path), item.video.start, item.video.end), item)
    found = list(seen.values())
    names = file_names([item.video for item in found], [item.id for item in found], RESERVED)
    return [replace(item, id=name) for name, item in zip(names, found, strict=True)]


@dataclass(frozen=True)
class Record:
    """What became of one video; the file .work/ID.json.

    Attributes:
        identity: of the file that was read (`VideoFile.identity`). path: of it.
        vectors, width: T and C; 0 vectors where nothing could be read.
        fps, frames, duration: of the grid; s.
        trouble: why nothing, or nothing more, could be read; "" when it is whole.
        at: when the process that wrote it was started, s since 1970.
        gaps: from and to (s, of the piece that was read) where nothing sound is shown.
        marks: "interlaced", "pq", "hlg" (`VideoInfo.marks`).
    """

    identity: str
    path: str
    vectors: int
    width: int
    fps: float
    frames: int
    duration: float
    trouble: str
    at: float
    gaps: Sequence[Sequence[float]] = ()
    marks: Sequence[str] = ()


@dataclass
class FeatureFolder:
    """The folder while it is being filled.

    Args:
        root: the folder.
    """

    root: Path
    classes: tuple[str, ...] = ()
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Records and claims."""
        return self.root / WORK

    def begin(self, protocol: Mapping[str, Any], classes: tuple[str, ...], *, fresh: bool) -> None:
        """Make the folder, or go on with it.

        Raises:
            RunError: it was begun with other settings or another model, or holds files that are not ours.
        """
        plain = untrusted.parse_json(json.dumps(protocol))
        loose = ("source", "internvideo")
        known = self._read(self.work / "protocol.json")
        if known is None and self.root.is_dir() and any(self.root.rglob("*.npy")) and not fresh:
            raise RunError(self.root, "holds .npy files of others", "a new folder", "choose another output")
        if fresh:
            shutil.rmtree(self.work, ignore_errors=True)
        elif known is not None:
            names = [n for n in {**known, **plain} if n not in loose and known.get(n) != plain.get(n)]
            if names:
                was, now = (json.dumps(part.get(names[0]))[:60] for part in (known, plain))
                raise RunError(
                    self.root,
                    f"was begun with another {names[0]}: {was}, now {now}",
                    "",
                    "choose another output, or add --fresh to begin anew",
                )
        if fresh or known is None:
            write_text(self.work / "protocol.json", json.dumps(plain, indent=1) + "\n")
        self.protocol, self.classes = plain, classes

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        try:
            found = untrusted.read_json(path)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def file(self, name: str) -> Path:
        """Where the features of a video lie."""
        return self.root / f"{name}.npy"

    def record(self, name: str) -> Record | None:
        """What became of a video, None where that is not known or its features are gone."""
        found = self._read(self.work / f"{name}.json")
        try:
            record = None if found is None else Record(**found)
        except TypeError:
            return None
        if record is not None and record.vectors and not self.file(name).is_file():
            return None
        return record

    def keep(self, name: str, record: Record, rows: Path | None) -> None:
        """Finish a video: its rows, float32 one behind the other in a file, become ID.npy. Raises RunError."""
        if rows is not None:
            shape = (record.vectors, record.width)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            if rows.stat().st_size != 4 * record.vectors * record.width:
                raise RunError(rows, "was changed by another process", "", "start the same command again")
            with atomic_path(self.file(name)) as temporary, temporary.open("wb") as file, rows.open("rb") as source:
                np.lib.format.write_array_header_1_0(file, header)
                shutil.copyfileobj(source, file, 1 << 20)
        write_text(self.work / f"{name}.json", json.dumps(vars(record)) + "\n")

    def write_index(self, items: Sequence[Item]) -> None:
        """The index of all finished videos of this and of earlier runs. Raises RunError."""
        old = self._read(self.root / INDEX) or {}
        database: dict[str, Any] = dict(old.get("database", {}))
        unreadable: dict[str, Any] = {row["id"]: row for row in old.get("unreadable", [])}
        for item in items:
            record = self.record(item.id)
            if record is None:
                continue
            database.pop(item.id, None)
            unreadable.pop(item.id, None)
            if record.vectors:
                database[item.id] = self._entry(item, record)
            else:
                unreadable[item.id] = {"id": item.id, "path": record.path, "reason": record.trouble}
        lost = sum(len(item.segments) - len(database[item.id]["annotations"]) for item in items if item.id in database)
        if lost:
            logging.getLogger("internvideo").warning("%s: %d actions outside their video left out", self.root, lost)
        database = {name: entry for name, entry in sorted(database.items()) if self.file(name).is_file()}
        content = {
            "version": "internvideo features 1",
            "protocol": self.protocol,
            "classes": list(self.classes),
            "unreadable": list(unreadable.values()),
            "database": database,
        }
        write_text(self.root / INDEX, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        if self.classes:
            write_text(self.root / CLASSES, "".join(f"{name}\n" for name in self.classes))

    def _entry(self, item: Item, record: Record) -> dict[str, Any]:
        annotations = []
        for part in item.segments:
            begin = item.video.start or 0.0
            start, end = (round(min(max(t - begin, 0.0), record.duration), 6) for t in (part.start, part.end))
            if end > start:
                label = {"label": self.classes[part.label], "label_id": part.label}
                annotations.append({**label, "segment": [start, end]})
        return {
            "subset": item.subset,
            "duration": record.duration,
            "fps": record.fps,
            "frame": record.frames,
            "vectors": record.vectors,
            "stride": self.protocol["stride"],
            "window": self.protocol["window"],
            "path": record.path,
            **({"read": "in part", "reason": record.trouble} if record.trouble else {}),
            **({"gaps": [[round(float(time), 6) for time in gap] for gap in record.gaps]} if record.gaps else {}),
            **({"marks": list(record.marks)} if record.marks else {}),
            "annotations": annotations,
        }


def append_rows(path: Path, rows: NDArray[np.float32]) -> None:
    """Add rows to a file of bare numbers. Raises RunError (a full disk)."""
    try:
        with path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
    except OSError as error:
        raise RunError(path, f"cannot be written: {error.strerror or error}", "", "free space, then resume") from error
