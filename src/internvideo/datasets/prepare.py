"""Benchmarks made ready: official annotation files and a folder of videos to manifests, one a split.

A manifest names only videos that are there; what is missing or unreadable is told, counted and listed. The fingerprint
of a split is that of its annotations, so it is the same wherever the videos lie.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path

from internvideo.data.lists import VIDEO_EXTENSIONS
from internvideo.data.manifest import Manifest, write_manifest
from internvideo.data.sample import Sample
from internvideo.datasets.annotation_times import compare, moments, shifted
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.catalog import Benchmark, benchmark
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError, VideoError
from internvideo.storage import alone_in, write_text
from internvideo.untrusted_pickle import Machine, RefusedError, Storage
from internvideo.video.frame_folder import IMAGE_SUFFIXES, frame_names, resolve_rate
from internvideo.video.reader import read_video_info

_TRIMMED = re.compile(r"^(?P<video>.+)_(?P<start>\d{6})_(?P<end>\d{6})$")
_OTHER_FILES = IMAGE_SUFFIXES | {".glb"}  # frames of detection, scenes of navigation
MAX_PICKLE_BYTES = 1 << 30
LOOKED_AT = 8
"""Videos of a split that are opened to compare times where not all are."""


@dataclass(frozen=True)
class PreparedSplit:
    """What became of a split.

    Attributes:
        manifest: file name of the manifest, "" where no video was there to write one for.
        rows: of the annotations; counted: the same in the benchmark's unit.
        present, missing, unreadable: videos (files, each once).
        fingerprint: of all rows of the annotations and the class names, wherever videos lie.
        written: rows in the manifest.
    """

    manifest: str
    rows: int
    counted: int
    present: int
    missing: int
    unreadable: int
    fingerprint: str
    written: int


@dataclass
class Prepared:
    """The report of a benchmark: its splits, notes of the reader, differences from the official release."""

    benchmark: str
    classes: int
    splits: dict[str, PreparedSplit] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """A video file, or folder of frames, and the second of the uploaded video that it starts with."""

    path: str
    start: float = 0.0
    end: float = float("inf")
    frames: bool = False


class VideoFolder:
    """The videos of a folder by their names.

    Args:
        folder: everything below it is looked through, once.

    Raises:
        ManifestError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ManifestError(folder, "no such folder", "the folder of the videos")
        self.folder = folder.absolute()
        self._by_path: dict[str, str] = {}
        self._by_stem: defaultdict[str, list[_Found]] = defaultdict(list)
        self._by_download: defaultdict[str, list[_Found]] = defaultdict(list)
        self._parts: defaultdict[str, list[_Found]] = defaultdict(list)
        self._several: dict[str, str] = {}  # file that was taken -> the next that would do
        self._frames: defaultdict[str, list[_Found]] = defaultdict(list)
        self.unfit: dict[str, str] = {}  # folders of pictures that are no video, and why
        for place, folders, names in os.walk(self.folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                self._take(os.path.join(place, name), name)
            self._take_frames(place, names)

    def _take(self, path: str, name: str) -> None:
        stem, extension = os.path.splitext(name)
        if extension.lower() not in VIDEO_EXTENSIONS and extension.lower() not in _OTHER_FILES:
            return
        self._by_path[os.path.relpath(path, self.folder)] = path
        if extension.lower() in _OTHER_FILES:
            return
        self._by_stem[stem].append(_Found(path))
        for other in _downloaded(stem):
            self._by_download[other].append(_Found(path))
        for one in (stem, *_downloaded(stem)):
            if trimmed := _TRIMMED.match(one):
                self._parts[trimmed["video"]].append(_Found(path, float(trimmed["start"]), float(trimmed["end"])))

    def _take_frames(self, place: str, names: Sequence[str]) -> None:
        endings = {os.path.splitext(name)[1].lower() for name in names}
        if endings & VIDEO_EXTENSIONS or not endings & IMAGE_SUFFIXES:
            return
        name = os.path.basename(place)
        try:
            frame_names(place, names)
        except VideoError as error:
            self.unfit[name] = error.found
            return
        self._frames[name].append(_Found(place, frames=True))
        if trimmed := _TRIMMED.match(name):
            start, end = float(trimmed["start"]), float(trimmed["end"])
            self._parts[trimmed["video"]].append(_Found(place, start, end, frames=True))

    def unfit_among(self, missing: Iterable[str]) -> list[str]:
        """A line on the missing videos of which there are folders of pictures, if there are any."""
        unfit = [name for name in map(_stem, missing) if name in self.unfit]
        if not unfit:
            return []
        return [f"{len(unfit)} missing videos are folders of pictures; '{unfit[0]}' {self.unfit[unfit[0]]}"]

    def find(self, names: Iterable[str], seconds: float | None = None, *, parts: bool = True) -> _Found | None:
        """The file of the first name that is there: by path, by name without extension, or a trimmed part of it. A
        folder of frames that is called so will do.

        Names that yt-dlp gives count too: `Title [ID].mkv`, and `ID.mp4.mkv` where it merged formats.

        Args:
            names: best first. seconds: a time that a trimmed part must hold. parts: whether one will do at all.
        """
        tried = [(name, *os.path.split(_without_extension(name))) for name in names]
        for name, _, _ in tried:
            if name in self._by_path:
                return _Found(self._by_path[name])
        for _, folder, stem in tried:
            found = self._by_stem.get(stem) or self._by_download.get(stem) or self._frames.get(stem, [])
            if found:  # of several in different folders the one whose folder is asked for
                near = [one for one in found if os.path.basename(os.path.dirname(one.path)) == os.path.basename(folder)]
                first, *others = near or found
                if others:
                    self._several[first.path] = others[0].path
                return first
        for _, _, stem in tried if parts else ():
            for part in self._parts.get(stem, ()):
                if seconds is None or part.start <= seconds <= part.end:
                    return part
        return None

    def doubts(self) -> list[str]:
        """A line on the videos that were found in several files, of which the first was taken."""
        if not self._several:
            return []
        taken, other = (os.path.relpath(path, self.folder) for path in next(iter(self._several.items())))
        count = len(self._several)
        return [f"{count:,} videos are there in several files, the first is taken, such as '{taken}', not '{other}'"]


def _stem(path: str) -> str:
    return _without_extension(os.path.basename(path))


def _without_extension(name: str) -> str:
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEO_EXTENSIONS else name  # a point may belong to the name


def _downloaded(stem: str) -> list[str]:
    """What yt-dlp was asked for, by the name of what it wrote, without the last extension."""
    inner = _without_extension(stem)
    inner = re.sub(r"\.f\d+$", "", inner) if inner == stem else inner  # one format of several: ID.f137.mp4
    names = [inner] if inner != stem else []
    if marked := re.search(r"\[([^\[\]]+)\]$", inner):
        names.append(marked[1])
    return names


def prepare(
    name: str,
    annotations: Path,
    output: Path,
    *,
    videos: Path | None = None,
    check_videos: bool = False,
    offset: float = 0.0,
    frame_rate: float | None = None,
    workers: int | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Read a benchmark's annotation files, find its videos, write a manifest a split into `output`.

    Beside the manifests lie `prepared.json` (this report), `missing.txt`, `unreadable.txt`, `outside.tsv` (rows whose
    times lie behind the end of their video), vocabularies and, of merges, `dropped.tsv`. Without `videos` the manifests
    hold all rows under the names of the annotations.

    Args:
        name: of `catalog.BENCHMARKS`. annotations: the file or folder. output: made when absent.
        videos: their folder. check_videos: open each video too, and compare its length with the times of the rows
            (else of a few). workers: threads that do so.
        offset: second of what was annotated with which the files begin, of films that were cut.
        frame_rate: frames a second of folders of frames; by default as the benchmark is published, if it is so.
        told: called with lines for a person.

    Raises:
        ManifestError: an unknown benchmark, annotations that cannot be used, no such folder of videos (nor an offset),
            folders of frames whose rate is not known.
        RunError: the output cannot be written.
    """
    entry = benchmark(name)
    if offset and videos is None:
        raise ManifestError("offset", f"{offset:g} s without videos", "the folder of the files that begin then")
    folder = None if videos is None else VideoFolder(videos)
    rates = None if folder is None else _rates(folder, frame_rate)
    source = AnnotationSource(annotations, unpickle=read_pickle, frame_rate=rates)
    made = entry.read(source)
    made.frame_rate = frame_rate or made.frame_rate or resolve_rate(None)
    report = Prepared(name, len(made.classes), notes=made.notes, warnings=entry.differences(made))
    missing: dict[str, None] = {}
    broken: dict[str, str] = {}
    checked: dict[str, _Checked] = {}
    outside: list[tuple[str, ...]] = []
    with alone_in(output):
        for split, rows in made.splits.items():
            located, lost = _locate(rows, made, folder, offset)
            missing |= dict.fromkeys(lost)
            if folder is not None:
                timed = dict.fromkeys(row.path for row in located if moments(row))
                looked_at = [row.path for row in located] if check_videos else list(timed)[:LOOKED_AT]
                _check(looked_at, checked, workers, made.frame_rate)
            opened = {row.path: checked[row.path] for row in located if row.path in checked}
            unreadable = {path: one.reason for path, one in opened.items() if one.reason and check_videos}
            broken |= unreadable
            kept = [row for row in located if row.path not in unreadable]
            late = compare(kept, {path: one.seconds for path, one in opened.items() if not one.reason})
            outside += [(split, name, f"{moment:g}", f"{seconds:.3f}") for name, moment, seconds in late.rows]
            report.warnings += [f"{split}: {late.warning}"] if late.warning else []
            file = f"{split}.jsonl" if kept else ""
            if kept:
                write_manifest(output / file, kept, made.classes)
            else:
                (output / f"{split}.jsonl").unlink(missing_ok=True)  # of an earlier call
            whole = Manifest(tuple(rows), made.classes, output, annotations)
            report.splits[split] = PreparedSplit(
                file, len(rows), entry.count(rows), len({row.path for row in kept}), len(lost), len(unreadable),
                whole.fingerprint, len(kept),
            )  # fmt: skip
            told(_line(split, report.splits[split], entry, folder is not None))
        if folder is not None:
            report.warnings += [*folder.doubts(), *folder.unfit_among(missing)]
        made.lists["outside"] = outside
        _write(output, report, made, list(missing), broken)
    for line in (*report.notes, *(f"warning: {warning}" for warning in report.warnings)):
        told(line)
    return report


def _locate(
    rows: list[Sample], made: Annotations, folder: VideoFolder | None, offset: float
) -> tuple[list[Sample], list[str]]:
    """Rows whose video is there, with its path and their times in it, and the paths of the others."""
    if folder is None:
        return rows, []
    early = 0
    located, lost = [], dict[str, None]()
    for row in rows:
        moment = row.boxes[0].time if row.boxes else None
        # Another part of the same upload is no stand-in for this part, nor a part for the whole that times are told of.
        parts = bool(row.boxes) or not (row.span or row.segments or _TRIMMED.match(Path(row.path).stem))
        found = folder.find((row.path, *made.names.get(row.path, ())), moment, parts=parts)
        if found is None:
            lost[row.path] = None
            continue
        if found.frames and made.frame_rate is None:
            allowed = "--frame-rate, in frames a second"
            raise ManifestError(found.path, "a folder of frames, whose rate is not known", allowed)
        if (moved := shifted(_moved(row, found, made.frame_rate), 0.0 if found.start else offset)) is not None:
            located.append(moved)
        else:
            early += 1
    made.note(early, f"rows before second {offset:g}, with which the files begin, left out")
    return located, list(lost)


def _moved(row: Sample, found: _Found, frame_rate: float | None) -> Sample:
    """The row with its file's path; times count from the start of a trimmed file."""
    changed: dict[str, object] = {"path": found.path}
    if found.frames:
        changed["fps"] = frame_rate
    if found.start and row.boxes:
        changed["boxes"] = tuple(box.model_copy(update={"time": max(box.time - found.start, 0.0)}) for box in row.boxes)
    return row.model_copy(update=changed)


@dataclass(frozen=True)
class _Checked:
    """The reason that a video cannot be read, "" for a good one, and its length, s."""

    reason: str = ""
    seconds: float = float("inf")


def _check(paths: Iterable[str], checked: dict[str, _Checked], workers: int | None, frame_rate: float | None) -> None:
    """Open videos."""
    fresh = [path for path in dict.fromkeys(paths) if path not in checked]
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        checked |= zip(fresh, pool.map(partial(_opened, frame_rate=frame_rate), fresh), strict=True)


def _opened(path: str, frame_rate: float | None) -> _Checked:
    if Path(path).suffix.lower() in _OTHER_FILES:
        return _Checked()
    try:
        return _Checked(seconds=read_video_info(path, fps=frame_rate).duration)
    except VideoError as error:
        return _Checked(error.found)


def _rates(folder: VideoFolder, frame_rate: float | None) -> Callable[[str], float | None]:
    @cache
    def rate(film: str) -> float | None:
        found = folder.find((film,))
        try:
            return None if found is None else read_video_info(found.path, fps=frame_rate).fps
        except VideoError:
            return None

    return rate


def read_pickle(path: Path) -> object:
    """The plain containers of a pickle; nothing of it is run. Raises ManifestError when it holds anything else."""
    try:
        if path.stat().st_size > MAX_PICKLE_BYTES:
            raise ManifestError(path, f"more than {MAX_PICKLE_BYTES >> 30} GiB", "annotations")
        with path.open("rb") as stream:
            return Machine(stream, _no_storage).run()
    except RefusedError as error:
        raise ManifestError(path, str(error.args[0]), "dictionaries, lists, texts and numbers") from None
    except OSError as error:
        raise ManifestError(path, f"cannot be read: {error.strerror or error}", "a pickle") from None


def _no_storage(_: object) -> Storage:
    raise RefusedError("the pickle holds tensors")


def _line(split: str, made: PreparedSplit, entry: Benchmark, looked: bool) -> str:
    videos = f"{made.present:,} videos present, {made.missing:,} missing, {made.unreadable:,} unreadable"
    videos = videos if looked else f"{made.present:,} videos, not looked for"
    count = f"{made.rows:,} rows" if entry.unit == "clips" else f"{made.rows:,} rows ({made.counted:,} {entry.unit})"
    where = f" -> {made.manifest}" if made.manifest else " -> no manifest"
    return f"{split}: {count}; {videos}; fingerprint {made.fingerprint}{where}"


def _write(output: Path, report: Prepared, made: Annotations, missing: list[str], broken: dict[str, str]) -> None:
    write_text(output / "prepared.json", json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n")
    tables: dict[str, Sequence[tuple[str, ...]]] = {
        "missing.txt": [(path,) for path in missing],
        "unreadable.txt": list(broken.items()),
        **{f"{name}.txt": [(word,) for word in words] for name, words in made.vocabularies.items()},
        **{f"{name}.tsv": rows for name, rows in made.lists.items()},
    }
    for name, rows in tables.items():
        if rows or (output / name).exists():
            write_text(output / name, "".join("\t".join(row) + "\n" for row in rows))
