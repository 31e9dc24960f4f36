"""The cache of decoded videos: batches as without it, one for all workers, bounded, and never stale."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from grey_clips import BYTES, CLIPS, FRAMES, SIDE, Plain, clips_of, loader, same

from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.manifest import Manifest
from internvideo.errors import VideoError
from internvideo.video.reader import Video


@pytest.mark.parametrize("short_side", [None, 16])
def test_the_cache_changes_nothing_but_the_time(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, short_side: int | None
) -> None:
    settings: dict[str, object] = {"short_side": short_side, "transform": Plain(), "drop_last": False}
    plain, cached = loader(manifest, **settings), loader(manifest, cache_megabytes=10, **settings)
    for epoch in range(2):
        assert same(list(plain.epoch(epoch)), list(cached.epoch(epoch)))
    expected = list(plain.epoch(2))

    def no_decoding(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Video, "__init__", no_decoding)
    assert same(expected, list(cached.epoch(2)))


def test_the_cache_keeps_to_its_memory(manifest: Manifest) -> None:
    limit = int(3.6 * BYTES)
    reader = ManifestClipDecoder(manifest, cache_bytes=limit)
    for _ in range(2):
        for row in manifest.rows:
            (clip,) = reader.clips(row, lambda times: [np.arange(len(times))])
            assert clip.shape == (FRAMES, SIDE, SIDE, 3)
            assert reader.cached_bytes <= limit
    assert reader.cached_bytes == 3 * BYTES
    nothing = ManifestClipDecoder(manifest, cache_bytes=BYTES // 2)
    nothing.clips(manifest.rows[0], lambda times: [np.arange(len(times))])
    assert nothing.cached_bytes == 0


def test_workers_share_one_cache_and_its_folder_goes_with_it(manifest: Manifest) -> None:
    one = loader(manifest, workers=2, threads=2, drop_last=False, cache_megabytes=10)
    cache = one._batches.decoder._cache  # type: ignore[attr-defined] # a manifest's decoder has one
    for epoch in range(2):
        assert len(list(one.epoch(epoch))) == 6
        assert cache.used_bytes == CLIPS * BYTES
    folder = cache._folder
    assert len(list(folder.iterdir())) == CLIPS
    del one, cache
    gc.collect()
    assert not folder.exists()


def test_the_cache_notices_that_a_video_has_changed(manifest: Manifest, tmp_path: Path) -> None:
    shutil.copy(manifest.root / "0.mp4", tmp_path / "0.mp4")
    moved = dataclasses.replace(manifest, rows=manifest.rows[:1], root=tmp_path)
    reader = ManifestClipDecoder(moved, cache_bytes=10 * BYTES)
    (before,) = reader.clips(moved.rows[0], lambda times: [np.arange(len(times))])
    assert reader.cached_bytes == BYTES
    shutil.copy(manifest.root / "7.mp4", tmp_path / "0.mp4")
    (after,) = reader.clips(moved.rows[0], lambda times: [np.arange(len(times))])
    assert not torch.equal(before, after)
    assert clips_of(after.permute(3, 0, 1, 2)[None]) == [7]


def test_a_video_with_a_damaged_frame_is_read_as_without_cache(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_frames = Video.frames

    def last_is_damaged(self: Video, indices: np.ndarray) -> np.ndarray:
        if FRAMES - 1 in indices:
            raise VideoError(self.path, "frame 23 is damaged")
        return plain_frames(self, indices)

    monkeypatch.setattr(Video, "frames", last_is_damaged)
    reader = ManifestClipDecoder(manifest, cache_bytes=10 * BYTES)
    for _ in range(2):
        (clip,) = reader.clips(manifest.rows[0], lambda times: [np.array([0, 5])])
        assert clip.shape[0] == 2
    assert reader.cached_bytes == 0
