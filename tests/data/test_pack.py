"""Packed videos: the batches of the plain files from shards here and behind fsspec; damage and resuming."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import fsspec
import numpy as np
import pytest
from grey_clips import CLIPS, Letters, grey_clips, loader, same, with_broken
from webdataset.tariterators import group_by_keys, tar_file_expander

from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.packing.pack import PackSettings, pack
from internvideo.errors import ManifestError, RunError, VideoError
from internvideo.video.reader import Video, read_video_info
from internvideo.video.writer import write_video

SMALL = PackSettings(shard_megabytes=0.004)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Eleven clips, one of them in two rows with spans of their own."""
    found = grey_clips(tmp_path_factory.mktemp("clips"))
    first = found.rows[0].model_copy(update={"span": (0.0, 1.2)})
    second = found.rows[0].model_copy(update={"id": "again", "span": (1.2, 2.4)})
    return dataclasses.replace(found, rows=(first, *found.rows[1:], second))


@pytest.fixture(scope="module")
def packed(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "o"
    report = pack(manifest, folder, SMALL, workers=2)
    assert (report.videos, report.rows, report.transcoded, report.unreadable) == (CLIPS, CLIPS + 1, 0, [])
    assert report.shards > 2
    return folder


def test_batches_from_shards_are_those_of_the_files(manifest: Manifest, packed: Path) -> None:
    found = read_manifest(packed)
    assert [row.id for row in found.rows] == [row.id for row in manifest.rows]
    assert found.classes == manifest.classes
    settings: dict[str, object] = {"tokenizer": Letters(), "drop_last": False}
    expected = list(loader(manifest, **settings).epoch(1))
    assert same(list(loader(found, workers=2, threads=2, **settings).epoch(1)), expected)
    cached = loader(found, cache_megabytes=10, **settings)
    for _ in range(2):
        assert same(list(cached.epoch(1)), expected)


def test_shards_are_read_through_fsspec(manifest: Manifest, packed: Path, tmp_path: Path) -> None:
    pack(manifest, tmp_path / "o", dataclasses.replace(SMALL, address="memory://bucket/clips/"))
    memory = fsspec.filesystem("memory")
    for shard in (tmp_path / "o").glob("*.tar"):
        assert shard.read_bytes() == (packed / shard.name).read_bytes()  # the same videos give the same bytes
        memory.pipe_file(f"/bucket/clips/{shard.name}", shard.read_bytes())
        shard.unlink()
    found = read_manifest(tmp_path / "o")
    assert same(list(loader(found).epoch(0)), list(loader(manifest).epoch(0)))


def samples_of(folder: Path) -> list[dict[str, bytes]]:
    """The samples that webdataset finds (its `WebDataset` leaves files open)."""
    with ExitStack() as stack:
        shards = sorted(folder.glob("*.tar"))
        streams = [{"url": str(path), "stream": stack.enter_context(path.open("rb"))} for path in shards]
        return list(group_by_keys(tar_file_expander(streams)))


def test_webdataset_reads_the_shards(manifest: Manifest, packed: Path) -> None:
    read = samples_of(packed)
    assert [sample["mp4"] for sample in read] == [(manifest.root / f"{clip}.mp4").read_bytes() for clip in range(CLIPS)]
    told = [json.loads(sample["json"]) for sample in read]
    assert [row["id"] for row in told[0]["rows"]] == ["0", "again"]
    assert (told[1]["caption"], told[1]["class"]) == ("a1", "y")


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone", "swapped"])
def test_damaged_shards_are_told(packed: Path, tmp_path: Path, harm: str) -> None:
    shutil.copytree(packed, tmp_path / "o")
    found = read_manifest(tmp_path / "o")
    shard = tmp_path / "o" / "000000.tar"
    content = bytearray(shard.read_bytes())
    if harm == "flipped":
        content[700] ^= 1
    elif harm == "swapped":
        content = bytearray((tmp_path / "o" / "000001.tar").read_bytes())
    shard.write_bytes(content[:600] if harm == "cut" else content)
    if harm == "gone":
        shard.unlink()
    reader = ManifestClipDecoder(found)
    with pytest.raises(VideoError, match=r"000000.tar#000000000000.mp4") as told:
        reader.clips(found.rows[0], lambda times: [np.arange(len(times))])
    assert "\n" not in str(told.value)
    reader.clips(found.rows[CLIPS - 1], lambda times: [np.arange(len(times))])  # of another shard


def test_a_stopped_run_is_resumed(manifest: Manifest, packed: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    class StoppedError(Exception):
        pass

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        pack(manifest, tmp_path / "o", SMALL, log=stop)
    assert not (tmp_path / "o" / "manifest.jsonl").exists()
    first = (tmp_path / "o" / "000000.tar").stat().st_mtime_ns
    pack(manifest, tmp_path / "o", SMALL, log=lines.append)
    assert "videos are packed already" in lines[2]
    assert (tmp_path / "o" / "000000.tar").stat().st_mtime_ns == first
    names = {path.name for path in packed.iterdir()}
    assert {path.name for path in (tmp_path / "o").iterdir()} == names
    assert all((tmp_path / "o" / name).read_bytes() == (packed / name).read_bytes() for name in names if "." in name)


def test_a_folder_of_something_else_is_refused(manifest: Manifest, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="other settings"):
        pack(manifest, packed, PackSettings())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"notes\.txt"):
        pack(manifest, tmp_path, SMALL)


def test_unreadable_videos_are_listed_and_left_out(manifest: Manifest, tmp_path: Path) -> None:
    broken = with_broken(manifest, 2)
    report = pack(broken, tmp_path / "o", SMALL)
    assert [one["id"] for one in report.unreadable] == ["0", "2"]
    listed = [json.loads(line) for line in (tmp_path / "o" / "unreadable.jsonl").read_text().splitlines()]
    assert [(one["id"], one["path"]) for one in listed] == [("0", "broken.mp4"), ("2", "broken.mp4")]
    assert len(read_manifest(tmp_path / "o")) == len(manifest) - 2
    with pytest.raises(ManifestError, match="no video can be read"):
        pack(dataclasses.replace(broken, rows=broken.rows[:1]), tmp_path / "p", SMALL)


def test_videos_are_transcoded_to_short_side_and_key_frames(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    frames = np.repeat(np.repeat(rng.randint(0, 256, (30, 6, 9, 3)), 8, 1), 8, 2).astype(np.uint8)
    write_video(tmp_path / "a.mp4", frames, 10, gop=250)
    (tmp_path / "m.jsonl").write_text('{"id": "a", "path": "a.mp4"}\n')
    report = pack(read_manifest(tmp_path / "m.jsonl"), tmp_path / "o", PackSettings(short_side=33, key_frames=7))
    assert (report.transcoded, report.kept) == (1, 0)
    found = read_manifest(tmp_path / "o")
    (clip,) = ManifestClipDecoder(found).clips(found.rows[0], lambda times: [np.arange(len(times))])
    assert clip.shape == (30, 32, 50, 3)
    (sample,) = samples_of(tmp_path / "o")
    (tmp_path / "b.mp4").write_bytes(sample["mp4"])
    assert np.allclose(read_video_info(tmp_path / "b.mp4").times, np.arange(30) / 10)
    with Video(tmp_path / "b.mp4") as video:
        assert np.diff(video.key_frames).max() <= 7
