"""The loader: a batch depends on (seed, epoch, place) alone, on any number of ranks and workers and after resuming."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from grey_clips import (
    CLIPS,
    SIDE,
    Letters,
    Plain,
    clips_of,
    frames_of,
    loader,
    same,
    with_broken,
)
from odd_kinds import remuxed
from processes import as_process
from pydantic import BaseModel, ValidationError
from torch import Tensor

from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.epoch_plan import EpochPlan
from internvideo.data.loader import EvalLoader, LoaderSettings
from internvideo.data.manifest import Manifest
from internvideo.data.sampling import Linspace, Sparse
from internvideo.errors import ManifestError, RecipeError
from internvideo.video.reader import Video, read_video_info

# ----------------------------------------------------------------------------------------------- determinism


def test_batches_hold_what_they_say(manifest: Manifest) -> None:
    batches = list(loader(manifest, Plain()).epoch(0))
    assert len(batches) == CLIPS // 2
    for batch in batches:
        assert batch.video.shape == (2, 3, 4, SIDE, SIDE)
        assert batch.video.dtype == torch.uint8
        assert [str(clip) for clip in clips_of(batch.video)] == list(batch.ids)
        assert batch.labels is not None
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == [int(name) % 3 for name in batch.ids]
        assert batch.text_ids is None
        assert all(frames == sorted(frames) for frames in frames_of(batch.video))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_is_the_rest_of_the_uninterrupted_one(manifest: Manifest, workers: int) -> None:
    settings = {"tokenizer": Letters(), "repeated_augmentation": 2}
    whole = list(loader(manifest, **settings).epoch(3))
    resumed = loader(manifest, workers=workers, **settings)  # another process would build it anew, too
    for start in [2, 0, len(whole), 4] if workers else range(len(whole) + 1):
        assert same(list(resumed.epoch(3, start)), whole[start:])


def test_batches_do_not_depend_on_the_number_of_workers_and_threads(manifest: Manifest) -> None:
    broken = with_broken(manifest, 2)
    runs = []
    for workers, threads in ((0, 1), (1, 1), (2, 1), (0, 3), (2, 2)):
        one = loader(broken, workers=workers, threads=threads, tokenizer=Letters(), max_unreadable=0.5)
        runs.append(([*one.epoch(0), *one.epoch(1)], list(one.unreadable)))
    for batches, unreadable in runs[1:]:
        assert same(runs[0][0], batches)
        assert runs[0][1] == unreadable
    assert sorted(runs[0][1]) == ["0", "2"]


def test_an_abandoned_epoch_leaves_nothing_behind(manifest: Manifest) -> None:
    one = loader(manifest, workers=2)
    next(one.epoch(0))
    assert same(list(one.epoch(1)), list(loader(manifest).epoch(1)))


def test_epochs_and_seeds_differ(manifest: Manifest) -> None:
    one = loader(manifest)
    first, second = list(one.epoch(0)), list(one.epoch(1))
    assert not same(first, second)
    assert [batch.ids for batch in first] != [batch.ids for batch in second]
    assert [batch.ids for batch in first] != [batch.ids for batch in loader(manifest, seed=6).epoch(0)]
    assert same(first, list(one.epoch(0)))
    in_order = loader(manifest, shuffle=False)
    assert [name for batch in in_order.epoch(1) for name in batch.ids] == [str(c) for c in range(CLIPS - 1)]
    assert not same(list(in_order.epoch(0)), list(in_order.epoch(1)))  # frames and augmentation still change


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(manifest: Manifest, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # legacy form is a tuple
    list(loader(manifest, workers=workers).epoch(0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index] # as above


# -------------------------------------------------------------------------------------------------- sharding


def test_two_ranks_see_the_joined_batch_of_one(manifest: Manifest) -> None:
    joined = list(loader(manifest, batch_size=4, repeated_augmentation=2).epoch(1))
    ranks = []
    for rank in (0, 1):
        with as_process(rank, 2):
            ranks.append(list(loader(manifest, repeated_augmentation=2).epoch(1)))
    assert len(joined) == len(ranks[0]) == len(ranks[1]) == 2
    for whole, left, right in zip(joined, *ranks, strict=True):
        assert whole.ids == left.ids + right.ids
        assert torch.equal(whole.video, torch.cat([left.video, right.video]))
    names = [name for rank in ranks for batch in rank for name in batch.ids[::2]]
    assert len(names) == len(set(names)) == 8


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 10, 23])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_has_equal_batches_and_no_sample_twice(samples: int, drop_last: bool, world_size: int) -> None:
    plans = [EpochPlan(samples, 2, 0, True, drop_last, rank, world_size) for rank in range(world_size)]
    sizes = [[len(plan.positions(batch)) for batch in range(plan.batches)] for plan in plans]
    assert all(size == sizes[0] for size in sizes)
    assert all(length > 0 for length in sizes[0])
    places = [place for plan in plans for batch in range(plan.batches) for place in plan.positions(batch)]
    assert len(places) == len(set(places))
    assert set(places) <= set(range(samples))
    if drop_last:
        assert set(sizes[0]) <= {2}
    assert len(places) == (
        samples // (2 * world_size) * 2 * world_size if drop_last else samples // world_size * world_size
    )


def test_too_few_clips_for_one_batch_are_an_error(manifest: Manifest) -> None:
    with as_process(0, 2), pytest.raises(RecipeError, match=r"batch_size: 8 on 2 processes.*11 clips.*at most 5"):
        loader(manifest, batch_size=8)


# ------------------------------------------------------------------------------------------- batches of alike clips


def test_clips_alike_in_attributes_or_group_share_batches(manifest: Manifest) -> None:
    rows = [
        row.model_copy(update={"group": str(number % 2), "attributes": {"side": str(number % 3)}})
        for number, row in enumerate(manifest.rows)
    ]
    marked = dataclasses.replace(manifest, rows=tuple(rows))
    of_id = {row.id: row for row in rows}
    settings = {"batch_size": 2, "alike": 2, "alike_share": 1.0}
    for batch in loader(marked, alike_by=("group",), **settings).epoch(0):
        assert len({of_id[name].group for name in batch.ids}) == 1
    with pytest.raises(RecipeError, match=r"alike_by: row '0' has no 'colour'; expected: group, side"):
        loader(marked, alike_by=("colour",), **settings)
    with pytest.raises(ValueError, match="both or none"):
        LoaderSettings(batch_size=2, alike=2)


# -------------------------------------------------------------------------------- repeats, spans, captions, labels


def test_repeats_decode_once_and_augment_each_time(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    plain_frames = Video.frames

    def counted(self: Video, indices: np.ndarray) -> np.ndarray:
        opened.append(self.path)
        return plain_frames(self, indices)

    monkeypatch.setattr(Video, "frames", counted)
    batches = list(loader(manifest, repeated_augmentation=3, tokenizer=Letters()).epoch(0))
    assert len(opened) == len(set(opened)) == 10
    for batch in batches:
        assert batch.ids == tuple(np.repeat(batch.ids[::3], 3))
        assert len({clip.numpy().tobytes() for clip in batch.video}) == 6
        assert batch.labels is not None
        assert batch.text_ids is not None
        assert len(batch.labels) == len(batch.text_ids) == 6
    plain = next(loader(manifest, Plain(), repeated_augmentation=3).epoch(0))
    assert torch.equal(plain.video[0], plain.video[2])


def test_only_frames_inside_the_span_are_read(manifest: Manifest) -> None:
    spans = [(0.5, 1.2), (0.0, 0.1), (2.25, 99.0)]
    rows = [manifest.rows[i].model_copy(update={"span": span}) for i, span in enumerate(spans)]
    part = dataclasses.replace(manifest, rows=tuple(rows))
    seen: dict[str, set[int]] = {"0": set(), "1": set(), "2": set()}
    for cache in (0, 1):
        one = loader(part, Plain(), batch_size=3, cache_megabytes=cache)
        for epoch in range(12):
            for batch in one.epoch(epoch):
                for name, frames in zip(batch.ids, frames_of(batch.video), strict=True):
                    seen[name] |= set(frames)
    assert seen == {"0": set(range(5, 12)), "1": {0}, "2": {23}}


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_spans_count_from_the_first_frame(name: str, manifest: Manifest, tmp_path: Path) -> None:
    """As players and people do, wherever the file's own clock begins."""
    late = remuxed(manifest.video_path(manifest.rows[0]), tmp_path / name, shift=5)
    assert read_video_info(late).start == pytest.approx(5, abs=0.01)
    rows = [manifest.rows[0].model_copy(update={"path": path, "span": (0.5, 1.2)}) for path in ("0.mp4", str(late))]
    for row, reader in zip(
        rows, (ManifestClipDecoder(manifest), ManifestClipDecoder(manifest, cache_bytes=2**20)), strict=True
    ):
        (clip,) = reader.clips(row, lambda times: [np.arange(len(times))])
        assert frames_of(clip.permute(3, 0, 1, 2)[None])[0] == list(range(5, 12))


def test_a_span_without_frames_is_unreadable(manifest: Manifest) -> None:
    row = manifest.rows[0].model_copy(update={"span": (5.0, 6.0)})
    one = EvalLoader(dataclasses.replace(manifest, rows=(row,)), Linspace(2), Plain(), LoaderSettings(2))
    assert list(one) == []
    ((name, path, reason),) = one.unreadable
    assert (name, path) == ("0", "0.mp4")
    assert "no frame from 5 s to 6 s" in reason


def test_captions(manifest: Manifest) -> None:
    def texts(**settings: object) -> set[str]:
        one = loader(manifest, tokenizer=Letters(), cache_megabytes=1, **settings)
        found = set()
        for epoch in range(8):
            for batch in one.epoch(epoch):
                assert batch.text_ids is not None
                for name, ids in zip(batch.ids, batch.text_ids.tolist(), strict=True):
                    text = "".join(map(chr, ids)).strip()
                    assert text[1:] == name
                    found.add(text)
        return found

    assert texts(caption="first") == {f"a{c}" for c in range(CLIPS)}
    assert texts(caption="random") == {f"{kind}{c}" for c in range(CLIPS) for kind in "ab"}
    assert next(loader(manifest, tokenizer=Letters(), caption="none").epoch(0)).text_ids is None


def test_a_sample_without_caption_is_told_at_once(manifest: Manifest) -> None:
    rows = (*manifest.rows[:-1], manifest.rows[-1].model_copy(update={"captions": ()}))
    with pytest.raises(ManifestError, match="1 of 11 rows have no caption, first '10'"):
        loader(dataclasses.replace(manifest, rows=rows), tokenizer=Letters())


def test_absent_labels(manifest: Manifest) -> None:
    rows = tuple(row.model_copy(update={"label": None if i else 2}) for i, row in enumerate(manifest.rows))
    labels = {}
    for batch in loader(dataclasses.replace(manifest, rows=rows), batch_size=1).epoch(0):
        assert batch.labels is not None
        labels[batch.ids[0]] = batch.labels.item()
    assert labels == {str(c): -100 if c else 2 for c in range(CLIPS)}
    rows = tuple(row.model_copy(update={"label": None}) for row in manifest.rows)
    assert next(loader(dataclasses.replace(manifest, rows=rows)).epoch(0)).labels is None


def test_single_frames(manifest: Manifest) -> None:
    one, seen = loader(manifest, Plain(), single_frame=True, cache_megabytes=1), set()
    for epoch in range(10):
        for batch in one.epoch(epoch):
            assert batch.video.shape == (2, 3, 1, SIDE, SIDE)
            seen |= {frames[0] for frames in frames_of(batch.video)}
    assert len(seen) > 15
    views = EvalLoader(manifest, Sparse(4), Plain(), LoaderSettings(1, single_frame=True))
    assert frames_of(next(iter(views))[0].video) == [[11]]


# ------------------------------------------------------------------------------------------- cache and settings


def test_waiting_is_measured(manifest: Manifest) -> None:
    class Slow(Plain):
        def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
            time.sleep(0.02)
            return super().__call__(clip, rng)

    one = loader(manifest, Slow())
    began = time.perf_counter()
    for _ in one.epoch(0):
        time.sleep(0.05)  # the consumer's own work does not count
    spent = time.perf_counter() - began
    assert 10 * 0.02 <= one.data_time <= spent - 5 * 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"workers": -1},
        {"threads": 0},
        {"repeated_augmentation": 0},
        {"seed": -1},
        {"max_unreadable": 1.5},
        {"cache_megabytes": -1},
    ],
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LoaderSettings(**{"batch_size": 1, **wrong})  # type: ignore[arg-type] # free keys in tests


def test_settings_inside_a_recipe_refuse_unknown_keys() -> None:
    class Recipe(BaseModel):
        loader: LoaderSettings

    assert Recipe.model_validate({"loader": {"batch_size": 3}}).loader == LoaderSettings(3)
    with pytest.raises(ValidationError, match="worker"):
        Recipe.model_validate({"loader": {"batch_size": 3, "worker": 1}})
    with pytest.raises(ValidationError, match="batch_size is 0"):
        Recipe.model_validate({"loader": {"batch_size": 0}})


@pytest.mark.parametrize("workers", [0, 2])
def test_spans_that_end_behind_their_video_are_told_once_with_their_count(
    manifest: Manifest, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    spans = {
        0: (0.0, 900.0),
        3: (0.0, 800.0),
        4: (0.0, read_video_info(manifest.video_path(manifest.rows[4])).duration + 0.1),
    }
    rows = tuple(row.model_copy(update={"span": spans.get(at)}) for at, row in enumerate(manifest.rows))
    late = dataclasses.replace(manifest, rows=rows)
    one = loader(late, workers=workers)
    for epoch in range(2):
        list(one.epoch(epoch))
    list(EvalLoader(late, Linspace(frames=2), Plain(), LoaderSettings(batch_size=2, workers=workers)))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2  # in training, and in evaluation
    for line in told:
        assert line.startswith("2 spans end behind their video and are read up to its end, such as '0' to 900 s of ")
