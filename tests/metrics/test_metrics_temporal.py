"""Temporal localization figures: the stored results of the published evaluators, and closed forms."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from goldens_folder import GOLDENS

from internvideo.metrics.temporal_detection import (
    Detections,
    average_precision,
    deduplicate,
    detections,
    grounded_hits,
    interpolated_average_precision,
    recall_at_multiples,
    tiou,
)

FOLDER = GOLDENS / "tasks"


@cache
def read(path: str) -> Any:
    return json.loads((FOLDER / path).read_text("utf-8"))


def columns(truth: str, predicted: str, subset: str, classes: dict[str, int] | None = None) -> list[Detections]:
    database, results = read(truth)["database"], read(predicted)["results"]
    place = {video: index for index, video in enumerate(sorted({*database, *results}))}
    true = [
        (place[video], row["label_id"] if classes is None else classes[row["label"]], *row["segment"], 0.0)
        for video, entry in database.items()
        if entry["subset"].lower() == subset
        for row in entry["annotations"]
    ]
    found = [
        (
            place[video],
            row["label"] if classes is None else classes.get(row["label"], -1),
            *row["segment"],
            row["score"],
        )
        for video, rows in results.items()
        for row in rows
    ]
    return [detections(true), detections(found)]


CASES = sorted(read("tal_map/expected.json"))


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_map(name: str) -> None:
    stored = read("tal_map/expected.json")[name]
    truth, found = columns(f"tal_map/{name}.gt.json", f"tal_map/{name}.pred.json", stored["subset"])
    precision, classes = average_precision(truth, found, stored["tiou_thresholds"])
    assert classes.tolist() == stored["class_ids"]
    if "tie_order_range" in stored:  # any order of equal scores is right
        mean = precision.mean(axis=1)
        assert (mean >= np.asarray(stored["tie_order_range"]["min"]) - 1e-9).all()
        assert (mean <= np.asarray(stored["tie_order_range"]["max"]) + 1e-9).all()
        return
    np.testing.assert_allclose(precision, stored["ap_per_threshold_and_class"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(precision.mean(axis=1), stored["mAP"], rtol=0, atol=1e-9)
    assert precision.mean() == pytest.approx(stored["average_mAP"], abs=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_recall_at_multiples(name: str) -> None:
    stored = read("tal_map/expected.json")[name]
    truth, found = columns(f"tal_map/{name}.gt.json", f"tal_map/{name}.pred.json", stored["subset"])
    recall = recall_at_multiples(truth, found, stored["tiou_thresholds"], stored["recall_at_k_times_gt"]["k"])
    expected = stored["recall_at_k_times_gt"]["mean_over_classes_per_threshold"]
    np.testing.assert_allclose(recall, expected, rtol=0, atol=1e-9)


@pytest.mark.parity
def test_map_by_names_and_submission() -> None:
    stored = read("tal_map_anet_release/expected.json")
    files = ("tal_map_anet_release/gt.json", "tal_map_anet_release/pred.json")
    truth, found = columns(*files, "validation", stored["activity_index"])
    precision, _ = average_precision(truth, found, stored["tiou_thresholds"])
    np.testing.assert_allclose(precision.mean(axis=1), stored["mAP"], rtol=0, atol=1e-9)
    assert precision.mean() == pytest.approx(stored["average_mAP"], abs=1e-9)


def moments() -> tuple[dict[str, Any], Detections, Detections]:
    stored, clips = read("ego4d_mq/expected.json"), read("ego4d_mq/clip_annotations.json")
    classes, place = stored["detection"]["activity_index"], {name: index for index, name in enumerate(clips)}
    true = [
        (place[name], classes[row["label"]], row["start_time"], row["end_time"], 0.0)
        for name, clip in clips.items()
        if clip["subset"] == stored["subset"]
        for row in clip["annotations"]
    ]
    found = [
        (place[name], classes.get(row["label"], -1), *row["segment"], row["score"])
        for name, rows in read("ego4d_mq/pred.json")["results"].items()
        if name in place
        for row in rows
    ]
    return stored, detections(true), detections(found)


@pytest.mark.parity
def test_moments_map() -> None:
    stored, truth, found = moments()
    precision, _ = average_precision(truth, found, stored["detection"]["tiou"])
    np.testing.assert_allclose(precision.mean(axis=1), stored["detection"]["mAP"], rtol=0, atol=1e-9)
    assert precision.mean() == pytest.approx(stored["detection"]["average_mAP"], abs=1e-9)


@pytest.mark.parity
def test_moments_recall() -> None:
    stored, truth, found = moments()
    asked = stored["recall_at_kx"]
    recall = recall_at_multiples(
        truth, found, asked["tiou"], asked["k"], average="instances", strict=True, union="hull"
    )
    np.testing.assert_allclose(recall, asked["values"], rtol=0, atol=1e-9)


@pytest.mark.parity
def test_language_queries() -> None:
    stored = read("ego4d_nlq/expected.json")
    truths = {
        (clip["clip_uid"], note["annotation_uid"], number): (query["clip_start_sec"], query["clip_end_sec"])
        for video in read("ego4d_nlq/nlq_val.json")["videos"]
        for clip in video["clips"]
        for note in clip["annotations"]
        for number, query in enumerate(note["language_queries"])
    }
    rows = read("ego4d_nlq/pred.json")["results"]
    spans = np.asarray([truths[row["clip_uid"], row["annotation_uid"], row["query_idx"]] for row in rows])
    found = [np.asarray(row["predicted_times"]) for row in rows]
    hits, overlaps = grounded_hits(spans, found, stored["thresholds"], stored["topK"])
    recall = hits.mean(axis=0)
    np.testing.assert_allclose(recall, stored["recall_rows_threshold_cols_topk"], rtol=0, atol=1e-9)
    # The published evaluator prints the tIoU of the first prediction as that of the best three: its sort sees one row.
    assert np.mean([overlap[0] for overlap in overlaps]) == pytest.approx(stored["mean_iou_of_best_three"], abs=1e-9)
    place = [stored["thresholds"].index(level) for level in (0.3, 0.5)]
    assert recall[place, stored["topK"].index(1)].mean() == pytest.approx(stored["mean_recall_at_1"], abs=1e-9)


def test_tiou_of_known_spans() -> None:
    spans, truths = np.asarray([[0.0, 10.0], [20.0, 30.0]]), np.asarray([[5.0, 15.0]])
    np.testing.assert_allclose(tiou(spans, truths), [[5 / 15], [0.0]])
    np.testing.assert_allclose(tiou(np.asarray([[0.0, 2.0]]), np.asarray([[0.0, 2.0]]), union="hull"), [[1.0]])
    assert tiou(np.asarray([[3.0, 3.0]]), np.asarray([[3.0, 3.0]])).item() == 0.0  # nothing over nothing


def test_a_prediction_falls_through_to_the_next_best() -> None:
    truth = detections([(0, 0, 0, 10, 0), (0, 0, 1, 12, 0)])
    found = detections([(0, 0, 0, 10, 0.9), (0, 0, 0, 10, 0.8)])
    assert average_precision(truth, found, [0.5])[0].item() == 1.0
    assert average_precision(truth, found, [0.95])[0].item() == 0.5


def test_of_ground_truths_of_equal_overlap_the_last_is_taken() -> None:
    """activitynet/ActivityNet, Evaluation/eval_detection.py: tIoUs are sorted and walked from the end."""
    truth = detections([(0, 0, 0.0, 2.0, 0.0), (0, 0, 2.0, 4.0, 0.0)])
    middle = (0, 0, 1.0, 3.0, 0.9)
    for second, right in (((0, 0, 0.0, 2.0, 0.8), 1.0), ((0, 0, 2.0, 4.0, 0.8), 0.5)):
        assert average_precision(truth, detections([middle, second]), [0.3])[0][0, 0] == right


def test_ground_truth_that_occurs_twice_counts_once() -> None:
    truth = detections([(0, 0, 1, 2, 0), (0, 0, 1.0004, 2.0004, 0), (0, 1, 1, 2, 0), (1, 0, 1, 2, 0)])
    assert len(deduplicate(truth)) == 3


def test_average_precision_is_the_area_under_the_envelope() -> None:
    hits = np.asarray([True, False, False, True])
    assert interpolated_average_precision(hits, 3) == pytest.approx((1.0 + 0.5) / 3)
    assert interpolated_average_precision(np.zeros(4, dtype=bool), 3) == 0.0


def test_no_prediction_is_zero_and_no_truth_is_refused() -> None:
    truth = detections([(0, 3, 1, 2, 0)])
    precision, classes = average_precision(truth, detections([]), [0.5, 0.7])
    assert precision.tolist() == [[0.0], [0.0]]
    assert classes.tolist() == [3]
    assert recall_at_multiples(truth, detections([]), [0.5]).tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match="no ground truth"):
        average_precision(detections([]), truth, [0.5])


def test_columns_are_checked() -> None:
    with pytest.raises(ValueError, match="NaN"):
        detections([(0, 0, float("nan"), 1, 0)])
    with pytest.raises(ValueError, match="do not fit"):
        Detections(np.zeros(2, np.int64), np.zeros(1, np.int64), np.zeros((2, 2)), np.zeros(2))


def test_a_class_without_ground_truth_is_counted_as_another_when_released() -> None:
    truth = detections([(0, 1, 0, 10, 0), (0, 2, 20, 30, 0)])
    found = detections([(0, 0, 50, 60, 0.9), (0, 1, 0, 10, 0.8), (0, 2, 20, 30, 0.7), (0, 7, 0, 1, 0.9)])
    assert average_precision(truth, found, [0.5])[0].tolist() == [[1.0, 1.0]]
    assert average_precision(truth, found, [0.5], match_official_evaluator=True)[0].tolist() == [[0.5, 1.0]]
