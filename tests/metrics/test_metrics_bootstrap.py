"""The bootstrap: weights equal real resampling, intervals cover, groups widen."""

from __future__ import annotations

import numpy as np
import pytest

from internvideo.metrics import bootstrap as b
from internvideo.metrics.classification import mean_class_accuracy


def counts_and_picks(n: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """The same draws as counts and as plain index lists."""
    counts = b.resample_counts(n, draws, np.random.default_rng(7))
    return counts, np.stack([np.repeat(np.arange(n), row) for row in counts])


@pytest.mark.parametrize("n", [1, 2, 9, 10])
def test_statistics_on_weights_equal_statistics_on_resampled_values(n: int) -> None:
    rng = np.random.default_rng(n)
    values, labels = rng.integers(5, size=n), rng.integers(3, size=n)
    hits = rng.integers(2, size=n).astype(bool)
    counts, picks = counts_and_picks(n, 50)
    weights = counts.astype(float)
    np.testing.assert_allclose(b.mean(values)(weights), values[picks].mean(axis=1))
    np.testing.assert_allclose(b.median(values)(weights), np.median(values[picks], axis=1))
    two = np.stack([values, values**2], axis=1)
    np.testing.assert_allclose(b.mean(two)(weights), two[picks].mean(axis=1))
    by_class = [mean_class_accuracy(np.where(hits[i], labels[i], 9), labels[i]) for i in picks]
    np.testing.assert_allclose(b.class_mean(hits, labels)(weights), by_class)


def test_same_seed_same_interval_and_blocks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hits = np.random.default_rng(0).random(100) < 0.7
    once = b.interval(b.mean(hits), 100, draws=200)
    assert (once == b.interval(b.mean(hits), 100, draws=200)).all()
    assert (once != b.interval(b.mean(hits), 100, draws=200, seed=1)).any()
    monkeypatch.setattr(b, "_BLOCK_ENTRIES", 700)
    assert (once == b.interval(b.mean(hits), 100, draws=200)).all()


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        low, high = b.interval(b.mean(rng.random(150) < 0.6), 150, draws=300)
        inside += low <= 0.6 <= high
    assert 180 <= inside <= 199


def test_samples_of_one_group_are_drawn_together() -> None:
    hits = np.repeat(np.random.default_rng(2).random(30) < 0.5, 20)
    alone = b.interval(b.mean(hits), 600)
    together = b.interval(b.mean(hits), 600, groups=np.repeat(np.arange(30), 20))
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


@pytest.mark.parametrize(("samples", "draws", "level"), [(0, 10, 0.95), (5, 0, 0.95), (5, 10, 1.0)])
def test_senseless_settings_are_refused(samples: int, draws: int, level: float) -> None:
    with pytest.raises(ValueError, match="need at least"):
        b.interval(b.mean(np.zeros(5)), samples, draws=draws, level=level)
