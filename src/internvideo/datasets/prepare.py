"""Prepare a benchmark: write one manifest per split from official annotation files and a folder of videos.

A manifest lists only videos that are present; missing and unreadable ones are counted, reported and listed in files.
The fingerprint of a split is computed from its annotations and does not depend on the videos.
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
from internvideo.datasets.annotation_times import compare, shift_times, start_times
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.catalog import Benchmark, benchmark
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError, VideoError
from internvideo.storage import folder_lock, write_text
from internvideo.untrusted_pickle import Machine, RefusedError, Storage
from internvideo.video.frame_folder import IMAGE_SUFFIXES, frame_names, resolve_rate
from internvideo.video.reader import read_video_info

_TRIMMED = re.compile(r"^(?P<video>.+)_(?P<start>\d{6})_(?P<end>\d{6})$")
_OTHER_FILES = IMAGE_SUFFIXES | {".glb"}  # frames of detection, scenes of navigation
MAX_PICKLE_BYTES = 1 << 30
NUM_TIMES_CHECKED = 8
"""Videos per split whose duration is compared with the annotations if `check_videos` is false."""


@dataclass(frozen=True)
class PreparedSplit:
    """The result for one split.

    Attributes:
        manifest: file name of the manifest, "" if no video is present.
        rows: number of annotated rows. counted: their number in the unit of the benchmark (`Benchmark.count`).
        present, missing, unreadable: numbers of distinct videos.
        fingerprint: hash of all annotated rows and the class names; independent of paths.
        written: number of rows in the manifest.
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
    """The report of `prepare`: splits, notes of the reader, warnings such as differences from the official release."""

    benchmark: str
    classes: int
    splits: dict[str, PreparedSplit] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _VideoMatch:
    """A video file, or a folder of frames if `frames`, with its start and end (s) in the uploaded video."""

    path: str
    start: float = 0.0
    end: float = float("inf")
    frames: bool = False


class VideoFolder:
    """Index the videos below a folder by name.

    Args:
        folder: is searched recursively, once.

    Raises ManifestError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ManifestError(folder, "no such folder", "the folder of the videos")
        self.folder = folder.absolute()
        self._by_path: dict[str, str] = {}
        self._by_stem: defaultdict[str, list[_VideoMatch]] = defaultdict(list)
        self._by_download: defaultdict[str, list[_VideoMatch]] = defaultdict(list)
        self._trimmed_parts: defaultdict[str, list[_VideoMatch]] = defaultdict(list)
        self._duplicates: dict[str, str] = {}  # file that was used -> another one that matches
        self._frames: defaultdict[str, list[_VideoMatch]] = defaultdict(list)
        self.invalid_frame_folders: dict[str, str] = {}  # folder of images that is no video -> reason
        for path, folders, names in os.walk(self.folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                self._add_file(os.path.join(path, name), name)
            self._add_frame_folder(path, names)

    def _add_file(self, path: str, name: str) -> None:
        stem, extension = os.path.splitext(name)
        if extension.lower() not in VIDEO_EXTENSIONS and extension.lower() not in _OTHER_FILES:
            return
        self._by_path[os.path.relpath(path, self.folder)] = path
        if extension.lower() in _OTHER_FILES:
            return
        self._by_stem[stem].append(_VideoMatch(path))
        for other in _ids_of_download(stem):
            self._by_download[other].append(_VideoMatch(path))
        for one in (stem, *_ids_of_download(stem)):
            if trimmed := _TRIMMED.match(one):
                self._trimmed_parts[trimmed["video"]].append(
                    _VideoMatch(path, float(trimmed["start"]), float(trimmed["end"]))
                )

    def _add_frame_folder(self, path: str, names: Sequence[str]) -> None:
        endings = {os.path.splitext(name)[1].lower() for name in names}
        if endings & VIDEO_EXTENSIONS or not endings & IMAGE_SUFFIXES:
            return
        name = os.path.basename(path)
        try:
            frame_names(path, names)
        except VideoError as error:
            self.invalid_frame_folders[name] = error.found
            return
        self._frames[name].append(_VideoMatch(path, frames=True))
        if trimmed := _TRIMMED.match(name):
            start, end = float(trimmed["start"]), float(trimmed["end"])
            self._trimmed_parts[trimmed["video"]].append(_VideoMatch(path, start, end, frames=True))

    def frame_folder_warnings(self, missing: Iterable[str]) -> list[str]:
        """Return a warning about missing videos for which there is a folder of images that is no video; [] if none."""
        names = [name for name in map(_stem, missing) if name in self.invalid_frame_folders]
        reason = self.invalid_frame_folders[names[0]] if names else ""
        return [f"{len(names)} missing videos are folders of images; '{names[0]}' {reason}"] if names else []

    def find(self, names: Iterable[str], seconds: float | None = None, *, parts: bool = True) -> _VideoMatch | None:
        """Find a video by path, by name without extension, or as a trimmed part; None if there is none.

        File names of yt-dlp match too: `Title [ID].mkv`, and `ID.mp4.mkv` of merged formats. A folder of frames matches
        by its name.

        Args:
            names: candidates, best first. seconds: time that a trimmed part must contain. parts: accept trimmed parts.
        """
        candidates = [(name, *os.path.split(_without_extension(name))) for name in names]
        for name, _, _ in candidates:
            if name in self._by_path:
                return _VideoMatch(self._by_path[name])
        for _, folder, stem in candidates:
            found = self._by_stem.get(stem) or self._by_download.get(stem) or self._frames.get(stem, [])
            if found:  # prefer the file in the named folder
                same = [one for one in found if os.path.basename(os.path.dirname(one.path)) == os.path.basename(folder)]
                first, *others = same or found
                if others:
                    self._duplicates[first.path] = others[0].path
                return first
        for _, _, stem in candidates if parts else ():
            for part in self._trimmed_parts.get(stem, ()):
                if seconds is None or part.start <= seconds <= part.end:
                    return part
        return None

    def duplicate_warnings(self) -> list[str]:
        """Return a warning about videos that several files match; [] if there are none."""
        if not self._duplicates:
            return []
        used, other = (os.path.relpath(path, self.folder) for path in next(iter(self._duplicates.items())))
        count = len(self._duplicates)
        return [f"{count:,} videos match several files; the first is used, such as '{used}', not '{other}'"]


def _stem(path: str) -> str:
    return _without_extension(os.path.basename(path))


def _without_extension(name: str) -> str:
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEO_EXTENSIONS else name  # a dot may belong to the name


def _ids_of_download(stem: str) -> list[str]:
    """Return the video ids that yt-dlp may have downloaded to a file of this stem."""
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
    log: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Read a benchmark's annotation files, find its videos, and write one manifest per split into `output`.

    `output` also gets `prepared.json` (the returned report), `missing.txt`, `unreadable.txt`, `outside.tsv` (rows with
    times after the end of their video), the vocabularies and, for merged sets, `dropped.tsv`. Without `videos` the
    manifests contain all rows with the paths of the annotations.

    Args:
        name: key of `catalog.BENCHMARKS`. annotations: file or folder. output: folder, created if missing.
        videos: folder of the videos. check_videos: open every video, and compare its duration with the times of its
            rows (by default those of a few). workers: threads for that.
        offset: second of the annotated videos at which the files start, for movies that were cut.
        frame_rate: frames per second of folders of frames; by default that of the published frames, if there are any.
        log: called with every line of the report.

    Raises:
        ManifestError: an unknown benchmark, malformed annotations, no such folder of videos, an offset without videos,
            folders of frames of unknown rate.
        RunError: the output cannot be written.
    """
    entry = benchmark(name)
    if offset and videos is None:
        raise ManifestError("offset", f"{offset:g} s without videos", "an offset together with the folder of videos")
    folder = None if videos is None else VideoFolder(videos)
    rates = None if folder is None else _frame_rate_lookup(folder, frame_rate)
    source = AnnotationSource(annotations, unpickle=read_pickle, frame_rate=rates)
    parsed = entry.read(source)
    parsed.frame_rate = frame_rate or parsed.frame_rate or resolve_rate(None)
    report = Prepared(name, len(parsed.classes), notes=parsed.notes, warnings=entry.differences(parsed))
    missing: dict[str, None] = {}
    unreadable_reasons: dict[str, str] = {}
    opened_videos: dict[str, _Opened] = {}
    outside: list[tuple[str, ...]] = []
    with folder_lock(output):
        for split, rows in parsed.splits.items():
            located, missing_paths = _locate_videos(rows, parsed, folder, offset)
            missing |= dict.fromkeys(missing_paths)
            if folder is not None:
                with_times = dict.fromkeys(row.path for row in located if start_times(row))
                to_check = [row.path for row in located] if check_videos else list(with_times)[:NUM_TIMES_CHECKED]
                _open_missing(to_check, opened_videos, workers, parsed.frame_rate)
            opened = {row.path: opened_videos[row.path] for row in located if row.path in opened_videos}
            unreadable = {path: one.reason for path, one in opened.items() if one.reason and check_videos}
            unreadable_reasons |= unreadable
            readable = [row for row in located if row.path not in unreadable]
            late_rows = compare(readable, {path: one.seconds for path, one in opened.items() if not one.reason})
            outside += [(split, name, f"{moment:g}", f"{seconds:.3f}") for name, moment, seconds in late_rows.rows]
            report.warnings += [f"{split}: {late_rows.warning}"] if late_rows.warning else []
            file = f"{split}.jsonl" if readable else ""
            if readable:
                write_manifest(output / file, readable, parsed.classes)
            else:
                (output / f"{split}.jsonl").unlink(missing_ok=True)  # of an earlier call
            all_rows = Manifest(tuple(rows), parsed.classes, output, annotations)
            report.splits[split] = PreparedSplit(
                file, len(rows), entry.count(rows), len({row.path for row in readable}), len(missing_paths),
                len(unreadable), all_rows.fingerprint, len(readable),
            )  # fmt: skip
            log(_summary_line(split, report.splits[split], entry, folder is not None))
        if folder is not None:
            report.warnings += [*folder.duplicate_warnings(), *folder.frame_folder_warnings(missing)]
        parsed.lists["outside"] = outside
        _write_report(output, report, parsed, list(missing), unreadable_reasons)
    for line in (*report.notes, *(f"warning: {warning}" for warning in report.warnings)):
        log(line)
    return report


def _locate_videos(
    rows: list[Sample], annotations: Annotations, folder: VideoFolder | None, offset: float
) -> tuple[list[Sample], list[str]]:
    """Return the rows whose video is present, with file paths and times relative to the file, and the missing paths."""
    if folder is None:
        return rows, []
    early = 0
    located, missing = [], dict[str, None]()
    for row in rows:
        moment = row.boxes[0].time if row.boxes else None
        # A trimmed part does not match rows of another part, nor rows whose times refer to the whole video.
        parts = bool(row.boxes) or not (row.span or row.segments or _TRIMMED.match(Path(row.path).stem))
        found = folder.find((row.path, *annotations.names.get(row.path, ())), moment, parts=parts)
        if found is None:
            missing[row.path] = None
            continue
        if found.frames and annotations.frame_rate is None:
            expected = "--frame-rate, in frames per second"
            raise ManifestError(found.path, "a folder of frames of unknown frame rate", expected)
        if (
            moved := shift_times(_relocate(row, found, annotations.frame_rate), 0.0 if found.start else offset)
        ) is not None:
            located.append(moved)
        else:
            early += 1
    annotations.note(early, f"rows before second {offset:g}, where the files start, left out")
    return located, list(missing)


def _relocate(row: Sample, found: _VideoMatch, frame_rate: float | None) -> Sample:
    """Set the row's path to the file, and make its box times relative to the start of a trimmed file."""
    fields: dict[str, object] = {"path": found.path}
    if found.frames:
        fields["fps"] = frame_rate
    if found.start and row.boxes:
        fields["boxes"] = tuple(box.model_copy(update={"time": max(box.time - found.start, 0.0)}) for box in row.boxes)
    return row.model_copy(update=fields)


@dataclass(frozen=True)
class _Opened:
    """Why a video cannot be read ("" if it can), and its duration (s)."""

    reason: str = ""
    seconds: float = float("inf")


def _open_missing(
    paths: Iterable[str], opened_videos: dict[str, _Opened], workers: int | None, frame_rate: float | None
) -> None:
    """Open the videos that are not in `opened_videos` yet, and add the results to it."""
    new_paths = [path for path in dict.fromkeys(paths) if path not in opened_videos]
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        opened_videos |= zip(new_paths, pool.map(partial(_open_video, frame_rate=frame_rate), new_paths), strict=True)


def _open_video(path: str, frame_rate: float | None) -> _Opened:
    if Path(path).suffix.lower() in _OTHER_FILES:
        return _Opened()
    try:
        return _Opened(seconds=read_video_info(path, fps=frame_rate).duration)
    except VideoError as error:
        return _Opened(error.found)


def _frame_rate_lookup(folder: VideoFolder, frame_rate: float | None) -> Callable[[str], float | None]:
    @cache
    def rate(name: str) -> float | None:
        found = folder.find((name,))
        try:
            return None if found is None else read_video_info(found.path, fps=frame_rate).fps
        except VideoError:
            return None

    return rate


def read_pickle(path: Path) -> object:
    """Read the plain containers of a pickle without executing it. Raises ManifestError: it contains anything else."""
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


def _summary_line(split: str, result: PreparedSplit, entry: Benchmark, searched: bool) -> str:
    videos = f"{result.present:,} videos present, {result.missing:,} missing, {result.unreadable:,} unreadable"
    videos = videos if searched else f"{result.present:,} videos, not searched for"
    count = f"{result.rows:,} rows"
    count += "" if entry.unit == "clips" else f" ({result.counted:,} {entry.unit})"
    where = f" -> {result.manifest}" if result.manifest else " -> no manifest"
    return f"{split}: {count}; {videos}; fingerprint {result.fingerprint}{where}"


def _write_report(
    output: Path, report: Prepared, annotations: Annotations, missing: list[str], unreadable_reasons: dict[str, str]
) -> None:
    write_text(output / "prepared.json", json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n")
    tables: dict[str, Sequence[tuple[str, ...]]] = {
        "missing.txt": [(path,) for path in missing],
        "unreadable.txt": list(unreadable_reasons.items()),
        **{f"{name}.txt": [(word,) for word in words] for name, words in annotations.vocabularies.items()},
        **{f"{name}.tsv": rows for name, rows in annotations.lists.items()},
    }
    for name, rows in tables.items():
        if rows or (output / name).exists():
            write_text(output / name, "".join("\t".join(row) + "\n" for row in rows))
