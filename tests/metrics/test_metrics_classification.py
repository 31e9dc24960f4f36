"""Properties of the classification figures beyond the stored values."""

from __future__ import annotations

import numpy as np
import pytest

from internvideo.metrics import classification as c


def test_top_k_agrees_with_a_plain_sort() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 12)), rng.integers(12, size=200)
    for k in (1, 3, 12):
        best = np.argsort(-scores, axis=1)[:, :k]
        np.testing.assert_array_equal(c.top_k_hits(scores, labels, k), (best == labels[:, None]).any(axis=1))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.full((2, 3), np.nan), np.array([0, 1]), "NaN"),
        (np.zeros((2, 3)), np.array([0, 3]), "do not fit 3 classes"),
        (np.zeros((2, 3)), np.array([0, -100]), "do not fit"),
        (np.zeros((0, 3)), np.array([], dtype=int), "no samples"),
        (np.zeros((2, 3)), np.array([0]), "shape"),
    ],
)
def test_unusable_input_is_refused(scores: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        c.label_ranks(scores, labels)


def test_mean_class_accuracy_clean_and_released() -> None:
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    assert c.mean_class_accuracy(predictions, labels) == pytest.approx(0.75)
    assert c.mean_class_accuracy(predictions, labels, match_official_evaluator=True) == pytest.approx(0.5)


def test_views_merge_in_any_order_and_number() -> None:
    rng = np.random.default_rng(1)
    logits, sample = rng.normal(size=(9, 4)).astype(np.float32), np.array([2, 0, 1, 2, 0, 2, 1, 2, 0])
    merged = c.merge_views(logits, sample, 3)
    for video in range(3):
        np.testing.assert_allclose(merged[video], c.softmax(logits[sample == video].astype(float)).mean(axis=0))
    np.testing.assert_allclose(merged.sum(axis=1), 1)
    with pytest.raises(ValueError, match="at least one row"):
        c.merge_views(logits, sample, 4)


def test_zero_shot_is_the_mean_of_probabilities_not_of_embeddings() -> None:
    rng = np.random.default_rng(3)
    video, text = rng.normal(size=(5, 6)), rng.normal(size=(4, 7, 6))
    by_template = [c.softmax(100 * c.l2_normalize(video) @ c.l2_normalize(t).T) for t in text]
    np.testing.assert_allclose(c.zero_shot_probabilities(video, text, 100.0), np.mean(by_template, axis=0))


def test_confusion_counts_rows_as_truth() -> None:
    matrix = c.confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 3)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])
