"""Retrieval fine-tuning: large batches in parts, over two processes, of clips that differ in length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import small_world
import torch
from goldens_folder import GOLDENS
from small_world import batch, learn
from torch import Tensor, nn

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.data.caption_choice import with_captions
from internvideo.data.loader import EvalLoader, Loader, LoaderSettings
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.sample import Choice, Sample
from internvideo.data.sampling import OnePerSecond
from internvideo.data.tokenizer import Tokenizer
from internvideo.data.transforms import EvalTransform, TrainTransform
from internvideo.errors import ManifestError
from internvideo.models.clip import average_frames, zero_padding_frames
from internvideo.models.encoder import MAX_LOGIT_SCALE, similarity
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.objectives.contrastive import symmetric_contrastive, symmetric_dual_softmax
from internvideo.pretraining.multimodal import MultimodalSettings, MultimodalStage
from internvideo.tasks.retrieval.stage import RetrievalSettings, RetrievalStage
from internvideo.video.writer import write_video

POOLED = ("text", "frames", "mask", "logit_scale_log", "logits")
Build = Callable[[dict[str, Any]], nn.Module]


def retrieval(build: Callable[[], Any], changes: dict[str, Any]) -> nn.Module:
    return RetrievalStage(build().double(), RetrievalSettings(**changes))


CASES: dict[str, Build] = {
    "retrieval": lambda changes: retrieval(small_world.language_model, changes),
    "retrieval, frame by frame": lambda changes: retrieval(small_world.image_text_model, changes),
    "multimodal": lambda changes: MultimodalStage(
        small_world.language_model().double(), MultimodalSettings(max_captioned_clips=5, **changes)
    ),
}


def gradients(stage: nn.Module, clips: Batch) -> dict[str, Tensor]:
    """Loss and gradients in double precision, gates and fresh readings open."""
    with torch.no_grad():
        drawn = torch.Generator().manual_seed(2)
        for parameter in stage.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=drawn, dtype=parameter.dtype) * 0.05)
    torch.manual_seed(4)
    parts = stage.train()(clips, torch.Generator())
    torch.autograd.backward(parts["loss"])
    found = {name: value.grad for name, value in stage.named_parameters() if value.grad is not None}
    return {**{f"part {name}": value.detach() for name, value in parts.items()}, **found}


WHOLE: dict[str, dict[str, Tensor]] = {}


def gradients_of_the_whole(name: str, clips: Batch) -> dict[str, Tensor]:
    if name not in WHOLE:
        WHOLE[name] = gradients(CASES[name]({}), clips)
    return WHOLE[name]


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bounds", [{"encode_chunk_size": 3}, {"encode_chunk_size": 4, "similarity_chunk_size": 3}])
def test_a_batch_in_parts_has_the_loss_and_gradients_of_the_whole(name: str, bounds: dict[str, int]) -> None:
    clips = batch(8)
    mask = torch.ones(8, small_world.FRAMES, dtype=torch.bool)
    mask[2, 1:] = False
    clips = replace(clips, frame_mask=mask)
    whole, parts = gradients_of_the_whole(name, clips), gradients(CASES[name](bounds), clips)
    assert set(whole) == set(parts)
    assert len(whole) > 20
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-9, atol=1e-12)


def test_parts_keep_the_activations_of_one_part_alone() -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    sizes = {}
    for changes in ({}, {"encode_chunk_size": 2, "similarity_chunk_size": 2}):
        stage = retrieval(small_world.language_model, changes)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            stage(batch(16), torch.Generator())
        sizes[bool(changes)] = sum(kept)
    assert sizes[True] < 0.2 * sizes[False], sizes


def test_a_contrastive_loss_in_rows_is_the_same_one() -> None:
    drawn = torch.Generator().manual_seed(0)
    video, text = (torch.randn(11, 7, generator=drawn, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(30.0, dtype=torch.float64, requires_grad=True)
    found = []
    for rows in (None, 1, 4, 11, 100):
        loss = symmetric_contrastive(video, text, scale, rows)
        found.append((loss.detach(), *torch.autograd.grad(loss, (video, text, scale))))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


# --- two processes ---------------------------------------------------------------------------------------------------


def _half(folder: Path) -> None:
    with distributed.process_group(torch.device("cpu")):
        rank = distributed.rank()
        video, tokens = torch.load(folder / "batch")
        cut = slice(0, 5) if rank == 0 else slice(5, 8)  # unequal shares
        own = Batch(video[cut], tuple("abcdefgh")[cut], None, tokens[cut])
        model = small_world.language_model().double()
        settings = RetrievalSettings(encode_chunk_size=2, similarity_chunk_size=3)
        stage = RetrievalStage(model, settings)
        found = gradients(torch.nn.parallel.DistributedDataParallel(stage), own)
        torch.save({name.removeprefix("module."): value for name, value in found.items()}, folder / str(rank))


def test_two_processes_in_parts_learn_what_one_learns_from_the_whole_batch(tmp_path: Path) -> None:
    torch.save((batch(8).video, batch(8).text_ids), tmp_path / "batch")
    forked.two(_half, tmp_path)
    alone = gradients(retrieval(small_world.language_model, {}), batch(8))
    for rank in range(2):
        found = torch.load(tmp_path / str(rank))
        assert set(found) == set(alone)
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["symmetric", "dual_softmax"])
@pytest.mark.parametrize("build", [small_world.language_model, small_world.image_text_model])
def test_retrieval_matches_clips_and_captions(build: Callable[[], Any], loss: Any) -> None:
    stage = RetrievalStage(build(), RetrievalSettings(loss=loss))
    losses = learn(stage, batch(12), 30)
    assert losses[-1] < 0.6 * losses[0]


def test_the_dual_softmax_loss_needs_all_rows_and_pairs() -> None:
    with pytest.raises(ValueError, match="leave out similarity_chunk_size"):
        RetrievalStage(small_world.language_model(), RetrievalSettings(loss="dual_softmax", similarity_chunk_size=4))
    with pytest.raises(ValueError, match="not pairs"):
        symmetric_dual_softmax(torch.zeros(2, 3), torch.zeros(3, 3), 1.0)


def test_the_scale_stays_within_a_hundred_and_the_decoder_rests() -> None:
    model = small_world.language_model()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    stage = RetrievalStage(model, RetrievalSettings())
    stage(batch(4), torch.Generator())
    assert model.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)
    resting = {name for name, value in stage.named_parameters() if not value.requires_grad}
    assert resting == {f"model.caption_decoder.{name}" for name, _ in model.caption_decoder.named_parameters()} | {  # type: ignore[union-attr]  # it has one
        "model.text.mask_embedding"
    }


# --- frames with masks -----------------------------------------------------------------------------------------------


def pooled() -> tuple[torch.Tensor, ...]:
    with np.load(GOLDENS / "tasks/retrieval/retrieval.npz") as arrays:
        return tuple(torch.from_numpy(arrays[f"pool_{name}"]) for name in POOLED)


@pytest.mark.parity
@pytest.mark.parametrize("row", range(len(pooled()[-1])))
def test_stored_pooled_similarity(row: int) -> None:
    text, frames, mask, scale, expected = pooled()
    assert expected.shape == (len(text), len(frames))
    video = average_frames(frames.double(), mask.bool())
    found = similarity(text[row : row + 1].double(), video, scale.double().exp())
    torch.testing.assert_close(found[0], expected[row].double(), rtol=1e-6, atol=1e-6)


def test_masked_mean_and_filling() -> None:
    frames = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert average_frames(frames, mask).tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert torch.equal(average_frames(frames, None), frames.mean(dim=1))
    video = torch.ones(2, 3, 3, 1, 1)
    assert zero_padding_frames(video, mask).sum(dim=(1, 3, 4)).tolist() == [[3, 3, 0], [0, 0, 0]]
    assert zero_padding_frames(video, None) is video


@pytest.mark.parametrize("build", [small_world.language_model, small_world.image_text_model])
def test_what_stands_behind_the_mask_does_not_count(build: Callable[[], Any]) -> None:
    model = build().eval()
    video = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    other = video.clone()
    other[1, :, 2:] = 5.0
    with torch.no_grad():
        first, second = model.encode_video(video, mask), model.encode_video(other, mask)
        assert torch.equal(first, second)
        assert not torch.allclose(model.encode_video(other), first)
        if not isinstance(model.visual, UniFormerV2):  # frames that it sees one by one
            torch.testing.assert_close(first[1:], model.encode_video(video[1:, :, :2]))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Two films of 10 frames a second whose frame i is of grey i: 2.4 s and 9 s."""
    folder = tmp_path_factory.mktemp("films")
    rows = []
    for name, frames in (("short", 24), ("long", 90)):
        grey = (np.full((32, 32, 3), 2 * number, dtype=np.uint8) for number in range(frames))
        write_video(folder / f"{name}.mp4", grey, 10, crf=0)
        rows.append(Sample(id=name, path=f"{name}.mp4", captions=(f"a {name} film", f"{name}, again")))
    return Manifest(tuple(rows), (), folder, folder / "films.jsonl")


def places(video: Tensor) -> list[int]:
    """Numbers of the frames (3, T, S, S) of a film."""
    return (video.float().mean(dim=(0, 2, 3)) / 2).round().int().tolist()


def test_one_frame_a_second_with_masks_in_training_and_testing(films: Manifest) -> None:
    sampler, settings = OnePerSecond(frames=5), LoaderSettings(batch_size=2, shuffle=False)
    tokenizer = Tokenizer(context_length=16)
    loader = Loader(films, sampler, TrainTransform(size=32, crop="center", flip=False), settings, tokenizer=tokenizer)
    batches = [next(loader.epoch(0)), next(iter(EvalLoader(films, sampler, EvalTransform(size=32), settings)))[0]]
    for found in batches:
        assert found.video.shape == (2, 3, 5, 32, 32)
        assert found.frame_mask is not None
        assert found.frame_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
        assert places(found.video[0]) == [0, 10, 20, 0, 0]
        assert places(found.video[1]) == [0, 20, 40, 60, 80]
    single = list(EvalLoader(films, sampler, EvalTransform(size=32), LoaderSettings(batch_size=1)))
    assert [found.frame_mask.tolist() for found, _ in single] == [[list(row)] for row in batches[1].frame_mask.tolist()]  # type: ignore[union-attr]  # both have one


def test_a_span_is_sampled_from_its_start(films: Manifest) -> None:
    rows = Manifest((films.rows[1].model_copy(update={"span": (2.0, 4.5)}),), (), films.root, films.source)
    loader = EvalLoader(rows, OnePerSecond(frames=5), EvalTransform(size=32), LoaderSettings(batch_size=1))
    found, _ = next(iter(loader))
    assert places(found.video[0])[:3] == [20, 30, 40]
    assert found.frame_mask.tolist() == [[True] * 3 + [False] * 2]  # type: ignore[union-attr]  # it has one


# --- captions --------------------------------------------------------------------------------------------------------


def test_captions_are_chosen_before_reading(films: Manifest) -> None:
    assert with_captions(films, "random") is films
    each = with_captions(films, "each").rows
    assert [(row.id, row.captions) for row in each] == [
        ("short#0", ("a short film",)),
        ("short#1", ("short, again",)),
        ("long#0", ("a long film",)),
        ("long#1", ("long, again",)),
    ]
    assert with_captions(films, "first").rows[1].captions == ("a long film",)
    assert with_captions(films, "joined").rows[0].captions == ("a short film short, again",)
    options = Choice(options=("red", "blue"), answer=1)
    other = (films.rows[0].model_copy(update={"choices": options}), films.rows[1].model_copy(update={"label": 0}))
    assert [row.captions for row in with_captions(replace(films, rows=other, classes=("run",)), "answer").rows] == [
        ("blue",),
        ("run",),
    ]
    with pytest.raises(ManifestError, match="no caption, first 'short'"):
        with_captions(films, "answer")
    bare = replace(films, rows=(films.rows[0].model_copy(update={"captions": ()}),))
    assert with_captions(bare, "random") is bare
    with pytest.raises(ManifestError, match="no caption, first 'short'"):
        with_captions(bare, "each")
    assert read_manifest(small_world.world()).rows[0].captions
