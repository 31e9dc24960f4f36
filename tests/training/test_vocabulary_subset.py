"""Training only the token rows that occur: same model, same files, and no other word is ever written."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_world
import torch
from small_world import WORDS, batch, small_recipe

from internvideo.data.manifest import read_manifest
from internvideo.data.tokenizer import Tokenizer
from internvideo.errors import RecipeError
from internvideo.objectives.captioning import after_end, caption_loss
from internvideo.pipeline import load_trained, run_recipe
from internvideo.pretraining.multimodal import MultimodalSettings, MultimodalStage
from internvideo.recipe import build_recipe
from internvideo.training.vocabulary_subset import (
    MASKED_BIAS,
    logit_indices,
    reset_masked_bias,
    train_subset,
    used_token_ids,
)
from internvideo.weights.state import load_state

TEXTS = [row.captions[0] for row in read_manifest(small_world.world()).rows]


def test_ids_are_those_of_the_texts_with_padding_start_and_end() -> None:
    ids = used_token_ids(["a circle", "a square"], WORDS).tolist()
    tokenizer = Tokenizer(context_length=WORDS)
    assert ids == sorted({*tokenizer.encode("a circle")[0].tolist(), *tokenizer.encode("a square")[0].tolist()})
    assert {0, tokenizer.start, tokenizer.end} < set(ids)


def test_the_model_is_the_same_and_its_loss_is_that_of_the_words_that_occur() -> None:
    clips = batch(8)
    assert clips.text_ids is not None
    whole, part = small_world.language_model(), small_world.language_model()
    ids = used_token_ids(TEXTS, WORDS)
    train_subset(part, ids)
    video = whole.normalize(clips.video)
    expected, found = whole(video, clips.text_ids), part(video, clips.text_ids)
    assert torch.equal(found.text, expected.text)
    assert expected.caption_logits is not None
    torch.testing.assert_close(found.caption_logits, expected.caption_logits[..., ids])
    rows = logit_indices(part, clips.text_ids)
    assert torch.equal(ids[rows], clips.text_ids)
    loss = caption_loss(found.caption_logits, rows, after_end(clips.text_ids))
    assert loss < caption_loss(expected.caption_logits, clips.text_ids)
    assert torch.equal(part.eval().text(clips.text_ids), whole.eval().text(clips.text_ids))


def test_files_keep_their_form_and_only_rows_that_occur_change() -> None:
    before = small_world.language_model().state_dict()
    model = small_world.language_model()
    stage = MultimodalStage(model, MultimodalSettings())
    ids = used_token_ids(TEXTS, WORDS)
    train_subset(model, ids)
    small_world.learn(stage, batch(8), steps=3)
    after = model.state_dict()
    assert after.keys() == before.keys()
    other = torch.ones(len(after["text.token_embedding.weight"]), dtype=torch.bool)
    other[ids] = False
    for name in ("text.token_embedding.weight", "caption_decoder.predictor.4.weight"):
        assert torch.equal(after[name][other], before[name][other])
        assert not torch.equal(after[name][~other], before[name][~other])
    assert bool((after["caption_decoder.predictor.4.bias"][other] == MASKED_BIAS).all())
    again = small_world.language_model()
    load_state(again, after)
    train_subset(again, ids)
    load_state(again, after)  # into rows as into tables
    assert all(torch.equal(value, after[name]) for name, value in again.state_dict().items())


def test_a_run_writes_weights_that_say_only_trained_words_and_a_resumed_run_the_same_ones(tmp_path: Path) -> None:
    changes = {"settings": {"vocabulary": "occurring"}}
    path = run_recipe(build_recipe(small_recipe("multimodal", **changes)), tmp_path / "whole")
    short = small_recipe("multimodal", **changes, schedule={"steps": 4})
    run_recipe(build_recipe(short), tmp_path / "parts")
    resumed = run_recipe(build_recipe(small_recipe("multimodal", **changes)), tmp_path / "parts")
    first, second = (load_trained(one).model for one in (path, resumed))
    assert first.state_dict().keys() == small_world.language_model().state_dict().keys()
    texts = [text for row in read_manifest(small_world.world()).rows for text in row.captions]
    ids = set(used_token_ids(texts, WORDS).tolist())
    video = first.normalize(batch(8).video)
    for nucleus in (0.0, 1.0):
        draws = torch.Generator().manual_seed(1)
        written = first.generate(video, start=49406, end=49407, top_p=nucleus, generator=draws)
        assert set(written.flatten().tolist()) <= ids
    assert second.state_dict().keys() == first.state_dict().keys()
    reset_masked_bias(first)
    assert not bool((first.state_dict()["caption_decoder.predictor.4.bias"] <= MASKED_BIAS).any())


def test_averages_and_streamed_captions_are_refused() -> None:
    averaged = small_recipe("multimodal", settings={"vocabulary": "occurring"}, loop={"ema_decay": 0.9})
    with pytest.raises(RecipeError, match="ema_decay"):
        run_recipe(build_recipe(averaged), Path("unused"))
