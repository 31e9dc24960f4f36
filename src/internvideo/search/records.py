"""The database of a collection (SQLite): facts, videos with their windows, labels, filmstrips, unreadable files.

A video and the number of valid rows of its segment are committed in one transaction, so that a reader sees all of a
video or nothing of it (write-ahead logging: readers do not wait for a writer).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from internvideo import untrusted
from internvideo.errors import RunError

FILE = "collection.sqlite"
VERSION = 1
SCHEMA = """
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE segments (id INTEGER PRIMARY KEY, rows INTEGER NOT NULL);
CREATE TABLE videos (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL, start REAL, stop REAL, identity TEXT NOT NULL,
    duration REAL NOT NULL, fps REAL NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    modified REAL NOT NULL, damage TEXT NOT NULL,
    segment INTEGER NOT NULL, first_row INTEGER NOT NULL, count INTEGER NOT NULL, windows BLOB NOT NULL
);
CREATE TABLE unreadable (path BLOB PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE classifiers (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL, classes TEXT NOT NULL);
CREATE TABLE labels (
    video INTEGER NOT NULL REFERENCES videos ON DELETE CASCADE,
    classifier TEXT NOT NULL REFERENCES classifiers ON DELETE CASCADE,
    class_index BLOB NOT NULL, probability BLOB NOT NULL, PRIMARY KEY (video, classifier)
);
CREATE TABLE filmstrips (
    video INTEGER NOT NULL REFERENCES videos ON DELETE CASCADE, time REAL NOT NULL, jpeg BLOB NOT NULL,
    PRIMARY KEY (video, time)
);
"""

ANNOTATIONS = """
CREATE TABLE IF NOT EXISTS annotations (
    video INTEGER NOT NULL REFERENCES videos ON DELETE CASCADE, file BLOB NOT NULL, kind TEXT NOT NULL,
    start REAL NOT NULL, stop REAL NOT NULL, label TEXT NOT NULL, score REAL
);
CREATE INDEX IF NOT EXISTS annotations_of_video ON annotations (video);
"""
"""Made when the first annotation is stored: earlier versions have no such table and read on."""

Windows = NDArray[np.float64]
"""(n, 4): start and end in seconds, scale (seconds of a whole window), norm of the vector before L2 normalization."""


@dataclass(frozen=True)
class Annotation:
    """What a file says of a part of a video.

    Attributes:
        start, end: seconds of the file. label: the class of an action, or a caption.
        score: of a detected action, None for what a person wrote.
    """

    start: float
    end: float
    label: str
    score: float | None = None


AnnotationKind = Literal["action", "caption"]


@dataclass(frozen=True)
class VideoRecord:
    """A video of a collection.

    Attributes:
        id: never given twice. path: absolute. start, stop: of a piece of a file, None for the file's ends.
        identity: hash of path, size and time of the file (`VideoFile.identity`).
        duration: seconds. fps, width, height: of the file. modified: seconds since 1970.
        damage: why it was not read to its end, "" if it was.
        segment, first_row: where its vectors lie. windows: (n, 4), see `Windows`.
    """

    id: int
    path: str
    start: float | None
    stop: float | None
    identity: str
    duration: float
    fps: float
    width: int
    height: int
    modified: float
    damage: str
    segment: int
    first_row: int
    windows: Windows

    @property
    def key(self) -> tuple[str, float | None, float | None]:
        """Path and piece."""
        return self.path, self.start, self.stop


class Records:
    """An open database; one connection for all threads of the process.

    Args:
        folder: of a collection.

    Attributes:
        lock: held while the connection is used.

    Raises:
        RunError: no collection, one of a later version, a damaged file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        if not self.path.is_file():
            raise RunError(folder, "is not a collection", f"a folder with {FILE}", "make one: internvideo index")
        self.lock = threading.RLock()
        with self._errors():
            self._connection = sqlite3.connect(self.path, timeout=30, check_same_thread=False, isolation_level=None)
            # Closed with the last reference to it at the latest: Python 3.13 warns of a connection that nobody closed.
            self._close = weakref.finalize(self, self._connection.close)
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.execute("PRAGMA trusted_schema = OFF")
            self._connection.execute("PRAGMA synchronous = FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            self.close()
            raise RunError(self.path, f"version {version}", str(VERSION), "index again with this version")

    @staticmethod
    def create(folder: Path, facts: Mapping[str, Any]) -> None:
        """Make the database of a new collection with its first facts, under another name until it is whole.

        Raises RunError.
        """
        partial = folder / f"new-{FILE}"
        try:
            for left in folder.glob(f"{partial.name}*"):  # by a maker that was killed
                left.unlink()
            with closing(sqlite3.connect(partial, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION};")
                values = ((key, json.dumps(value)) for key, value in facts.items())
                connection.executemany("INSERT INTO facts VALUES (?, ?)", values)
                connection.execute("COMMIT")
            os.replace(partial, folder / FILE)
        except (sqlite3.Error, OSError) as error:
            raise RunError(folder, f"cannot be written: {error}", "", "free space, or another folder") from error

    def close(self) -> None:
        """Close the connection."""
        self._close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            hint = "free space or wait for the other process, then resume"
            raise RunError(self.path, f"cannot be read or written: {error}", "", hint) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything in the block, or nothing of it. Raises RunError."""
        with self.lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one state in the block, whatever is committed meanwhile."""
        with self.lock, self._errors():
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        with self.lock, self._errors():
            return self._connection.execute(query, tuple(values)).fetchall()

    # -------------------------------------------------------------------------------------------------------- facts

    def revision(self) -> tuple[int, int]:
        """Return numbers that change with every change of another connection, and of this one."""
        with self.lock, self._errors():
            return int(self._rows("PRAGMA data_version")[0][0]), self._connection.total_changes

    def fact(self, key: str, default: Any = None) -> Any:
        """Return a fact as JSON values."""
        rows = self._rows("SELECT value FROM facts WHERE key = ?", [key])
        return untrusted.parse_json(rows[0][0]) if rows else default

    def set_fact(self, key: str, value: Any) -> None:
        """Store a fact; its value is JSON."""
        self._rows("INSERT OR REPLACE INTO facts VALUES (?, ?)", [key, json.dumps(value)])

    # ------------------------------------------------------------------------------------------------------- videos

    def segments(self) -> dict[int, int]:
        """Return segment -> number of valid rows, in order."""
        return dict(self._rows("SELECT id, rows FROM segments ORDER BY id"))

    def set_segment(self, segment: int, num_rows: int) -> None:
        """Set the number of valid rows; 0 forgets the segment."""
        if num_rows:
            self._rows("INSERT OR REPLACE INTO segments VALUES (?, ?)", [segment, num_rows])
        else:
            self._rows("DELETE FROM segments WHERE id = ?", [segment])

    def videos(self) -> list[VideoRecord]:
        """Return all videos in the order of their rows."""
        columns = "id, path, start, stop, identity, duration, fps, width, height, modified, damage, segment, first_row"
        rows = self._rows(f"SELECT {columns}, windows, count FROM videos ORDER BY segment, first_row")
        made = []
        for *values, windows, count in rows:
            array = np.frombuffer(windows, "<f8").reshape(-1, 4)
            if len(array) != count:
                raise RunError(self.path, f"video {values[0]} is damaged", "", "index again")
            values[1] = os.fsdecode(values[1])
            made.append(VideoRecord(**dict(zip(columns.split(", "), values, strict=True)), windows=array))
        return made

    def add_video(self, video: VideoRecord) -> int:
        """Store a video, its id aside; return its id."""
        values = vars(video) | {
            "path": os.fsencode(video.path),
            "windows": np.ascontiguousarray(video.windows, "<f8").tobytes(),
            "count": len(video.windows),
        }
        del values["id"]
        names = ", ".join(values)
        marks = ", ".join("?" for _ in values)
        return int(self._rows(f"INSERT INTO videos ({names}) VALUES ({marks}) RETURNING id", values.values())[0][0])

    def move_video(self, id_: int, segment: int, first_row: int) -> None:
        """Tell where the vectors of a video lie now."""
        self._rows("UPDATE videos SET segment = ?, first_row = ? WHERE id = ?", [segment, first_row, id_])

    def remove_videos(self, ids: Iterable[int]) -> None:
        """Forget videos with their labels and filmstrips."""
        for id_ in ids:
            self._rows("DELETE FROM videos WHERE id = ?", [id_])

    def unreadable(self) -> dict[str, str]:
        """Return path -> reason of the files of the last run that could not be read."""
        return {os.fsdecode(path): reason for path, reason in self._rows("SELECT path, reason FROM unreadable")}

    def set_unreadable(self, failures: Mapping[str, str]) -> None:
        """Replace the list of files that could not be read."""
        self._rows("DELETE FROM unreadable")
        for path, reason in failures.items():
            self._rows("INSERT OR REPLACE INTO unreadable VALUES (?, ?)", [os.fsencode(path), reason])

    # ------------------------------------------------------------------------------ labels, filmstrips, annotations

    def classifiers(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Return name -> (SHA-256, classes)."""
        rows = self._rows("SELECT name, sha256, classes FROM classifiers ORDER BY name")
        return {name: (digest, tuple(untrusted.parse_json(classes))) for name, digest, classes in rows}

    def set_classifier(self, name: str, digest: str, classes: Iterable[str]) -> None:
        """Store a classifier; labels of an earlier one of that name are forgotten."""
        self._rows("DELETE FROM classifiers WHERE name = ?", [name])
        self._rows("INSERT INTO classifiers VALUES (?, ?, ?)", [name, digest, json.dumps(list(classes))])

    def set_labels(self, video: int, classifier: str, class_index: NDArray[Any], probability: NDArray[Any]) -> None:
        """Store the class (n,) and its probability (n,) of every window of a video."""
        blobs = class_index.astype("<i4").tobytes(), probability.astype("<f4").tobytes()
        self._rows("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?)", [video, classifier, *blobs])

    def labels(self, classifier: str) -> dict[int, tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Return video -> (class (n,), probability (n,))."""
        rows = self._rows("SELECT video, class_index, probability FROM labels WHERE classifier = ?", [classifier])
        return {video: (np.frombuffer(index, "<i4"), np.frombuffer(p, "<f4")) for video, index, p in rows}

    def video_labels(self, video: int, classifier: str) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        """Return class (n,) and probability (n,) of the windows of one video; None if it was not classified."""
        query = "SELECT class_index, probability FROM labels WHERE video = ? AND classifier = ?"
        rows = self._rows(query, [video, classifier])
        return (np.frombuffer(rows[0][0], "<i4"), np.frombuffer(rows[0][1], "<f4")) if rows else None

    def set_annotations(self, file: str, rows: Iterable[tuple[int, AnnotationKind, Annotation]]) -> None:
        """Store what a file says of videos: (video, kind, annotation), in place of what it said before."""
        for statement in ANNOTATIONS.split(";")[:-1]:  # not executescript, which would commit
            self._rows(statement)
        name = os.fsencode(file)
        self._rows("DELETE FROM annotations WHERE file = ?", [name])
        with self.lock, self._errors():
            self._connection.executemany(
                "INSERT INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?)",
                ((video, name, kind, one.start, one.end, one.label, one.score) for video, kind, one in rows),
            )

    def annotations(self, kind: AnnotationKind, video: int | None = None) -> list[tuple[int, Annotation]]:
        """Return (video, annotation) of a kind, of one video or of all, in the order of time."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'annotations'"):
            return []
        one = "" if video is None else " AND video = ?"
        query = (
            f"SELECT video, start, stop, label, score FROM annotations WHERE kind = ?{one} ORDER BY video, start, stop"
        )
        rows = self._rows(query, [kind] if video is None else [kind, video])
        return [(id_, Annotation(*values)) for id_, *values in rows]

    def add_filmstrip(self, video: int, pictures: Mapping[float, bytes]) -> None:
        """Store the pictures (JPEG) of a video by their times in seconds."""
        for time, jpeg in pictures.items():
            self._rows("INSERT OR REPLACE INTO filmstrips VALUES (?, ?, ?)", [video, time, jpeg])

    def picture(self, video: int, time: float) -> bytes | None:
        """Return the stored picture (JPEG) of a video nearest to a time; None if it has none."""
        rows = self._rows("SELECT jpeg FROM filmstrips WHERE video = ? ORDER BY abs(time - ?) LIMIT 1", [video, time])
        return rows[0][0] if rows else None
