"""Thinning out segments: the stored results of two published variants, and what must hold for any input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from goldens_folder import GOLDENS
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo.metrics.temporal_detection import average_precision, detections
from internvideo.tasks.temporal_localization.nms import SuppressionSettings, fuse_class_scores, soft_nms, suppress

NMS, FUSION = GOLDENS / "tasks" / "tal_nms", GOLDENS / "tasks" / "tal_score_fusion"
STORED: dict[str, Any] = json.loads((NMS / "cases.json").read_text("utf-8"))
with np.load(NMS / "nms.npz", allow_pickle=False) as file:
    ARRAYS = {name: file[name] for name in file.files}
KERNELS = sorted(name.split("_")[1] for name in ARRAYS if name.startswith("k_") and name.endswith("_dets"))
VARIANTS: dict[str, Any] = {"paper_code": "score", "upstream": "score_x_overlap"}


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: str(case["case"]))
def test_stored_case(case: dict[str, Any], variant: str) -> None:
    number = case["case"]
    asked = SuppressionSettings(
        decay="gaussian" if case["soft"] else "hard",
        sigma=case["sigma"],
        overlap=case["iou_threshold"],
        min_score=case["min_score"],
        max_segments=case["max_seg_num"],
        per_class=case["multiclass"],
        voting=case["voting_thresh"],
        voting_weight=VARIANTS[variant],
    )
    segments, scores, labels = soft_nms(*(ARRAYS[f"c{number}_{name}"] for name in ("segs", "scores", "labels")), asked)
    np.testing.assert_allclose(segments, ARRAYS[f"c{number}_{variant}_segs"], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(scores, ARRAYS[f"c{number}_{variant}_scores"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(labels, ARRAYS[f"c{number}_{variant}_labels"])


@pytest.mark.parity
@pytest.mark.parametrize("kernel", KERNELS)
def test_stored_kernel(kernel: Any) -> None:
    stored = STORED["kernel_cases"]
    floor = 0.0 if kernel == "hard" else stored["min_score"]
    asked = SuppressionSettings(kernel, stored["sigma"], stored["iou_threshold"], floor, 10_000)
    segments = ARRAYS[f"k_{kernel}_segs"]
    index, scores = suppress(segments, ARRAYS[f"k_{kernel}_scores"], asked)
    np.testing.assert_array_equal(index, ARRAYS[f"k_{kernel}_inds"])
    np.testing.assert_allclose(scores, ARRAYS[f"k_{kernel}_dets"][:, 2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(segments[index], ARRAYS[f"k_{kernel}_dets"][:, :2], rtol=0, atol=1e-6)


def read(name: str) -> Any:
    return json.loads((FUSION / f"{name}.json").read_text("utf-8"))


def fused(video: str) -> Any:
    rows, stored = read("proposals")[video], read("expected")
    segments, scores = np.asarray([row["segment"] for row in rows]), np.asarray([row["score"] for row in rows])
    class_scores = np.asarray(read("cls_scores")["results"][video])
    return fuse_class_scores(
        segments, scores, class_scores, num_classes=stored["topk"], max_segments=stored["num_pred"]
    )


VIDEOS = sorted(read("expected")["fused"])


@pytest.mark.parity
@pytest.mark.parametrize("video", VIDEOS)
def test_stored_fusion(video: str) -> None:
    segments, scores, labels = fused(video)
    stored = read("expected")["fused"][video]
    assert labels.tolist() == [row["label"] for row in stored]
    np.testing.assert_allclose(scores, [row["score"] for row in stored], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(segments, [row["segment"] for row in stored], rtol=0, atol=1e-9)


@pytest.mark.parity
def test_stored_map_of_the_fusion() -> None:
    stored, database = read("expected"), read("gt")["database"]
    place = {video: index for index, video in enumerate(sorted({*database, *VIDEOS}))}
    truth = detections(
        [
            (place[video], row["label_id"], *row["segment"], 0.0)
            for video, entry in database.items()
            if entry["subset"].lower() == "validation"
            for row in entry["annotations"]
        ]
    )
    found = [
        (place[video], int(label), *segment.tolist(), float(score))
        for video in VIDEOS
        for segment, score, label in zip(*fused(video), strict=True)
    ]
    precision, _ = average_precision(truth, detections(found), stored["tiou_thresholds"], match_official_evaluator=True)
    np.testing.assert_allclose(precision.mean(axis=1), stored["mAP"], rtol=0, atol=1e-6)
    assert precision.mean() == pytest.approx(stored["average_mAP"], abs=1e-6)


spans = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(1, 99)), max_size=25)


@settings(max_examples=60, deadline=None)
@given(spans, st.sampled_from(["gaussian", "linear", "hard"]), st.booleans())
def test_scores_never_rise_and_nothing_is_invented(
    rows: list[tuple[int, int, int]], decay: Any, per_class: bool
) -> None:
    table = np.asarray(rows, dtype=np.float64).reshape(-1, 3)
    segments, scores = np.stack([table[:, 0], table[:, 0] + table[:, 1]], axis=1), table[:, 2] / 100
    labels = np.arange(len(table)) % 2
    asked = SuppressionSettings(decay, min_score=0.05, max_segments=7, per_class=per_class)
    kept, decayed, names = soft_nms(segments, scores, labels, asked)
    assert len(kept) == len(decayed) == len(names) <= 7
    assert (np.diff(decayed) <= 0).all()
    known = {(*segment, label): score for segment, score, label in zip(segments.tolist(), scores, labels, strict=True)}
    for segment, label in zip(kept.tolist(), names.tolist(), strict=True):
        assert (*segment, label) in known
    if len(table) and scores.max() > asked.min_score:
        assert decayed[0] == scores.max()  # the best one is never touched


def kernel(segments: Any, scores: Any, asked: SuppressionSettings) -> list[int]:
    """The Gaussian kernel item by item: what is chosen and what goes change places with the first and the last."""
    left, order, last = list(scores), list(range(len(scores))), len(scores)
    first = 0
    while first < last:
        best = max(range(first, last), key=lambda place: left[order[place]])  # the first of equals
        order[first], order[best] = order[best], order[first]
        one, place = segments[order[first]], first + 1
        while place < last:
            other = segments[order[place]]
            inside = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
            whole = one[1] - one[0] + other[1] - other[0] + 2 * asked.extent - inside
            left[order[place]] *= np.exp(-((inside / whole) ** 2) / asked.sigma)
            if left[order[place]] < asked.min_score:
                last -= 1
                order[place] = order[last]
            else:
                place += 1
        first += 1
    return order[:last]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.sampled_from([0.2, 0.5, 0.9])), max_size=20))
def test_equal_scores_keep_the_order_of_the_kernel(rows: list[tuple[int, int, float]]) -> None:
    segments = np.asarray([(start, start + length) for start, length, _ in rows], dtype=np.float64).reshape(-1, 2)
    scores = np.asarray([score for *_, score in rows], dtype=np.float64)
    asked = SuppressionSettings(sigma=0.5, min_score=0.15, max_segments=1000)
    assert suppress(segments, scores, asked)[0].tolist() == kernel(segments, scores, asked)


def test_no_segments() -> None:
    nothing = np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=np.int64)
    for per_class in (True, False):
        assert [len(part) for part in soft_nms(*nothing, SuppressionSettings(per_class=per_class, voting=0.5))] == [
            0
        ] * 3
    with pytest.raises(ValueError, match="sigma"):
        SuppressionSettings(sigma=0)
