"""Box figures: the stored results of the published evaluators, and closed forms."""

from __future__ import annotations

import csv
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from goldens_folder import GOLDENS

from internvideo.metrics.frame_detection import (
    Boxes,
    StaObjects,
    anticipation_average_precision,
    box_iou,
    coco_average_precision,
    frame_average_precision,
)

FOLDER = GOLDENS / "tasks"
AVA = json.loads((FOLDER / "ava_frame_map" / "expected.json").read_text("utf-8"))


def read(path: str) -> Any:
    return json.loads((FOLDER / path).read_text("utf-8"))


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if row]


def labels(name: str) -> set[int]:
    text = (FOLDER / "ava_frame_map" / f"{name}.pbtxt").read_text("utf-8")
    return {int(number) for number in re.findall(r"\b(?:id|label_id): *(\d+)", text)}


def key(row: list[str]) -> tuple[str, int]:
    return row[0], int(float(row[1]))


@cache
def ava(case: str, names: str) -> tuple[Boxes, Boxes]:
    folder, allowed = FOLDER / "ava_frame_map", labels(names)
    excluded = {key(row) for row in rows(folder / f"{case}.excluded.csv")}
    frames: dict[tuple[str, int], int] = {}

    def columns(file: str, scored: bool) -> Boxes:
        kept = [
            row for row in rows(folder / f"{case}.{file}.csv") if key(row) not in excluded and int(row[6]) in allowed
        ]
        return Boxes(
            np.asarray([frames.setdefault(key(row), len(frames)) for row in kept]),
            np.asarray([int(row[6]) for row in kept]),
            np.asarray([[float(value) for value in row[2:6]] for row in kept]),
            np.asarray([float(row[7]) if scored else 0.0 for row in kept]),
        )

    return columns("gt_7col", False), columns("det", True)


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(AVA))
def test_frame_map(name: str) -> None:
    found = frame_average_precision(*ava(*name.split("/")))
    assert np.mean(list(found.values())) == pytest.approx(AVA[name]["mAP@0.5"], abs=1e-9)
    stored = {int(label): value for label, value in AVA[name]["independent_per_class_id"].items()}
    assert found == pytest.approx(stored, abs=1e-9)


def anticipated(objects: list[dict[str, Any]]) -> StaObjects:
    return StaObjects(
        np.asarray([entry["box"] for entry in objects]).reshape(-1, 4),
        np.asarray([entry["noun_category_id"] for entry in objects], dtype=np.int64),
        np.asarray([entry["verb_category_id"] for entry in objects], dtype=np.int64),
        np.asarray([entry["time_to_contact"] for entry in objects]),
    )


def anticipation() -> list[tuple[StaObjects, StaObjects, Any]]:
    found = read("ego4d_sta/pred.json")["results"]
    return [
        (
            anticipated(entry["objects"]),
            anticipated(found.get(entry["uid"], [])),
            np.asarray([row["score"] for row in found.get(entry["uid"], [])], dtype=np.float64),
        )
        for entry in read("ego4d_sta/fho_sta_val.json")["annotations"]
    ]


STA = read("ego4d_sta/expected.json")
STA_CASES = [(group, name) for group, values in STA.items() if isinstance(values, dict) for name in values]


@pytest.mark.parity
@pytest.mark.parametrize(("group", "name"), STA_CASES)
def test_anticipation(group: str, name: str) -> None:
    precision = anticipation_average_precision(
        anticipation(),
        verb="verb" in name,
        seconds="ttc" in name,
        top=5 if group.startswith("top5") else None,
        iou=STA["iou_threshold"],
        tolerance=STA["ttc_threshold"],
    )
    values = [value for value in precision.values() if value is not None]
    if group == "top5_all_classes":  # a noun that is predicted and never true counts 0
        values = [value or 0.0 for value in precision.values()]
    assert 100 * np.mean(values) == pytest.approx(STA[group][name], abs=1e-9)


def test_an_image_without_predictions_can_be_counted() -> None:
    frames = anticipation()
    empty = sum(len(scores) == 0 for _, _, scores in frames)
    assert empty > 0
    published = anticipation_average_precision(frames, verb=False, seconds=False)
    clean = anticipation_average_precision(frames, verb=False, seconds=False, skip_empty=False)
    assert sum(value or 0 for value in clean.values()) < sum(value or 0 for value in published.values())


COCO = read("ego4d_scod/expected.json")


@cache
def scod() -> tuple[Boxes, Boxes, Any]:
    truth, found = read("ego4d_scod/gt_coco.json")["annotations"], read("ego4d_scod/det.json")

    def columns(entries: list[dict[str, Any]]) -> Boxes:
        corners = np.asarray([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        frames = np.asarray([entry["image_id"] for entry in entries], dtype=np.int64)
        scores = np.asarray([entry.get("score", 0.0) for entry in entries])
        return Boxes(frames, np.zeros(len(entries), np.int64), corners, scores)

    return columns(truth), columns(found), np.asarray([entry["area"] for entry in truth])


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(COCO))
def test_coco(name: str) -> None:
    truth, found, areas = scod()
    kind, _, rest = name.partition("_")
    number = re.search(r"\d+$", name)
    most = int(number.group()) if number and kind.startswith("AR") else 100
    area: Any = rest or "all"
    precision, recall = coco_average_precision(truth, found, truth_areas=areas, area=area, max_detections=most)
    value = (precision if kind.startswith("AP") else recall).mean()
    if number and kind.startswith("AP"):
        value = precision[(int(number.group()) - 50) // 5]
    assert value == pytest.approx(COCO[name], abs=1e-9)


def test_iou_of_known_boxes() -> None:
    square, half = np.asarray([[0.0, 0, 2, 2]]), np.asarray([[1.0, 0, 3, 2], [5, 5, 6, 6]])
    np.testing.assert_allclose(box_iou(square, half), [[1 / 3, 0]])
    np.testing.assert_allclose(box_iou(square, half, pixels=True)[0, 0], 6 / 12)


def test_a_second_hit_is_a_false_positive() -> None:
    truth = Boxes(
        np.zeros(2, np.int64), np.zeros(2, np.int64), np.asarray([[0.0, 0, 10, 10], [1, 0, 11, 10]]), np.zeros(2)
    )
    found = Boxes(
        np.zeros(2, np.int64), np.zeros(2, np.int64), np.asarray([[0.0, 0, 10, 10]] * 2), np.asarray([0.9, 0.8])
    )
    assert frame_average_precision(truth, found) == {0: 0.5}  # it does not fall through to the other box
    with pytest.raises(ValueError, match="no ground truth"):
        frame_average_precision(found.take(np.zeros(2, dtype=bool)), found)


def test_columns_are_checked() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Boxes(np.zeros(1, np.int64), np.zeros(2, np.int64), np.zeros((1, 4)), np.zeros(1))
    with pytest.raises(ValueError, match="NaN"):
        Boxes(np.zeros(1, np.int64), np.zeros(1, np.int64), np.full((1, 4), np.nan), np.zeros(1))
