"""The loader: a batch depends on (seed, epoch, place) alone; nothing is padded or swapped where it must not be.

The clips tell what they are: the left half of frame f has the grey level 16 + 8 f, the right half of clip c 16 + 20 c.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.dataset import ClipReader, EpochPlan
from internvideo.data.loader import EvalLoader, Loader, LoaderSettings
from internvideo.data.manifest import Manifest, Sample
from internvideo.data.sampling import Linspace, Sparse
from internvideo.data.video import Video
from internvideo.data.video_writer import write_video
from internvideo.errors import ManifestError, RecipeError, RunError, TextError, VideoError

CLIPS, FRAMES, SIDE, FPS = 11, 24, 32, 10
BYTES = FRAMES * SIDE * SIDE * 3


class Noisy:
    """A random crop with noise, so that any two draws differ."""

    def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
        top, left = rng.randint(0, 17, size=2)
        crop = clip[:, top : top + 16, left : left + 16].permute(3, 0, 1, 2)
        return (crop + torch.from_numpy(rng.randint(0, 3, size=crop.shape).astype(np.uint8))).contiguous()


class Plain:
    """The clip as it is; two views in evaluation, the clip and its mirror image."""

    def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
        return clip.permute(3, 0, 1, 2).contiguous()

    def views(self, clip: Tensor) -> list[Tensor]:
        whole = clip.permute(3, 0, 1, 2).contiguous()
        return [whole, whole.flip(-1)]


class Letters:
    """A tokenizer that is easy to read back; refuses the text "bad"."""

    def encode(self, texts: Sequence[str], /) -> Tensor:
        if "bad" in texts:
            raise TextError("caption", "bad")
        return torch.tensor([[ord(letter) for letter in text.ljust(4)[:4]] for text in texts])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for clip in range(CLIPS):
        frames = np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8)
        frames[:, :, : SIDE // 2] = (16 + 8 * np.arange(FRAMES))[:, None, None, None]
        frames[:, :, SIDE // 2 :] = 16 + 20 * clip
        write_video(root / f"{clip}.mp4", frames, FPS)
    (root / "broken.mp4").write_bytes((root / "0.mp4").read_bytes()[:200])
    return root


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    rows = [Sample(id=str(c), path=f"{c}.mp4", label=c % 3, captions=(f"a{c}", f"b{c}")) for c in range(CLIPS)]
    return Manifest(tuple(rows), ("x", "y", "z"), folder, folder / "m.jsonl")


def with_broken(manifest: Manifest, count: int) -> Manifest:
    rows = list(manifest.rows)
    for place in range(count):
        rows[2 * place] = rows[2 * place].model_copy(update={"path": "broken.mp4"})
    return dataclasses.replace(manifest, rows=tuple(rows))


def loader(manifest: Manifest, transform: object = None, **settings: object) -> Loader:
    extra = {
        key: settings.pop(key) for key in ("rank", "world_size", "tokenizer", "caption", "skipped") if key in settings
    }
    chosen = LoaderSettings(**{"batch_size": 2, "seed": 5, **settings})  # type: ignore[arg-type] # free keys in tests
    return Loader(manifest, Sparse(frames=4), transform or Noisy(), chosen, **extra)  # type: ignore[arg-type] # as above


def same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> bool:
    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))

    return len(ours) == len(theirs) and all(
        a.ids == b.ids and equal(a.video, b.video) and equal(a.labels, b.labels) and equal(a.tokens, b.tokens)
        for a, b in zip(ours, theirs, strict=True)
    )


def frames_of(video: Tensor) -> list[list[int]]:
    """(B, 3, T, S, S) of `Plain` -> frame numbers by the left half."""
    return ((video[:, 1, :, 16, 8].double() - 16) / 8).round().int().tolist()


def clips_of(video: Tensor) -> list[int]:
    return ((video[:, 1, 0, 16, 24].double() - 16) / 20).round().int().tolist()


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
        assert batch.tokens is None
        assert all(frames == sorted(frames) for frames in frames_of(batch.video))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_is_the_rest_of_the_uninterrupted_one(manifest: Manifest, workers: int) -> None:
    settings = {"tokenizer": Letters(), "repeats": 2}
    whole = list(loader(manifest, **settings).epoch(3))
    resumed = loader(manifest, workers=workers, **settings)  # another process would build it anew, too
    for start in [2, 0, len(whole), 4] if workers else range(len(whole) + 1):
        assert same(list(resumed.epoch(3, start)), whole[start:])


def test_batches_do_not_depend_on_the_number_of_workers(manifest: Manifest) -> None:
    broken = with_broken(manifest, 2)
    runs = []
    for workers in (0, 1, 2):
        one = loader(broken, workers=workers, tokenizer=Letters(), max_unreadable=0.5)
        runs.append(([*one.epoch(0), *one.epoch(1)], list(one.unreadable)))
    assert same(runs[0][0], runs[1][0])
    assert same(runs[0][0], runs[2][0])
    assert runs[0][1] == runs[1][1] == runs[2][1]
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
    joined = list(loader(manifest, batch_size=4, repeats=2).epoch(1))
    ranks = [list(loader(manifest, repeats=2, rank=rank, world_size=2).epoch(1)) for rank in (0, 1)]
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
    sizes = [[len(plan.places(batch)) for batch in range(plan.batches)] for plan in plans]
    assert all(size == sizes[0] for size in sizes)
    assert all(length > 0 for length in sizes[0])
    places = [place for plan in plans for batch in range(plan.batches) for place in plan.places(batch)]
    assert len(places) == len(set(places))
    assert set(places) <= set(range(samples))
    if drop_last:
        assert set(sizes[0]) <= {2}
    assert len(places) == (
        samples // (2 * world_size) * 2 * world_size if drop_last else samples // world_size * world_size
    )


def test_too_few_clips_for_one_batch_are_an_error(manifest: Manifest) -> None:
    with pytest.raises(RecipeError, match=r"batch_size: 8 on 2 processes.*11 clips.*at most 5"):
        loader(manifest, batch_size=8, world_size=2)


# -------------------------------------------------------------------------------- repeats, spans, captions, labels


def test_repeats_decode_once_and_augment_each_time(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    plain_frames = Video.frames

    def counted(self: Video, indices: np.ndarray) -> np.ndarray:
        opened.append(self.path)
        return plain_frames(self, indices)

    monkeypatch.setattr(Video, "frames", counted)
    batches = list(loader(manifest, repeats=3, tokenizer=Letters()).epoch(0))
    assert len(opened) == len(set(opened)) == 10
    for batch in batches:
        assert batch.ids == tuple(np.repeat(batch.ids[::3], 3))
        assert len({clip.numpy().tobytes() for clip in batch.video}) == 6
        assert batch.labels is not None
        assert batch.tokens is not None
        assert len(batch.labels) == len(batch.tokens) == 6
    plain = next(loader(manifest, Plain(), repeats=3).epoch(0))
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


def test_a_span_without_frames_is_unreadable(manifest: Manifest) -> None:
    row = manifest.rows[0].model_copy(update={"span": (5.0, 6.0)})
    one = EvalLoader(dataclasses.replace(manifest, rows=(row,)), Linspace(2), Plain(), LoaderSettings(2))
    assert list(one) == []
    ((name, path, reason),) = one.unreadable
    assert (name, path) == ("0", "0.mp4")
    assert "no frame from 5 s to 6 s" in reason


def test_captions(manifest: Manifest) -> None:
    def texts(**settings: object) -> set[str]:
        one = loader(manifest, tokenizer=Letters(), **settings)
        found = set()
        for epoch in range(8):
            for batch in one.epoch(epoch):
                assert batch.tokens is not None
                for name, ids in zip(batch.ids, batch.tokens.tolist(), strict=True):
                    text = "".join(map(chr, ids)).strip()
                    assert text[1:] == name
                    found.add(text)
        return found

    assert texts(caption="first") == {f"a{c}" for c in range(CLIPS)}
    assert texts(caption="random") == {f"{kind}{c}" for c in range(CLIPS) for kind in "ab"}
    assert next(loader(manifest, tokenizer=Letters(), caption="none").epoch(0)).tokens is None


def test_a_sample_without_caption_is_told_at_once(manifest: Manifest) -> None:
    rows = (*manifest.rows[:-1], manifest.rows[-1].model_copy(update={"captions": ()}))
    with pytest.raises(ManifestError, match="1 of 11 samples have no caption, for instance '10'"):
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
    one, seen = loader(manifest, Plain(), single_frame=True), set()
    for epoch in range(10):
        for batch in one.epoch(epoch):
            assert batch.video.shape == (2, 3, 1, SIDE, SIDE)
            seen |= {frames[0] for frames in frames_of(batch.video)}
    assert len(seen) > 15
    views = EvalLoader(manifest, Sparse(4), Plain(), LoaderSettings(1, single_frame=True))
    assert frames_of(next(iter(views))[0].video) == [[11]]


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
            assert sorted([place, *plan.substitutes(place)]) == list(range(samples))
    plan = EpochPlan(1000, 8, 0, True, True, 0, 2)
    assert plan.substitutes(3)[:2] == [19, 20]


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_of_the_user_keep_their_kind(manifest: Manifest, workers: int) -> None:
    row = manifest.rows[0].model_copy(update={"captions": ("bad",)})
    with pytest.raises(TextError, match="caption: bad"):
        list(
            loader(
                dataclasses.replace(manifest, rows=(row,)), batch_size=1, workers=workers, tokenizer=Letters()
            ).epoch(0)
        )


def test_a_dead_worker_is_told(manifest: Manifest) -> None:
    class Deadly(Plain):
        def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
            os._exit(3)

    with pytest.raises(RunError, match="a worker died"):
        list(loader(manifest, Deadly(), workers=1).epoch(0))


# ------------------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_evaluation_yields_every_view_once_in_order(manifest: Manifest, workers: int, batch_size: int) -> None:
    settings = LoaderSettings(batch_size, workers=workers)
    one = EvalLoader(manifest, Sparse(frames=4, views=3), Plain(), settings, tokenizer=Letters())
    pairs, sizes, videos = [], [], []
    for batch, views in one:
        assert views.dtype == np.int64
        assert batch.labels is not None
        assert batch.tokens is not None
        assert batch.labels.tolist() == [int(name) % 3 for name in batch.ids]
        assert ["".join(map(chr, ids)).strip() for ids in batch.tokens.tolist()] == [f"a{name}" for name in batch.ids]
        pairs += list(zip(batch.ids, views.tolist(), strict=True))
        sizes.append(len(batch))
        videos.append(batch.video)
    assert pairs == [(str(c), view) for c in range(CLIPS) for view in range(6)]
    assert set(sizes[:-1]) <= {batch_size}
    assert 0 < sizes[-1] <= batch_size
    video = torch.cat(videos)
    assert clips_of(video[::2]) == [c for c in range(CLIPS) for _ in range(3)]
    assert torch.equal(video[1::2], video[::2].flip(-1))
    assert frames_of(video[:6:2]) == [frames.tolist() for frames in Sparse(frames=4, views=3).test(FRAMES)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_evaluation_shards_without_padding_or_repeats(manifest: Manifest, world_size: int) -> None:
    names: list[str] = []
    for rank in range(world_size):
        one = EvalLoader(manifest, Linspace(2), Plain(), LoaderSettings(4), rank=rank, world_size=world_size)
        mine = [name for batch, views in one for name, view in zip(batch.ids, views, strict=True) if view == 0]
        assert len(mine) == one.samples
        names += mine
    assert sorted(names, key=int) == [str(c) for c in range(CLIPS)]


def test_evaluation_never_substitutes(manifest: Manifest) -> None:
    one = EvalLoader(with_broken(manifest, 3), Linspace(2), Plain(), LoaderSettings(4, max_unreadable=0))
    for _ in range(2):
        names = [name for batch, _ in one for name in batch.ids]
        assert sorted(set(names), key=int) == ["1", "3", "5", "6", "7", "8", "9", "10"]
        assert len(names) == 16
        assert [(name, path) for name, path, _ in one.unreadable] == [(n, "broken.mp4") for n in ("0", "2", "4")]


# ------------------------------------------------------------------------------------------- cache and settings


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
    reader = ClipReader(manifest, cache_bytes=limit)
    for _ in range(2):
        for row in manifest.rows:
            (clip,) = reader.clips(row, lambda n: [np.arange(n)])
            assert clip.shape == (FRAMES, SIDE, SIDE, 3)
            assert reader.cached_bytes <= limit
    assert reader.cached_bytes == 3 * BYTES
    nothing = ClipReader(manifest, cache_bytes=BYTES // 2)
    nothing.clips(manifest.rows[0], lambda n: [np.arange(n)])
    assert nothing.cached_bytes == 0


def test_a_video_with_a_damaged_frame_is_read_as_without_cache(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_frames = Video.frames

    def last_is_damaged(self: Video, indices: np.ndarray) -> np.ndarray:
        if FRAMES - 1 in indices:
            raise VideoError(self.path, "frame 23 is damaged")
        return plain_frames(self, indices)

    monkeypatch.setattr(Video, "frames", last_is_damaged)
    reader = ClipReader(manifest, cache_bytes=10 * BYTES)
    for _ in range(2):
        (clip,) = reader.clips(manifest.rows[0], lambda n: [np.array([0, 5])])
        assert clip.shape[0] == 2
    assert reader.cached_bytes == 0


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
    assert 10 * 0.02 <= one.waited <= spent - 5 * 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"workers": -1},
        {"repeats": 0},
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
