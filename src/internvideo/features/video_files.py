"""Resolve files, folders and manifests of the command line to a list of videos."""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from internvideo.data.lists import FILE_SUFFIXES, VIDEO_EXTENSIONS, holds_frames, non_frame_names, skipped_files_note
from internvideo.data.manifest import Manifest, Sample, read_manifest
from internvideo.data.preprocessing import Span
from internvideo.data.tables.reading import SUFFIXES
from internvideo.errors import RecipeError, VideoError, shown
from internvideo.features.remote_files import list_videos, url_of, url_or_path, version_key
from internvideo.terminal import LOGGER
from internvideo.video.cache import stamp_of
from internvideo.video.frame_folder import resolve_rate

STDIN = "-"
"""Name of standard input."""

MAX_NAME_BYTES = 200
"""Maximum bytes of a file name, which leaves room for suffixes (file systems allow 255)."""
MANIFEST_SUFFIXES = frozenset(suffix for suffix in FILE_SUFFIXES if suffix) | frozenset(SUFFIXES)


@dataclass(frozen=True)
class VideoFile:
    """A video file or folder of frames, or a span of one (a row of a manifest).

    Attributes:
        path: as given; for a row, joined to the folder of the manifest.
        start, end: seconds, None for the ends of the video. fps: frames per second of a folder of frames.
    """

    path: str
    start: float | None = None
    end: float | None = None
    fps: float | None = None

    @property
    def source(self) -> str | Span:
        """The path or span that `Preprocessing.read` takes."""
        if self.start is None or self.end is None:
            return self.path if self.fps is None else Span(self.path, 0.0, math.inf, self.fps)
        return Span(self.path, self.start, self.end, self.fps)

    def identity(self) -> str:
        """Hash path, size and modification time of the file with the span: 32 hex digits. VideoError without a file."""
        location = url_of(self.path) or os.path.realpath(self.path)
        content = f"{location}|{file_state(self.path, self.fps)}|{self.start}|{self.end}"
        return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def video_of_row(manifest: Manifest, row: Sample) -> VideoFile:
    """Return the video, or span of one, of a row."""
    start, end = row.span or (None, None)
    return VideoFile(row.path if "://" in row.path else str(manifest.video_path(row)), start, end, row.frame_rate)


def file_state(path: str, fps: float | None) -> str:
    """Return size and modification time of a file, or the state and rate of a folder of frames. Raises VideoError."""
    if url := url_of(path):
        return version_key(url)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(path, f"cannot be opened: {reason}") from error
    if not stat.S_ISDIR(status.st_mode):
        return f"{status.st_size}|{status.st_mtime_ns}"
    stamp = stamp_of(path)
    return f"{stamp and stamp.ends.hex()}|{resolve_rate(fps)}"


def find_videos(inputs: Iterable[str | Path], *, recursive: bool = False) -> list[VideoFile]:
    """Return the videos in the order of the inputs, without duplicates.

    Args:
        inputs: video files, folders (the videos in them), manifests (their rows), globs, URLs that fsspec opens (a
            file, a folder or a glob); "-" reads further inputs from standard input, one per line.
        recursive: search subfolders too.

    Raises:
        VideoError: no such file, or a folder without videos. ManifestError: a manifest that cannot be read.
    """
    videos: dict[tuple[str, float | None, float | None], VideoFile] = {}
    for given in inputs:
        paths = [line for line in sys.stdin.read().splitlines() if line.strip()] if str(given) == STDIN else [given]
        for video in (video for path in paths for video in _resolve(Path(path), recursive)):
            videos.setdefault((url_or_path(video.path), video.start, video.end), video)
    if not videos:
        raise VideoError("videos", "none given", "files, folders or manifests")
    return list(videos.values())


def unique_file_names(
    videos: Sequence[VideoFile], ids: Sequence[str] = (), reserved: Collection[str] = frozenset()
) -> list[str]:
    """Return a unique file name for each video: that of the video file without its extension.

    The extension is kept if several files of a folder differ only by it; start and end are added for several spans of
    a video; names that would still be equal are prefixed with the names of their folders.

    Args:
        videos: without duplicates. ids: names to use for some videos, "" for the others. reserved: names to avoid.

    Raises:
        RecipeError: two names remain equal, such as two ids.
    """
    ids = ids or [""] * len(videos)
    files = [video.path for video, name in zip(videos, ids, strict=True) if not name]
    num_spans, num_files = Counter(files), Counter(os.path.splitext(path)[0] for path in set(files))
    real = cache(os.path.realpath)
    for parents in range(4):
        names = []
        for video, name in zip(videos, ids, strict=True):
            folder, file = os.path.split(video.path)
            parent_names = Path(real(folder)).parts[-parents:] if parents and not name else ()
            stem = os.path.splitext(file)[0]
            base = stem if num_files[os.path.splitext(video.path)[0]] < 2 else file
            span = (f"{video.start:g}-{video.end:g}",) if num_spans[video.path] > 1 and video.start is not None else ()
            names.append(name or _file_name((*parent_names, base, *span), reserved))
        duplicates = [name for name, count in Counter(names).items() if count > 1]
        if not duplicates:
            return names
    raise RecipeError("videos", f"two are called '{min(duplicates)}'", "unique names", "give a manifest with ids")


def _file_name(parts: Iterable[str], reserved: Collection[str]) -> str:
    name = re.sub(r"[/\\\0]", "_", "_".join(part.strip("/") for part in parts)).lstrip(".") or "video"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = f"{os.fsencode(name)[: MAX_NAME_BYTES - 17].decode('utf-8', 'ignore')}_{digest}"
    return f"{name}_" if name in reserved else name


def is_manifest(given: str | Path) -> bool:
    """Return whether an argument of the command line is a manifest."""
    return Path(given).suffix.lower() in MANIFEST_SUFFIXES and not Path(given).is_dir()


def _resolve(given: Path, recursive: bool) -> Iterator[VideoFile]:
    if url := url_of(given):
        yield from map(VideoFile, list_videos(url))
    elif glob.has_magic(str(given)) and not given.exists():
        matches = sorted(glob.glob(str(given), recursive=True))
        if not matches:
            raise VideoError(given, "matches no file or folder")
        for match in matches:
            yield from _resolve(Path(match), recursive)
    elif given.is_dir() and holds_frames(str(given), _names(given)):
        yield VideoFile(str(given))
    elif given.is_dir():
        yield from _videos_in_folder(given, recursive)
    elif is_manifest(given):
        manifest = read_manifest(given).with_notes_logged()
        for row in manifest.rows:
            yield video_of_row(manifest, row)
    elif given.suffix.lower() == ".json" and given.exists():
        expected = f"a video, or a manifest ({' '.join(sorted(MANIFEST_SUFFIXES))})"
        raise VideoError(given, "is a .json file", expected, "annotations of a data set: internvideo prepare --help")
    elif given.exists():
        yield VideoFile(str(given))
    else:
        raise VideoError(given, "no such file or folder")


def _names(folder: str | Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # skipped, as os.walk does
        return []


def _videos_in_folder(folder: Path, recursive: bool) -> list[VideoFile]:
    found: list[VideoFile] = []
    file_names: list[str] = []
    for current, folders, names in os.walk(folder):
        file_names += names
        visible = sorted(name for name in folders if not name.startswith("."))
        contents = {name: _names(os.path.join(current, name)) for name in visible}
        frame_folders = [name for name in visible if holds_frames(os.path.join(current, name), contents[name])]
        for name in frame_folders:
            file_names += non_frame_names(os.path.join(current, name), contents[name])
        folders[:] = [name for name in visible if recursive and name not in frame_folders]  # os.walk enters these
        video_files = [name for name in names if os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS]
        videos = sorted(video_files + frame_folders)
        found += [VideoFile(os.path.join(current, name)) for name in videos if not name.startswith(".")]
    if not found:
        hint = "" if recursive else "add --recursive to search subfolders too"
        expected = "files ending in " + " ".join(sorted(VIDEO_EXTENSIONS))
        raise VideoError(folder, "no video in this folder", expected, hint)
    if note := skipped_files_note(file_names):
        LOGGER.warning("%s: %s", shown(str(folder)), shown(note))
    return found
