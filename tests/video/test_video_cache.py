"""Indexes and open readers of files that were opened before: the frames are always those of the file as it is now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import odd_video
import pytest
import torch

from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.manifest import Sample, read_manifest, write_manifest
from internvideo.data.preprocessing import Preprocessing, Span
from internvideo.errors import VideoError
from internvideo.video import cache as video_cache
from internvideo.video import pool as video_pool
from internvideo.video import reader as home
from internvideo.video.pool import borrow
from internvideo.video.reader import Video, read_frames

CLIPS = Preprocessing(4, 32, sampler="segment_middle")


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files that were looked through, each time."""
    names: list[str] = []
    kinds = {name: getattr(home, name) for name in ("index_from_packets", "index_from_frames")}

    def noted(kind: str) -> None:
        def index(container: object, stream: object, path: str, *more: object) -> object:
            names.append(Path(path).name)
            return kinds[kind](container, stream, path, *more)

        monkeypatch.setattr(home, kind, index)

    for kind in kinds:
        noted(kind)
    video_pool._close_all()
    yield names
    video_pool._close_all()


def film(path: Path, seed: int = 0, **settings: object) -> Path:
    odd_video.encode(path, odd_video.moving_frames(60, seed=seed), **settings)  # type: ignore[arg-type]  # any of them
    time.sleep(0.12)  # younger files are not trusted to stay
    return path


@pytest.mark.parametrize("name", ["plain.mp4", "slow.ts"])
def test_a_file_is_looked_through_once(tmp_path: Path, opened: list[str], name: str) -> None:
    path = film(tmp_path / name)
    truth = odd_video.decode_all(path)[0]
    for number in (50, 3, 17, 59, 0):
        assert np.array_equal(read_frames(path, [number, 0])[0], truth[number])
    assert len(set(opened)) == 1
    assert len(opened) <= 2  # packets were not enough for the second kind


def test_clips_of_a_film_share_one_reader(tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "film.mp4")
    made: list[Video] = []
    monkeypatch.setattr(video_pool, "Video", lambda *a, **k: made.append(Video(*a, **k)) or made[-1])
    spans = [(2.0, 3.0), (0.0, 1.0), (0.5, 2.5), (3.0, 4.0)]
    rows = [Sample(id=f"r{i}", path=path.name, split="train", span=span) for i, span in enumerate(spans)]
    write_manifest(tmp_path / "m.jsonl", rows, [])
    reader = ManifestClipDecoder(read_manifest(tmp_path / "m.jsonl"))
    for row in reader.manifest.rows:
        clip = reader.clips(row, lambda times: [np.array([0, len(times) - 1])])[0]
        assert row.span is not None
        with Video(path) as alone:
            inside = alone.info.within(*row.span)
            assert np.array_equal(clip.numpy(), alone.frames(inside[[0, -1]]))
    assert len(made) == 1
    for span in spans:
        with Video(path) as alone:
            assert torch.equal(CLIPS.read(Span(path, *span))[0], CLIPS.clip(alone, *span))
    assert (len(made), opened) == (1, ["film.mp4"])


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path, other = film(tmp_path / "film.mp4"), film(tmp_path / "other.mp4", seed=5)
    with borrow(path) as video:
        video.frames([4])
    content = other.read_bytes()
    held, size = os.stat(path), max(path.stat().st_size, len(content))
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    path.write_bytes(content.ljust(size, b"\0"))  # in its place, as long as before
    os.utime(path, ns=(held.st_atime_ns, held.st_mtime_ns))
    right = odd_video.decode_all(other)[0]
    with borrow(path) as video:
        assert np.array_equal(video.frames([4])[0], right[4])
    assert np.array_equal(read_frames(path, [30])[0], right[30])


def test_a_file_that_grows_is_read_anew(tmp_path: Path) -> None:
    whole, path = film(tmp_path / "whole.ts"), tmp_path / "grows.ts"
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) // 2 // 188 * 188])
    time.sleep(0.12)
    with borrow(path) as video:
        before = video.info.frames
    with path.open("ab") as file:
        file.write(content[path.stat().st_size :])
    with borrow(path) as video:
        assert before < video.info.frames == 60


def test_a_file_that_was_just_written_is_not_kept(tmp_path: Path, opened: list[str]) -> None:
    path = odd_video.encode(tmp_path / "new.mp4", odd_video.moving_frames(10))
    os.utime(path)
    stamp = video_cache.stamp_of(str(path))
    assert stamp is not None
    assert not video_cache.is_unchanged(stamp)
    time.sleep(0.12)
    assert video_cache.is_unchanged(stamp)
    path.write_bytes(path.read_bytes() + b"\0")
    time.sleep(0.12)
    assert not video_cache.is_unchanged(stamp)


def test_after_an_error_a_reader_is_closed_and_frames_stay_right(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4")
    truth = odd_video.decode_all(path)[0]
    with pytest.raises(VideoError, match="frame 60 asked"), borrow(path) as video:
        video.frames([60])
    assert not video_pool._idle
    with borrow(path) as video:
        assert np.array_equal(video.frames([33])[0], truth[33])
        with borrow(path) as second:  # nobody else has the first one
            assert second is not video
            assert np.array_equal(second.frames([12])[0], truth[12])
        assert np.array_equal(video.frames([34])[0], truth[34])
    assert len(video_pool._idle) == 2


def test_only_some_readers_rest_and_one_with_its_pictures(tmp_path: Path) -> None:
    paths = [film(tmp_path / f"f{i}.ts", seed=i) for i in range(video_pool.MAX_IDLE + 2)]
    for path in paths:
        with borrow(path) as video:
            assert video.info.frames == 60
    assert [Path(video.path).name for _, video in video_pool._idle] == [p.name for p in paths[2:]]
    assert [video._index.frame_cache is None for _, video in video_pool._idle] == [True] * 3 + [False]
    for number, path in enumerate(paths):
        assert np.array_equal(read_frames(path, [7])[0], odd_video.decode_all(path)[0][7]), number


def test_indexes_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "film.mp4")
    video_cache._indexes.clear()
    video_cache._total_bytes = 0
    with Video(path) as video:
        size = video._index.nbytes
    monkeypatch.setattr(video_cache, "MAX_BYTES", 2 * size)
    paths = [film(tmp_path / f"f{i}.mp4") for i in range(4)]
    for other in paths:
        read_frames(other, [0])
    assert [Path(stamp.path).name for stamp in video_cache._indexes] == ["f2.mp4", "f3.mp4"]


def _frame(path: str, number: int) -> np.ndarray:  # type: ignore[type-arg]  # crosses a process
    with borrow(path) as video:
        return video.frames([number])[0]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_and_threads_do_not_share_a_reader(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", gop=5)
    truth = odd_video.decode_all(path)[0]
    assert np.array_equal(_frame(str(path), 20), truth[20])
    assert video_pool._idle
    with get_context("fork").Pool(2) as pool:
        assert not video_pool._idle  # a copy would share the place in the file
        numbers = [*range(0, 60, 3)]
        theirs = pool.starmap(_frame, [(str(path), number) for number in numbers])
    assert all(np.array_equal(frame, truth[number]) for frame, number in zip(theirs, numbers, strict=True))
    with ThreadPoolExecutor(4) as threads:
        ours = list(threads.map(lambda number: _frame(str(path), number), numbers * 3))
    assert all(np.array_equal(frame, truth[number]) for frame, number in zip(ours, numbers * 3, strict=True))
