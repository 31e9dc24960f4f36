"""A classifier of one's own: how its head learns, what it answers, and its file."""

from __future__ import annotations

import json
from pathlib import Path

import colour_clips
import numpy as np
import pytest
import small_apps
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from internvideo.errors import WeightsError
from internvideo.models.attention import CrossAttention
from internvideo.probing import probe_fit
from internvideo.probing.probe import METADATA_KEY, UNKNOWN, EncoderReference, Probe, ProbeHead
from internvideo.storage import read_safetensors, write_safetensors

WIDTH, CLASSES = 12, 3
ENCODER = EncoderReference("videomae-s-classifier", "ab" * 32, {"frames": 4, "size": 32})


def table(n: int = 90, *, seed: int = 0, width: int = WIDTH, apart: float = 2.0) -> tuple[Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(CLASSES, width)) * apart / np.sqrt(width)
    labels = np.arange(n) % CLASSES
    return torch.from_numpy(means[labels] + rng.normal(size=(n, width))).float() * 3 + 5, labels.astype(np.int64)


def needles(n: int = 60, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """(n, 9, D) tokens of noise; one token at a random place is marked and carries the class; its mean says little."""
    rng = np.random.default_rng(seed)
    signs = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    labels = np.arange(n) % CLASSES
    tokens = rng.normal(size=(n, 9, WIDTH))
    tokens[:, :, 0] = 0
    place = rng.integers(9, size=n)
    tokens[np.arange(n), place] = signs[labels] + 0.3 * rng.normal(size=(n, WIDTH))
    tokens[np.arange(n), place, 0] = 4
    return torch.from_numpy(tokens).float(), labels.astype(np.int64)


def linear_head() -> ProbeHead:
    features, labels = table()
    return probe_fit.fit_heads(features, labels, CLASSES, (0.1,))[0]


def a_probe(head: ProbeHead | None = None, threshold: float = 0.6) -> Probe:
    return Probe(head or linear_head(), ("a", "b", "c"), 1.7, threshold, ENCODER, {"figures": {"top1": 0.5}})


# ------------------------------------------------------------------------------------------------------------ heads


@pytest.mark.parametrize("width", [8, 200])  # fewer columns than videos, and more
def test_the_linear_head_is_logistic_regression(width: int) -> None:
    features, labels = table(width=width)
    heads = probe_fit.fit_heads(features, labels, CLASSES, (0.01, 0.1))
    plain = features.double().numpy()
    plain = (plain - plain.mean(axis=0)) / plain.std(axis=0)
    for head, strength in zip(heads, (0.01, 0.1), strict=True):
        theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(plain, labels).decision_function(plain)
        ours = head.logits_and_id_scores(features)[0]
        np.testing.assert_allclose(
            ours - ours.mean(axis=1, keepdims=True), theirs - theirs.mean(axis=1, keepdims=True), atol=2e-2
        )


def test_two_classes_have_two_scores_and_an_absent_one_is_never_the_answer() -> None:
    features, labels = table()
    some = labels != 1
    (head,) = probe_fit.fit_heads(features[some], labels[some], CLASSES, (0.1,))
    logits = head.logits_and_id_scores(features)[0]
    assert logits.shape == (90, 3)
    assert set(logits.argmax(axis=1)) == {0, 2}
    plain = features[some].double().numpy()
    plain = (plain - plain.mean(axis=0)) / plain.std(axis=0)
    theirs = LogisticRegression(C=0.1, tol=1e-8).fit(plain, labels[some]).decision_function(plain)
    np.testing.assert_allclose(logits[some, 2] - logits[some, 0], theirs, atol=2e-2)


def test_columns_that_do_not_vary_do_no_harm() -> None:
    features, labels = table()
    features[:, 3] = 7.0
    (head,) = probe_fit.fit_heads(features, labels, CLASSES, (0.1,))
    assert np.isfinite(head.logits_and_id_scores(features)[0]).all()
    assert head.scale[3] == 1


def test_queries_find_what_the_mean_hides() -> None:
    tokens, labels = needles(90)
    unseen, answers = needles(90, seed=1)
    (attentive,) = probe_fit.fit_heads(tokens.half(), labels, CLASSES, (0.1,), seed=3)
    (linear,) = probe_fit.fit_heads(tokens.mean(dim=1), labels, CLASSES, (0.1,))
    reading = (attentive.logits_and_id_scores(unseen)[0].argmax(axis=1) == answers).mean()
    averaging = (linear.logits_and_id_scores(unseen.mean(dim=1))[0].argmax(axis=1) == answers).mean()
    assert reading > 0.9
    assert reading > averaging + 0.1
    (again,) = probe_fit.fit_heads(tokens.half(), labels, CLASSES, (0.1,), seed=3)
    assert torch.equal(again.weight, attentive.weight)


def test_shared_keys_and_values_are_as_general_as_projections() -> None:
    """One query through CrossAttention and a classifier is a `Head` with H queries: projections can be folded in."""
    torch.manual_seed(0)
    heads, size = 2, 6
    layer = CrossAttention(WIDTH, WIDTH, heads)
    classify = torch.nn.Linear(WIDTH, CLASSES)
    tokens, learned = torch.randn(5, 9, WIDTH), torch.randn(1, 1, WIDTH)
    with torch.no_grad():
        theirs = classify(layer(learned.expand(5, -1, -1), tokens))[:, 0]
        asked = layer.q(learned).view(heads, size)
        keys = layer.k.weight.view(heads, size, WIDTH)
        query = torch.einsum("hd,hdw->hw", asked, keys) * (WIDTH / size) ** 0.5  # attend divides by sqrt(D)
        after = (classify.weight @ layer.out.weight).view(CLASSES, heads, size)
        weight = torch.einsum("chd,hdw->chw", after, layer.v.weight.view(heads, size, WIDTH)).flatten(1)
        bias = classify(layer.out(layer.v.bias))
        mean, scale = torch.randn(WIDTH), torch.rand(WIDTH) + 0.5
        directions = torch.ones(CLASSES, heads * WIDTH)
        head = ProbeHead(mean, scale, weight, bias, directions[0], directions, query)
    np.testing.assert_allclose(head.logits_and_id_scores(tokens * scale + mean)[0], theirs.numpy(), atol=1e-5)


def test_features_of_the_other_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="2 dimensions"):
        linear_head().logits_and_id_scores(torch.zeros(2, 5, WIDTH))
    with pytest.raises(ValueError, match="the last of 12"):
        linear_head().logits_and_id_scores(torch.zeros(2, 5))


# ---------------------------------------------------------------------------------------------------------- answers


def test_answers_sum_to_one_and_begin_with_the_answer() -> None:
    probe = a_probe(threshold=0.4)
    features = table(seed=5)[0]
    probabilities = probe.probabilities(features)
    familiarity = probe.head.logits_and_id_scores(features)[1]
    answers = probe.predict(features)
    assert {answer[UNKNOWN] > 0 for answer in answers} == {True, False}
    for answer, row, degree in zip(answers, probabilities, familiarity, strict=True):
        values = list(answer.values())
        assert set(answer) == {"a", "b", "c", UNKNOWN}
        assert sum(values) == pytest.approx(1)
        assert values == sorted(values, reverse=True)
        assert (next(iter(answer)) == UNKNOWN) == (degree < 0.4)
        if answer[UNKNOWN] == 0:
            assert [answer[name] for name in "abc"] == pytest.approx(row.tolist())
        else:
            assert 0.5 < answer[UNKNOWN] <= 1
            assert answer["a"] / answer["b"] == pytest.approx(row[0] / row[1])
    strangest = int(familiarity.argmin())
    assert answers[strangest][UNKNOWN] == max(answer[UNKNOWN] for answer in answers)


def test_what_points_where_no_class_is_is_unknown() -> None:
    """Far away in a new direction: the classifier is sure of it, familiarity is not."""
    features, _ = table()
    probe = a_probe(threshold=0.4)
    away = np.linalg.svd(probe.head.class_prototypes.double().numpy())[2][-1]  # at right angles to all classes
    strange = features.mean(dim=0) + 300 * torch.from_numpy(away).float()
    (answer,) = probe.predict(strange[None])
    assert next(iter(answer)) == UNKNOWN
    assert probe.head.logits_and_id_scores(strange[None])[1] == pytest.approx(0, abs=0.05)
    assert probe.probabilities(strange[None]).max() > 0.7


def test_a_temperature_changes_how_sure_but_not_what() -> None:
    features, _ = table(seed=2)
    sharp, soft = a_probe(), Probe(linear_head(), ("a", "b", "c"), 9.0, -1.0, ENCODER)
    assert (sharp.probabilities(features).argmax(axis=1) == soft.probabilities(features).argmax(axis=1)).all()
    assert sharp.probabilities(features).max() > soft.probabilities(features).max() + 0.1
    assert all(answer[UNKNOWN] == 0 for answer in soft.predict(features)), "a threshold of -1 accepts everything"
    assert soft.predict(features[:0]) == []


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_a_saved_probe_answers_the_same(tmp_path: Path, kind: str) -> None:
    features, labels = needles()
    features = features if kind == "attentive" else features.mean(dim=1)
    probe = a_probe(probe_fit.fit_heads(features, labels, CLASSES, (0.1,))[0])
    probe.save(tmp_path / "mine.safetensors")
    read = Probe.load(tmp_path / "mine.safetensors")
    for ours, theirs in zip(read.predict(features), probe.predict(features), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert (read.classes, read.encoder, read.metadata) == (probe.classes, probe.encoder, probe.metadata)
    assert read.head.kind == ("tokens" if kind == "attentive" else "video")
    keys = set(read_safetensors(tmp_path / "mine.safetensors")[0])
    assert keys - {"query"} == {"mean", "scale", "weight", "bias", "centre", "directions"}, "as earlier files have them"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"temperature": -1.0}, "out of range"),
        ({"threshold": 1.5}, "out of range"),
        ({"classes": ["a", "b"]}, "expected: (2, 12)"),
        ({"temperature": None}, "truncated or corrupt"),
        ({"encoder": {"name": "x"}}, "truncated or corrupt"),
    ],
)
def test_a_damaged_probe_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "mine.safetensors"
    a_probe().save(path)
    tensors, metadata = read_safetensors(path)
    write_safetensors(path, tensors, {METADATA_KEY: json.dumps({**json.loads(metadata[METADATA_KEY]), **change})})
    with pytest.raises(WeightsError) as told:
        Probe.load(path)
    assert said in str(told.value)
    assert str(path) in str(told.value)


def test_other_files_are_no_probe(tmp_path: Path) -> None:
    tensors = {"weight": torch.zeros(2, 2)}
    write_safetensors(tmp_path / "other.safetensors", tensors)
    with pytest.raises(WeightsError, match="is not a classifier"):
        Probe.load(tmp_path / "other.safetensors")
    write_safetensors(
        tmp_path / "other.safetensors", {**tensors, "extra": torch.zeros(1)}, {METADATA_KEY: '{"format": 1}'}
    )
    with pytest.raises(WeightsError, match="truncated or corrupt"):
        Probe.load(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="no such file"):
        Probe.load(tmp_path / "none.safetensors")


def test_another_encoder_is_refused() -> None:
    model = colour_clips.encoder()
    head = ProbeHead(
        torch.zeros(48), torch.ones(48), torch.zeros(2, 48), torch.zeros(2), torch.zeros(48), torch.ones(2, 48)
    )
    probe = Probe(head, ("a", "b"), 1.0, -1.0, EncoderReference.from_model(model))
    probe.check(model)
    with pytest.raises(WeightsError, match="fitted on features of videomae-s-classifier"):
        probe.check(small_apps.random_model("supervised_multimodal"))
    other = small_apps.random_model("supervised")
    other.preprocessing = other.preprocessing.with_settings(resize_backend="pil")
    with pytest.raises(WeightsError, match="clips with style opencv, not pil"):
        probe.check(other)
    with pytest.raises(WeightsError, match="clips with style"):
        probe.classify(other, small_apps.clips(1)[0])
    (answer,) = probe.classify(model, small_apps.clips(1)[0])
    assert answer == {"a": 0.5, "b": 0.5, UNKNOWN: 0.0}
