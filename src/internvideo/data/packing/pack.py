"""Pack the videos of a manifest into tar shards in webdataset's layout, transcoded on request.

A video is KEY.mp4 (KEY with its own suffix, if it is not transcoded) beside KEY.json, which has its first caption, its
class and all its rows of the manifest; manifest.jsonl has the rows with the byte ranges of their videos. Shards are
written with tarfile, because webdataset's writer adds dates and gives no byte ranges; the same videos give the same
bytes.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from internvideo import untrusted
from internvideo.data.manifest import Manifest, Sample, write_manifest
from internvideo.data.packing.members import ATTRIBUTE, hash_content
from internvideo.errors import InternVideoError, ManifestError, RunError, VideoError
from internvideo.storage import atomic_path, folder_lock, write_text
from internvideo.video.reader import Video
from internvideo.video.sequential import iter_frames
from internvideo.video.writer import write_video

_REPORT, _UNREADABLE, _PROGRESS = "report.json", "unreadable.jsonl", "progress"


@dataclass(frozen=True)
class PackSettings:
    """Settings of packing.

    Attributes:
        short_side: transcode so that the shorter side has at most this many pixels; None keeps the size.
        key_frames: transcode so that key frames are at most this many frames apart; None keeps them.
        crf: constant quality of x264 (0 is best), for videos that are transcoded.
        shard_megabytes: a shard is closed when it reaches this size, in MiB (2^20 bytes).
        address: future URL of the shards, such as s3://bucket/folder, if they will not lie beside the manifest.
    """

    short_side: int | None = None
    key_frames: int | None = None
    crf: int = 20
    shard_megabytes: float = 512.0
    address: str | None = None

    @property
    def transcodes(self) -> bool:
        """Whether videos are re-encoded."""
        return self.short_side is not None or self.key_frames is not None


@dataclass
class PackReport:
    """Counts of packed videos; `kept`: not transcoded, because of a variable frame rate or a first frame after 0 s."""

    videos: int = 0
    rows: int = 0
    shards: int = 0
    transcoded: int = 0
    kept: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    unreadable: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _PackedVideo:
    """A video to pack: content, suffix, whether it was transcoded, original bytes; or the reason of a failure."""

    content: bytes = b""
    suffix: str = ""
    transcoded: bool = False
    size: int = 0
    reason: str = ""


def pack(
    manifest: Manifest,
    folder: Path,
    settings: PackSettings,
    *,
    workers: int = 1,
    log: Callable[[str], None] = lambda line: None,
) -> PackReport:
    """Write shards, manifest.jsonl, report.json and, if videos cannot be read, unreadable.jsonl into a folder.

    Complete shards of an interrupted run are kept. Rows of unreadable videos are left out of the manifest and listed.
    Raises RunError: the folder has other content, or cannot be written. ManifestError: no video can be read.
    """
    videos: dict[str, list[int]] = {}
    for index, row in enumerate(manifest.rows):
        videos.setdefault(row.path, []).append(index)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        shards = _earlier_shards(folder, {"manifest": manifest.fingerprint, **asdict(settings)})
        num_done = sum(len(shard["videos"]) for shard in shards)
        if num_done:
            log(f"{num_done} of {len(videos)} videos are packed already")
        try:
            with ThreadPoolExecutor(workers) as pool, TemporaryDirectory() as temporary:
                prepared = _prepare_ahead(pool, videos, num_done, workers, manifest, settings, Path(temporary))
                while shard := _write_shard(folder, len(shards), manifest, videos, prepared, settings):
                    shards.append(shard)
                    num_done += len(shard["videos"])
                    log(f"{shard['name']}: {num_done} of {len(videos)} videos")
        except OSError as error:
            raise RunError(str(folder), f"cannot be written: {error.strerror or error}") from error
        return _finish(folder, manifest, videos, shards, settings)


def _earlier_shards(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the entries of the shards that an earlier run has finished; in an empty folder record the settings.

    Raises RunError: the folder has other content, or belongs to other settings.
    """
    progress = folder / _PROGRESS
    settings_file = progress / "about.json"
    if not settings_file.exists():
        if other_files := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
            raise RunError(
                str(folder), f"contains '{other_files[0]}'", "an empty folder, or one with the same settings"
            )
        progress.mkdir()
        write_text(settings_file, json.dumps(settings))
    elif untrusted.read_json(settings_file) != settings:
        raise RunError(str(folder), "contains shards of another manifest or other settings", "", "use a new folder")
    shards: list[dict[str, Any]] = []
    while (file := progress / f"{len(shards):06d}.json").exists():
        shard = untrusted.read_json(file)
        tar = folder / shard["name"]
        if not tar.is_file() or tar.stat().st_size != shard["size"]:
            raise RunError(str(tar), "is missing or was changed: its size differs", "", "use a new folder")
        shards.append(shard)
    return shards


def _prepare_ahead(
    pool: ThreadPoolExecutor,
    videos: dict[str, list[int]],
    num_done: int,
    workers: int,
    manifest: Manifest,
    settings: PackSettings,
    temporary: Path,
) -> Iterator[tuple[str, _PackedVideo]]:
    """Yield the videos after the first `num_done` in order; a pool prepares a few of them ahead."""
    remaining = islice(videos, num_done, None)

    def submit(path: str) -> tuple[str, Any]:
        rate = manifest.rows[videos[path][0]].frame_rate
        return path, pool.submit(_prepare_video, manifest.root / path, rate, settings, temporary)

    pending = [submit(path) for path in islice(remaining, workers + 1)]
    while pending:
        path, future = pending.pop(0)
        prepared = future.result()
        pending += [submit(following) for following in islice(remaining, 1)]
        yield path, prepared


def _prepare_video(path: Path, rate: float | None, settings: PackSettings, temporary: Path) -> _PackedVideo:
    """Read a video, and transcode it if the settings say so; `rate` is the frame rate of a folder of frames."""
    try:
        with Video(path, short_side=settings.short_side, fps=rate) as video:
            info, size = video.info, 0 if path.is_dir() else path.stat().st_size
            constant_rate = not info.variable_rate and abs(float(info.times[0])) < 1e-6
            if not settings.transcodes or not constant_rate:
                if path.is_dir():
                    hint = "give --short-side or --key-frames to encode it"
                    raise VideoError(path, "is a folder of frames", "", hint)
                return _PackedVideo(path.read_bytes(), path.suffix[1:].lower() or "mp4", size=size)
            target = temporary / f"{os.getpid()}-{hash_content(os.fsencode(path))}.mp4"
            frames = iter_frames(video, np.arange(info.frames))
            even_frames = (frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames)
            write_video(target, even_frames, info.fps, crf=settings.crf, gop=settings.key_frames or 12)
        content = target.read_bytes()
        target.unlink()
        return _PackedVideo(content, "mp4", True, size)
    except InternVideoError as error:
        return _PackedVideo(reason=str(error))
    except OSError as error:
        return _PackedVideo(reason=f"{path}: {error.strerror or error}")


def _write_shard(
    folder: Path,
    shard_index: int,
    manifest: Manifest,
    videos: dict[str, list[int]],
    prepared_videos: Iterator[tuple[str, _PackedVideo]],
    settings: PackSettings,
) -> dict[str, Any] | None:
    """Write the next shard, and its entry in the progress folder; return the entry, None if no video is left."""
    packed: list[dict[str, Any]] = []
    name = f"{shard_index:06d}.tar"
    size = 0
    with atomic_path(folder / name) as path:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for video, prepared in prepared_videos:
                entry: dict[str, Any] = {"path": video, "bytes": prepared.size, "transcoded": prepared.transcoded}
                packed.append(entry)
                if prepared.reason:
                    entry["reason"] = prepared.reason
                    continue
                key = f"{shard_index:06d}{len(packed) - 1:06d}"
                rows = [manifest.rows[index] for index in videos[video]]
                first = _add_member(archive, f"{key}.{prepared.suffix}", prepared.content)
                _add_member(archive, f"{key}.json", _record_of_rows(rows, manifest.classes))
                entry["member"] = f"{name}#{key}.{prepared.suffix}"
                entry["packed"] = f"{first}+{len(prepared.content)}:{hash_content(prepared.content)}"
                size += len(prepared.content)
                if size >= settings.shard_megabytes * 2**20:
                    break
        length = path.stat().st_size
    if not packed:
        (folder / name).unlink()
        return None
    shard = {"name": name, "size": length, "videos": packed}
    write_text(folder / _PROGRESS / f"{shard_index:06d}.json", json.dumps(shard))
    return shard


def _add_member(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a file without date and owner; return the offset of its first byte."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
    return archive.offset - (len(content) + 511) // 512 * 512


def _record_of_rows(rows: Sequence[Sample], classes: Sequence[str]) -> bytes:
    """Return the JSON beside a video: "caption" and "class" for other readers, and all its rows of the manifest."""
    record: dict[str, Any] = {"rows": [row.model_dump(exclude_defaults=True) for row in rows]}
    captions = [caption for row in rows for caption in row.captions]
    if captions:
        record["caption"] = captions[0]
    if rows[0].label is not None and len(classes):
        record["class"] = classes[rows[0].label]
    return json.dumps(record, ensure_ascii=False, default=list).encode()


def _finish(
    folder: Path, manifest: Manifest, videos: dict[str, list[int]], shards: list[dict[str, Any]], settings: PackSettings
) -> PackReport:
    report = PackReport(shards=len(shards))
    locations: dict[int, tuple[str, str]] = {}
    for video in (video for shard in shards for video in shard["videos"]):
        indices = videos[video["path"]]
        if "reason" in video:
            ids = [manifest.rows[index].id for index in indices]
            report.unreadable += [{"id": name, "path": video["path"], "reason": video["reason"]} for name in ids]
            continue
        report.videos, report.bytes_read = report.videos + 1, report.bytes_read + video["bytes"]
        report.transcoded += video["transcoded"]
        report.kept += settings.transcodes and not video["transcoded"]
        prefix = "" if settings.address is None else settings.address.rstrip("/") + "/"
        locations |= dict.fromkeys(indices, (prefix + video["member"], video["packed"]))
    if not locations:
        first = report.unreadable[0]["reason"]
        raise ManifestError(manifest.source, f"no video can be read, for instance: {first}")
    rows = []
    for index, (path, byte_range) in sorted(locations.items()):
        row = manifest.rows[index]
        rows.append(row.model_copy(update={"path": path, "attributes": {**row.attributes, ATTRIBUTE: byte_range}}))
    report.rows, report.bytes_written = len(rows), sum(shard["size"] for shard in shards)
    write_manifest(folder / "manifest.jsonl", rows, manifest.classes)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in report.unreadable)
    if report.unreadable:
        write_text(folder / _UNREADABLE, "".join(lines))
    write_text(folder / _REPORT, json.dumps({**asdict(report), "unreadable": len(report.unreadable)}, indent=1) + "\n")
    return report
