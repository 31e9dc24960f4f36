"""Ranks, ties, captions and dual soft-max against slow definitions; speed at 10,000 x 10,000."""

from __future__ import annotations

import time

import numpy as np
import pytest

from internvideo.tasks.retrieval import metrics as r


def slow_ranks(similarity: np.ndarray, target: np.ndarray) -> list[int]:
    return [sum(x > row[t] for x in row) for row, t in zip(similarity, target, strict=True)]


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 41), (129, 200)])
def test_both_passes_equal_the_definition(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=shape).astype(np.float32)
    targets = rng.integers(shape[1], size=shape[0])
    np.testing.assert_array_equal(r.row_ranks(similarity, targets, "optimistic"), slow_ranks(similarity, targets))
    columns = rng.integers(shape[0], size=shape[1])
    np.testing.assert_array_equal(r.column_ranks(similarity, columns, "optimistic"), slow_ranks(similarity.T, columns))


def test_column_pass_counts_more_than_a_byte_holds() -> None:
    similarity = np.zeros((1000, 3))
    similarity[0] = -1
    np.testing.assert_array_equal(r.column_ranks(similarity, np.zeros(3, dtype=int)), [999, 999, 999])


def test_a_constant_model_is_last_by_default_and_first_only_when_asked() -> None:
    constant = np.ones((20, 20))
    assert r.rank_metrics(r.row_ranks(constant))["r1"] == 0
    assert r.rank_metrics(r.row_ranks(constant, ties="optimistic"))["r1"] == 1
    assert len(r.row_ranks(constant, ties="official")) == 400
    assert r.tied_queries(constant) == 20


def test_without_ties_every_rule_gives_the_same() -> None:
    similarity = np.random.default_rng(1).permutation(400).reshape(20, 20).astype(float)
    first = r.row_ranks(similarity, ties="optimistic")
    np.testing.assert_array_equal(first, r.row_ranks(similarity, ties="pessimistic"))
    np.testing.assert_array_equal(first, r.row_ranks(similarity, ties="official"))
    assert r.tied_queries(similarity) == 0


def test_captions_in_any_order() -> None:
    rng = np.random.default_rng(2)
    similarity, owner = rng.normal(size=(30, 6)), np.concatenate([np.arange(6), rng.integers(6, size=24)])
    best = r.max_over_captions(similarity, owner, 6)
    for video in range(6):
        np.testing.assert_array_equal(best[video], similarity[owner == video].max(axis=0))
    with pytest.raises(ValueError, match="at least one caption"):
        r.max_over_captions(similarity, owner % 5, 6)


def test_one_caption_each_is_the_square_case() -> None:
    similarity = np.random.default_rng(3).normal(size=(15, 15))
    plain, captions = r.bidirectional_ranks(similarity), r.bidirectional_ranks(similarity, np.arange(15))
    np.testing.assert_array_equal(plain[0], captions[0])
    np.testing.assert_array_equal(plain[1], captions[1])


def test_dual_softmax_clean_and_released_differ_only_for_many_captions() -> None:
    rng = np.random.default_rng(4)
    square = 10 * rng.normal(size=(40, 40))
    for one, two in zip(
        r.bidirectional_ranks(square, dual_softmax_mode="official"),
        r.bidirectional_ranks(square, dual_softmax_mode="per_direction"),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)
    many, owner = 5 * rng.normal(size=(80, 20)), np.repeat(np.arange(20), 4)
    released, clean = (
        r.bidirectional_ranks(many, owner, dual_softmax_mode="official"),
        r.bidirectional_ranks(many, owner, dual_softmax_mode="per_direction"),
    )
    np.testing.assert_array_equal(released[0], clean[0])
    assert (released[1] != clean[1]).any()


def test_dual_softmax_leaves_its_input_alone() -> None:
    similarity = np.random.default_rng(5).normal(size=(4, 4))
    before = similarity.copy()
    product = r.dual_softmax(similarity, axis=0)
    np.testing.assert_array_equal(similarity, before)
    weight = np.exp(similarity) / np.exp(similarity).sum(axis=0)
    np.testing.assert_allclose(product, similarity * weight)


def test_dual_softmax_in_parts_along_both_axes() -> None:
    similarity = 30 * np.random.default_rng(7).normal(size=(75, 41))
    for axis in (0, 1):
        weight = np.exp(similarity - similarity.max(axis=axis, keepdims=True))
        expected = similarity * weight / weight.sum(axis=axis, keepdims=True)
        np.testing.assert_allclose(r.dual_softmax(similarity, axis), expected, rtol=1e-12)


def test_a_bank_damps_hubs_and_leaves_other_rows_alone() -> None:
    """Video 0 is near to every text: the bank knows it as a hub, and the query of video 1 is found again."""
    similarity = np.array([[50.0, 20.0, 10.0], [45.0, 44.0, 0.0], [5.0, 6.0, 30.0]])
    bank = np.array([[48.0, 5.0, 0.0], [49.0, 10.0, 3.0], [44.0, 7.0, 20.0], [40.0, 9.0, 1.0]])
    assert r.row_ranks(similarity).tolist() == [0, 1, 0]
    sums = np.log(np.exp(0.2 * bank).sum(axis=0))
    for blocks in ([bank], [bank[:1], bank[1:]]):
        total, active = r.querybank_statistics(blocks)
        np.testing.assert_allclose(total, sums)
        assert active.tolist() == [True, False, False]
    damped = r.querybank_normalize(similarity, total, active)
    np.testing.assert_allclose(damped[:2], 0.2 * similarity[:2] - sums)
    np.testing.assert_array_equal(damped[2], similarity[2])
    assert r.row_ranks(damped)[1:].tolist() == [0, 0]
    with pytest.raises(ValueError, match="query bank is empty"):
        r.querybank_statistics([])


def test_medians() -> None:
    ranks = np.array([0, 1, 4, 9])
    assert r.rank_metrics(ranks)["median_rank"] == 3.5
    assert r.rank_metrics(ranks, median="lower")["median_rank"] == 2
    with pytest.raises(ValueError, match="no queries"):
        r.rank_metrics(ranks[:0])


def test_not_a_number_is_refused() -> None:
    similarity = np.eye(3)
    similarity[1, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        r.row_ranks(similarity)
    with pytest.raises(ValueError, match="NaN"):
        r.column_ranks(similarity)


@pytest.mark.slow
def test_ten_thousand_by_ten_thousand_in_half_a_second() -> None:
    similarity = np.random.default_rng(6).standard_normal((10_000, 10_000), dtype=np.float32)
    seconds = {}
    for name, ranks in (("rows", r.row_ranks), ("columns", r.column_ranks)):
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            ranks(similarity)
            runs.append(time.perf_counter() - start)
        seconds[name] = min(runs)
    assert max(seconds.values()) < 0.5, seconds
