"""Videos and images in turn, mixed clips: the same batches wherever an epoch is taken up."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from grey_clips import CLIPS, Letters, Plain, frames_of, loader, same
from processes import as_process

from internvideo.data.loader import Loader, LoaderSettings
from internvideo.data.manifest import Manifest, read_manifest, write_manifest
from internvideo.data.mixture import AlternatingLoader, MixedLoader, join_manifests
from internvideo.data.mixup import Mixup
from internvideo.data.sampling import Dense, DensePretrain, FrameSampler
from internvideo.errors import ManifestError


def few(manifest: Manifest, count: int) -> Manifest:
    return dataclasses.replace(manifest, rows=manifest.rows[:count])


def alternating(manifest: Manifest, images: int = 7) -> AlternatingLoader:
    """Five video batches of two an epoch; image batches of three, so that an epoch of images is another length."""
    words = Letters()
    pictures = loader(few(manifest, images), batch_size=3, single_frame=True, tokenizer=words, seed=9)
    return AlternatingLoader(loader(manifest, tokenizer=words), pictures)


def test_videos_and_images_take_turns(manifest: Manifest) -> None:
    both = alternating(manifest)
    batches = list(both.epoch(0))
    assert len(batches) == len(both) == 2 * (CLIPS // 2)
    assert [batch.video.shape[2] for batch in batches] == [4, 1] * (CLIPS // 2)
    assert [len(batch) for batch in batches] == [2, 3] * (CLIPS // 2)
    assert all(batch.text_ids is not None for batch in batches)
    assert same(batches[::2], list(loader(manifest, tokenizer=Letters()).epoch(0)))


def test_images_go_on_where_the_last_epoch_left_them(manifest: Manifest) -> None:
    both = alternating(manifest)
    shown = [batch for epoch in range(3) for batch in list(both.epoch(epoch))[1::2]]
    own = [batch for epoch in range(8) for batch in both.images.epoch(epoch)]
    assert same(shown, own[: len(shown)])
    assert all(first.ids != second.ids or not torch.equal(first.video, second.video) for first, second in pairwise(own))


@pytest.mark.parametrize("images", [3, 7])
def test_an_alternating_epoch_is_taken_up_anywhere(manifest: Manifest, images: int) -> None:
    for epoch in (0, 2):
        whole = list(alternating(manifest, images).epoch(epoch))
        for start in range(len(whole) + 1):
            assert same(list(alternating(manifest, images).epoch(epoch, start)), whole[start:]), start


def test_taking_up_behind_a_video_does_not_read_it_again(manifest: Manifest) -> None:
    both = alternating(manifest)
    asked: list[tuple[int, int]] = []
    original = both.videos.epoch
    both.videos.epoch = lambda k, start=0: (asked.append((k, start)), original(k, start))[1]  # type: ignore[method-assign]  # a spy
    list(both.epoch(1, 3))
    assert asked == [(1, 2)]


def test_both_waits_count(manifest: Manifest) -> None:
    both = alternating(manifest)
    next(both.epoch(0))
    assert both.data_time == both.videos.data_time > 0
    list(both.epoch(0))
    assert both.data_time == both.videos.data_time + both.images.data_time > both.videos.data_time > 0


# --- joined manifests ------------------------------------------------------------------------------------------------


def another(tmp_path: Path, manifest: Manifest, classes: tuple[str, ...] = ("z", "w")) -> Manifest:
    """Four of the clips, listed by a manifest in another folder."""
    rows = [
        row.model_copy(update={"path": str(manifest.video_path(row)), "label": number % 2})
        for number, row in enumerate(manifest.rows[:4])
    ]
    write_manifest(tmp_path / "other" / "rows.jsonl", rows, classes)
    return read_manifest(tmp_path / "other" / "rows.jsonl")


def test_manifests_are_joined_by_the_names_of_their_classes(manifest: Manifest, tmp_path: Path) -> None:
    both = join_manifests(manifest, "more", another(tmp_path, manifest), 2)
    assert both.classes == ("x", "y", "z", "w")
    assert both.rows[:CLIPS] == manifest.rows
    assert [row.id for row in both.rows[CLIPS:]] == ["more/0", "more/1", "more/2", "more/3"]
    assert [row.label for row in both.rows[CLIPS:]] == [2, 3, 2, 3]
    assert all(both.video_path(row).is_file() and not Path(row.path).is_absolute() for row in both.rows)
    assert {(row.attributes["source"], row.attributes["stride"]) for row in both.rows[CLIPS:]} == {("more", "2")}
    assert both.fingerprint != manifest.fingerprint
    assert "stride" not in join_manifests(manifest, "more", another(tmp_path, manifest)).rows[-1].attributes
    with pytest.raises(ManifestError, match="'more/0' is also one of"):
        join_manifests(both, "more", another(tmp_path, manifest))


@pytest.mark.parametrize("sampler", [Dense(frames=4, stride=4), DensePretrain(frames=4, stride=4)])
def test_each_source_is_read_at_its_own_stride(manifest: Manifest, tmp_path: Path, sampler: FrameSampler) -> None:
    both = join_manifests(manifest, "more", another(tmp_path, manifest), 2)
    settings = LoaderSettings(batch_size=3, drop_last=False)
    steps: dict[bool, set[int]] = {True: set(), False: set()}
    for batch in Loader(both, sampler, Plain(), settings).epoch(0):
        for name, frames in zip(batch.ids, frames_of(batch.video), strict=True):
            steps[name.startswith("more/")] |= {b - a for a, b in pairwise(frames)}
    assert steps[True] <= {2, 3}
    assert steps[False] <= {4, 5}


# --- mixed clips -----------------------------------------------------------------------------------------------------


def mixed(manifest: Manifest, *, seed: int = 3, smoothing: float = 0.0) -> MixedLoader:
    mix = Mixup(num_classes=3, mixup_alpha=0.8, cutmix_alpha=0.0, smoothing=smoothing)
    return MixedLoader(loader(manifest, seed=5), mix, seed=seed)


def test_targets_are_soft_and_tell_what_was_mixed(manifest: Manifest) -> None:
    source = loader(manifest, seed=5)
    both = mixed(manifest)
    assert len(both) == len(source)
    somewhere = 0
    for plain, batch in zip(source.epoch(0), both.epoch(0), strict=True):
        assert batch.ids == plain.ids
        assert batch.video.dtype == torch.uint8
        assert batch.labels is not None
        assert plain.labels is not None
        assert batch.labels.dtype == torch.float32
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(2))
        # The second target is the first with the shares exchanged: both say lambda, and the pixels must agree.
        if plain.labels[0] == plain.labels[1]:
            continue
        share = batch.labels[0, plain.labels[0]].item()
        expected = plain.video.float() * share + plain.video.flip(0).float() * (1 - share)
        torch.testing.assert_close(batch.video.float(), expected, atol=0.51, rtol=0)
        somewhere += 0.01 < share < 0.99
    assert somewhere
    assert both.data_time > 0


def test_targets_are_smoothed(manifest: Manifest) -> None:
    labels = next(mixed(manifest, smoothing=0.3).epoch(0)).labels
    assert labels is not None
    assert bool((labels >= 0.1 - 1e-6).all())


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_mixed_epoch_is_taken_up_anywhere(manifest: Manifest, epoch: int) -> None:
    whole = list(mixed(manifest).epoch(epoch))
    for start in range(len(whole) + 1):
        assert same(list(mixed(manifest).epoch(epoch, start)), whole[start:]), start


def test_seed_rank_and_epoch_mix_differently(manifest: Manifest) -> None:
    first = next(mixed(manifest).epoch(0))
    with as_process(1, 2):
        another = mixed(manifest)
    another.loader = loader(manifest, seed=5)  # the same clips: the first process's batches
    for other in (mixed(manifest, seed=4), another):
        batch = next(other.epoch(0))
        assert batch.ids == first.ids
        assert not torch.equal(batch.video, first.video)


def test_a_sample_without_label_cannot_be_mixed(manifest: Manifest) -> None:
    rows = (*manifest.rows[:-1], manifest.rows[-1].model_copy(update={"label": None}))
    without = dataclasses.replace(manifest, rows=rows, source=Path("some.jsonl"))
    with pytest.raises(ManifestError, match=r"some\.jsonl: 1 of 11 rows have no label, first '10'"):
        mixed(without)
