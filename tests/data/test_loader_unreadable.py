"""What cannot be read: replaced, counted and named in training; evaluation replaces, pads and repeats nothing."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from grey_clips import (
    CLIPS,
    FRAMES,
    Letters,
    Plain,
    clips_of,
    frames_of,
    loader,
    with_broken,
)
from processes import as_process
from torch import Tensor

from internvideo.data.epoch_plan import EpochPlan
from internvideo.data.loader import EvalLoader, LoaderSettings
from internvideo.data.manifest import Manifest
from internvideo.data.sampling import Linspace, Sparse
from internvideo.errors import RunError, TextError, VideoError

# ------------------------------------------------------------------------------------------------ unreadable


def test_an_unreadable_clip_is_replaced_counted_and_named_once(manifest: Manifest, tmp_path: Path) -> None:
    broken, file = with_broken(manifest, 2), tmp_path / "run" / "skipped.jsonl"
    one = loader(broken, Plain(), max_unreadable=0.2, skipped=file)
    for epoch in range(3):
        for batch in one.epoch(epoch):
            assert len(batch) == len(set(batch.ids)) == 2  # the substitute is not the other clip of the batch
            assert [str(clip) for clip in clips_of(batch.video)] == list(batch.ids)
            assert batch.labels is not None
            assert batch.labels.tolist() == [int(name) % 3 for name in batch.ids]
    assert sorted(one.unreadable) == ["0", "2"]
    again = loader(broken, max_unreadable=0.2, skipped=file)
    list(again.epoch(0))
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(record["id"] for record in records) == ["0", "2"]
    assert all(record["path"] == "broken.mp4" and "broken.mp4" in record["reason"] for record in records)


def test_a_replaced_clip_does_not_change_the_others(manifest: Manifest) -> None:
    good = list(loader(manifest).epoch(0))
    mended = list(loader(with_broken(manifest, 2), max_unreadable=0.2).epoch(0))
    for before, after in zip(good, mended, strict=True):
        for place, name in enumerate(before.ids):
            if name in ("0", "2"):
                assert after.ids[place] not in ("0", "2")
            else:
                assert after.ids[place] == name
                assert torch.equal(before.video[place], after.video[place])


def test_too_many_unreadable_clips_stop_the_run(manifest: Manifest, tmp_path: Path) -> None:
    one = loader(with_broken(manifest, 3), max_unreadable=0.2, skipped=tmp_path / "skipped.jsonl", drop_last=False)
    with pytest.raises(VideoError, match=r"3 of 11 clips cannot be read.*max_unreadable = 0\.2.*skipped\.jsonl"):
        list(one.epoch(0))
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 3
    with pytest.raises(VideoError, match="1 of 11"):  # the default: more than 1 %
        list(loader(with_broken(manifest, 1), drop_last=False).epoch(0))


def test_all_processes_and_sessions_count_together(manifest: Manifest, tmp_path: Path) -> None:
    """Each of two processes meets too few unreadable clips to stop, together they meet too many."""
    broken, file = with_broken(manifest, 4), tmp_path / "skipped.jsonl"
    shared = {"max_unreadable": 0.3, "skipped": file, "drop_last": False, "shuffle": False, "batch_size": 3}
    with as_process(0, 2):
        first = loader(broken, **shared)
    with as_process(1, 2):
        second = loader(broken, **shared)
    assert len(list(first.epoch(0))) == 2
    assert sorted(first.unreadable) == ["0", "2", "6"]
    with pytest.raises(VideoError, match="4 of 11 clips cannot be read"):
        list(second.epoch(0))
    assert sorted(second.unreadable) == ["0", "2", "4", "6"]
    assert sorted(json.loads(line)["id"] for line in file.read_text().splitlines()) == ["0", "2", "4", "6"]
    later = loader(broken, **shared)  # whichever batch it goes on with
    with pytest.raises(VideoError, match=r"4 of 11 .*, then .*delete .*skipped\.jsonl, which lists them"):
        next(later.epoch(1, start=1))
    file.unlink()
    assert len(loader(broken, **shared).unreadable) == 0


def test_clips_of_another_manifest_in_the_same_file_do_not_count(manifest: Manifest, tmp_path: Path) -> None:
    file = tmp_path / "skipped.jsonl"
    list(loader(with_broken(manifest, 2), max_unreadable=0.2, skipped=file).epoch(0))
    with file.open("a") as stream:
        stream.write('{"id": "3", "pa')  # killed while it wrote
    assert len(loader(with_broken(manifest, 2), max_unreadable=0.2, skipped=file).unreadable) == 2
    images = loader(with_broken(manifest, 3), max_unreadable=0.3, skipped=file)
    assert not images.unreadable
    list(images.epoch(0))
    assert sorted(images.unreadable) == ["0", "2", "4"]
    assert sorted(loader(with_broken(manifest, 3), skipped=file).unreadable) == ["0", "2", "4"]


def test_a_file_of_skipped_clips_that_cannot_be_written_is_told(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    one = loader(with_broken(manifest, 2), max_unreadable=0.2, skipped=tmp_path / "run" / "skipped.jsonl")
    with pytest.raises(RunError, match="cannot be written"):
        list(one.epoch(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_clip_at_all_ends(manifest: Manifest, workers: int) -> None:
    away = dataclasses.replace(manifest, root=manifest.root / "elsewhere")
    with pytest.raises(VideoError, match="in succession cannot be read"):
        list(loader(away, workers=workers, max_unreadable=1.0).epoch(0))


def test_substitutes_visit_every_other_clip_once() -> None:
    for samples, batch in [(2, 1), (4, 4), (9, 4), (12, 3)]:
        plan = EpochPlan(samples, batch, 0, True, True, 0, 1)
        for place in range(samples):
            assert sorted([place, *plan.fallback_positions(place)]) == list(range(samples))
    plan = EpochPlan(1000, 8, 0, True, True, 0, 2)
    assert plan.fallback_positions(3)[:2] == [19, 20]


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_of_the_user_keep_their_kind(manifest: Manifest, workers: int) -> None:
    row = manifest.rows[0].model_copy(update={"captions": ("bad",)})
    with pytest.raises(TextError, match="caption: bad"):
        list(
            loader(
                dataclasses.replace(manifest, rows=(row,)), batch_size=1, workers=workers, tokenizer=Letters()
            ).epoch(0)
        )


class Deadly(Plain):
    def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
        os._exit(3)


def test_a_dead_worker_is_told(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # seconds, 5 otherwise
    with pytest.raises(RunError, match=r"data\.loader\.workers: a worker died"):
        list(loader(manifest, Deadly(), workers=1).epoch(0))


# ------------------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_evaluation_yields_every_view_once_in_order(manifest: Manifest, workers: int, batch_size: int) -> None:
    settings = LoaderSettings(batch_size, workers=workers)
    one = EvalLoader(manifest, Sparse(frames=4, num_clips=3), Plain(), settings, tokenizer=Letters())
    pairs, sizes, videos = [], [], []
    for batch, views in one:
        assert views.dtype == np.int64
        assert batch.labels is not None
        assert batch.text_ids is not None
        assert batch.labels.tolist() == [int(name) % 3 for name in batch.ids]
        assert ["".join(map(chr, ids)).strip() for ids in batch.text_ids.tolist()] == [f"a{name}" for name in batch.ids]
        pairs += list(zip(batch.ids, views.tolist(), strict=True))
        sizes.append(len(batch))
        videos.append(batch.video)
    assert pairs == [(str(c), view) for c in range(CLIPS) for view in range(6)]
    assert set(sizes[:-1]) <= {batch_size}
    assert 0 < sizes[-1] <= batch_size
    video = torch.cat(videos)
    assert clips_of(video[::2]) == [c for c in range(CLIPS) for _ in range(3)]
    assert torch.equal(video[1::2], video[::2].flip(-1))
    assert frames_of(video[:6:2]) == [frames.tolist() for frames in Sparse(frames=4, num_clips=3).test(FRAMES)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_evaluation_shards_without_padding_or_repeats(manifest: Manifest, world_size: int) -> None:
    names: list[str] = []
    batches: list[tuple[str, ...]] = []
    for rank in range(world_size):
        with as_process(rank, world_size):
            one = EvalLoader(manifest, Linspace(2), Plain(), LoaderSettings(4))
        mine = [name for batch, views in one for name, view in zip(batch.ids, views, strict=True) if view == 0]
        assert len(mine) == one.samples
        names += mine
        batches += [batch.ids for batch, _ in one]
    assert sorted(names, key=int) == [str(c) for c in range(CLIPS)]
    alone = [batch.ids for batch, _ in EvalLoader(manifest, Linspace(2), Plain(), LoaderSettings(4))]
    assert sorted(batches) == sorted(alone), "the same clips stand together, however many processes"


def test_an_unreadable_clip_moves_no_clip_of_later_groups(manifest: Manifest) -> None:
    whole, broken = (
        [batch.ids for batch, _ in EvalLoader(rows, Linspace(2), Plain(), LoaderSettings(4))]
        for rows in (manifest, with_broken(manifest, 1))
    )
    assert whole != broken
    assert [ids for ids in broken if int(ids[0]) >= 4] == [ids for ids in whole if int(ids[0]) >= 4]


def test_evaluation_never_substitutes(manifest: Manifest) -> None:
    one = EvalLoader(with_broken(manifest, 3), Linspace(2), Plain(), LoaderSettings(4, max_unreadable=0))
    for _ in range(2):
        names = [name for batch, _ in one for name in batch.ids]
        assert sorted(set(names), key=int) == ["1", "3", "5", "6", "7", "8", "9", "10"]
        assert len(names) == 16
        assert [(name, path) for name, path, _ in one.unreadable] == [(n, "broken.mp4") for n in ("0", "2", "4")]
