"""VideoModel: what it answers is what its module computes on the clips of its rule, and what it cannot do is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_apps
import small_world
import torch
from small_apps import FAMILIES, random_model

from internvideo import load
from internvideo.data.manifest import read_manifest
from internvideo.data.preprocessing import Span
from internvideo.data.tokenizer import Tokenizer
from internvideo.errors import InternVideoError, RecipeError, TextError, VideoError
from internvideo.inference.video_model import VideoModel
from internvideo.models.video_language import VideoLanguage
from internvideo.pipeline import load_trained
from internvideo.recipe import build_recipe
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.recognition.evaluate import RecognitionOptions
from internvideo.tasks.recognition.evaluate import predict as predict_recognition
from internvideo.tasks.zero_shot.templates import ACTION_TEMPLATES
from internvideo.training.model_setup import build_model
from internvideo.video.reader import Video, read_frames
from internvideo.weights.state import save_model

ABLE = {
    "masked": {"video"},
    "multimodal": {"video", "text", "caption", "classify"},
    "supervised": {"video", "classify"},
    "supervised_multimodal": {"video", "classify"},
    "interaction": {"video", "classify"},
    "viclip": {"video", "text", "classify"},
    "clip": {"video", "text", "classify"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_embeddings_and_tokens(family: str) -> None:
    model, paths = random_model(family), small_apps.clips()
    assert model.capabilities == ABLE[family]
    features = model.encode_video(paths)
    assert features.shape == (3, model.embed_dim)
    assert features.dtype == torch.float32
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not torch.allclose(features[0], features[1], atol=1e-4)
    (clips,) = model.read(paths)
    raw = model.encode_clips(clips)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1), features)
    tokens = model.tokens(clips)
    assert tokens.ndim == 3
    assert len(tokens) == 3
    assert not tokens.requires_grad
    # One by one, and in another order: the same vectors.
    torch.testing.assert_close(model.encode_video(paths[::-1], batch_size=1), features.flip(0), rtol=1e-4, atol=1e-5)
    assert model.encode_video([]).shape == (0, model.embed_dim)


@pytest.mark.parametrize("family", ["masked", "supervised", "supervised_multimodal", "multimodal"])
def test_embeddings_are_those_of_the_module(family: str) -> None:
    model: Any = random_model(family)
    module = model.module
    video = module.normalize(next(model.read(small_apps.clips())))
    with torch.no_grad():
        if family == "masked":
            expected = module.encode(video, torch.zeros(3, module.config.num_tokens, dtype=torch.bool)).mean(1)
        elif family == "multimodal":
            expected = module.encode_video(video)
        else:
            expected = module.features(video)
    torch.testing.assert_close(model.encode_video(small_apps.clips(), normalize=False), expected)


@pytest.mark.parametrize("family", ["masked", "multimodal", "supervised_multimodal", "viclip"])
def test_other_numbers_give_nearly_the_same(family: str) -> None:
    model = random_model(family)
    whole = model.encode_video(small_apps.clips())
    for precision in ("bfloat16", "float16"):
        again = VideoModel(model.name, random_model(family).module, precision=precision)  # type: ignore[arg-type]  # both are
        half = again.encode_video(small_apps.clips())
        assert half.dtype == torch.float32
        assert (half * whole).sum(1).min() > 0.999
        assert not torch.equal(half, whole)
        if "text" in again.capabilities:
            text = again.encode_text(["a dog"])
            assert float((text * model.encode_text(["a dog"])).sum()) > 0.999
        if "caption" in again.capabilities:
            assert len(again.caption(small_apps.clips(1), max_length=4)) == 1
    assert again.module.normalize.mean.dtype == torch.float32  # type: ignore[union-attr]  # a Normalize


def test_features_can_train_a_head() -> None:
    features = random_model("masked").encode_video(small_apps.clips())
    head = torch.nn.Linear(features.shape[1], 2)
    torch.autograd.backward(head(features).sum())
    assert head.weight.grad is not None


# ----------------------------------------------------------------------------------------------------- what is read


def test_spans_and_frames_are_pieces_of_the_file() -> None:
    model, path = random_model("multimodal"), small_apps.clips()[0]
    with Video(path) as video:
        times, frames = video.info.times, video.frames(range(video.info.frames))
    end = float(times[7])
    piece = model.encode_video(frames[:7])
    torch.testing.assert_close(model.encode_video(Span(path, 0.0, end)), piece)
    torch.testing.assert_close(model.encode_video(torch.from_numpy(frames[:7])), piece)
    mixed = model.encode_video([str(path), Span(path, 0.0, end), frames])
    torch.testing.assert_close(mixed[0], mixed[2])
    assert not torch.allclose(mixed[0], mixed[1], atol=1e-4)


def test_a_span_between_two_frames_is_the_frame_that_stands_there() -> None:
    model, path = random_model("multimodal"), small_apps.clips()[0]
    with Video(path) as video:
        times = video.info.times
        inside = model.preprocessing.clip(video, float(times[3]) + 0.001, float(times[3]) + 0.002)
    expected = model.preprocessing.from_frames(read_frames(path, [3]))
    assert torch.equal(inside, expected)


@pytest.mark.parametrize(("start", "end"), [(1e3, 2e3), (-3.0, -2.0)])
def test_a_span_outside_of_the_video_is_told(start: float, end: float) -> None:
    with pytest.raises(VideoError, match=r"no frame from .*expected: 0\.000 s to"):
        random_model("masked").encode_video(Span(small_apps.clips()[0], start, end))


def test_a_reversed_span_is_told() -> None:
    with pytest.raises(VideoError, match="span from 2 s to 1 s"):
        Span("a.mp4", 2, 1)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((4, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 1), np.uint8)],
)
def test_frames_of_another_form_are_told(frames: Any) -> None:
    with pytest.raises(VideoError, match=r"uint8 \(T, H, W, 3\)"):
        random_model("masked").encode_video(frames)
    with pytest.raises(VideoError, match="a int;"):
        random_model("masked").encode_video([3])  # type: ignore[list-item]  # the mistake


# ------------------------------------------------------------------------------------------------------------ texts


def test_similarity_takes_clips_texts_and_their_embeddings() -> None:
    model, paths = random_model("multimodal"), small_apps.clips()
    texts = ["a dog runs", "nobody is here"]
    video, text = model.encode_video(paths), model.encode_text(texts)
    torch.testing.assert_close(model.similarity(paths, texts), video @ text.T)
    torch.testing.assert_close(model.similarity(3 * video, 2 * text), video @ text.T)
    assert model.similarity(str(paths[0]), "a dog runs").shape == (1, 1)
    module = model.module
    assert isinstance(module, VideoLanguage)
    ids = Tokenizer(context_length=32).encode(texts)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(texts, normalize=False), module.encode_text(ids))
    assert model.encode_text([]).shape == (0, model.embed_dim)


@pytest.mark.parametrize("text", ["", "  ", None, 3])
def test_what_is_no_text_is_told(text: Any) -> None:
    with pytest.raises(TextError, match="text 1"):
        random_model("multimodal").encode_text(["fine", text])


# ---------------------------------------------------------------------------------------------------------- labels


def test_a_classifier_averages_the_softmax_of_its_views() -> None:
    model, paths = random_model("supervised_multimodal"), small_apps.clips()
    answers = model.classify(paths, num_clips=3, batch_size=2)
    for path, answer in zip(paths, answers, strict=True):
        views = torch.stack(model.preprocessing.read(path, num_clips=3))
        expected = model.logits(views).double().softmax(1).mean(0)
        assert list(answer) == [model.class_names[i] for i in expected.argsort(descending=True)]
        assert [answer[name] for name in model.class_names] == pytest.approx(expected.tolist(), abs=1e-6)
    assert answers != model.classify(paths)
    assert model.class_names == ("0", "1", "2")


@pytest.mark.parametrize("family", ["multimodal", "viclip", "clip"])
def test_zero_shot_averages_the_softmax_of_every_template(family: str) -> None:
    model, path = random_model(family), small_apps.clips()[0]
    labels = ["running", "falling", "sitting"]
    answer = model.classify(path, labels)[0]
    video = model.encode_video(path).double()
    total = torch.zeros(3, dtype=torch.double)
    for template in ACTION_TEMPLATES:
        text = model.encode_text([template.replace("{}", label) for label in labels]).double()
        total += (model.scale * video @ text.T).softmax(1)[0]
    assert [answer[label] for label in labels] == pytest.approx((total / 16).tolist(), abs=1e-5)
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    plain = model.classify(path, labels, templates=["{}"])[0]
    assert plain != answer


def test_a_trained_run_scores_as_its_evaluation_does() -> None:
    path = small_apps.trained("supervised")
    trained, manifest = load_trained(path, device="cpu"), read_manifest(small_world.world())
    table = predict_recognition(trained, manifest, RecognitionOptions(device="cpu"))
    model = load(path, device="cpu")
    answers = model.classify([manifest.video_path(row) for row in manifest.rows])
    found = [[answer[name] for name in manifest.classes] for answer in answers]
    np.testing.assert_allclose(found, recognition.probabilities(table), rtol=1e-5)
    assert model.class_names == trained.classes


@pytest.mark.parametrize("stage", ["interaction", "supervised_multimodal"])
def test_a_temporal_stride_is_kept(stage: str, tmp_path: Path) -> None:
    tree = small_world.small_recipe(stage, schedule={"steps": 1}, settings={"temporal_stride": 2})
    overrides = tree["model"]["overrides"]
    overrides.get("multimodal", overrides)["frames"] = 2
    recipe, manifest, path = build_recipe(tree), read_manifest(small_world.world()), tmp_path / "model.safetensors"
    told = {"recipe": json.dumps(recipe.resolved()), "classes": json.dumps(manifest.classes)}
    save_model(path, build_model(recipe, len(manifest.classes)), told)
    trained = load_trained(path, device="cpu")
    table = predict_recognition(trained, manifest, RecognitionOptions(device="cpu"))
    model = load(path, device="cpu")
    answers = model.classify([manifest.video_path(row) for row in manifest.rows[:5]])
    found = [[answer[name] for name in manifest.classes] for answer in answers]
    column = "fused" if stage == "interaction" else None
    np.testing.assert_allclose(found, recognition.probabilities(table, column)[:5], rtol=1e-4)
    assert load(str(model.save_pretrained(tmp_path / "hub")), device="cpu").config == model.config


# --------------------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_what_the_decoder_writes(beams: int) -> None:
    model, paths = random_model("multimodal"), small_apps.clips()
    module, tokenizer = model.module, Tokenizer(context_length=32)
    assert isinstance(module, VideoLanguage)
    video = module.normalize(next(model.read(paths)))
    ids = module.generate(video, start=tokenizer.start, end=tokenizer.end, max_length=6, num_beams=beams)
    written = model.caption(paths, num_beams=beams, max_length=6, batch_size=2)
    assert written == [tokenizer.decode(row, special=False) for row in ids]
    assert all("<|" not in text for text in written)


# ------------------------------------------------------------------------------------------------------- mistakes


def one_line(error: pytest.ExceptionInfo[InternVideoError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_a_model_cannot_do_is_said_with_what_it_can() -> None:
    masked, supervised = random_model("masked"), random_model("supervised")
    for ask, what in (
        (lambda: masked.encode_text("a"), "cannot read texts"),
        (lambda: masked.classify(small_apps.clips()), "cannot classify"),
        (lambda: masked.caption(small_apps.clips()), "cannot write captions"),
        (lambda: masked.logits(torch.zeros(1, 3, 4, 32, 32)), "cannot score classes"),
    ):
        with pytest.raises(RecipeError, match=what) as error:
            ask()
        assert "expected: video" in one_line(error)
    with pytest.raises(RecipeError, match="labels for a classifier; expected: its own 3 classes"):
        supervised.classify(small_apps.clips(), ["a", "b"])


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (None, "none"),
        (["a"], "at least 2"),
        ("ab", "at least 2"),
        (["a", "b", "a"], "'a' twice"),
        (["a", 3], "3; expected: texts"),
        (["a", " "], "' '; expected: texts"),
    ],
)
def test_labels_of_a_text_model_are_checked(labels: Any, found: str) -> None:
    with pytest.raises(RecipeError, match=found):
        random_model("multimodal").classify(small_apps.clips(), labels)


@pytest.mark.parametrize(
    "settings", [{"num_clips": 0}, {"num_clips": 2}, {"batch_size": 0}, {"templates": ["no place"]}]
)
def test_settings_out_of_range_are_told(settings: Any) -> None:
    with pytest.raises(RecipeError, match=r"num_clips|batch_size|templates"):
        random_model("multimodal").classify(small_apps.clips(), ["a", "b"], **settings)
    with pytest.raises(RecipeError, match="caption"):
        random_model("multimodal").caption(small_apps.clips(), max_length=1)


def test_an_unreadable_video_is_named(tmp_path: Any) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        random_model("masked").encode_video([small_apps.clips()[0], tmp_path / "bad.mp4"])


def test_class_names_must_be_as_many_as_classes() -> None:
    model = random_model("supervised")
    with pytest.raises(RecipeError, match="2 class names for 3 classes"):
        VideoModel(model.name, model.module, class_names=("a", "b"))
    with pytest.raises(RecipeError, match="precision"):
        VideoModel(model.name, model.module, precision="int8")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ValueError, match="clips are"):
        model.encode_clips(torch.zeros(3, 4, 32, 32, dtype=torch.uint8))
