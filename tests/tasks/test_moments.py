"""Ego4D's moment queries: the detector's configuration, and figures as the published evaluator counts them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS

from internvideo.model_table import MODELS, create_model
from internvideo.recipe import read_recipe
from internvideo.tasks.table import Predictions
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.temporal_localization.predict import RECALLS, score
from internvideo.tasks.temporal_localization.stage import LocalizationSettings


def read(name: str) -> Any:
    return json.loads((GOLDENS / "tasks" / "ego4d_mq" / name).read_text())


def stored_table() -> tuple[dict[str, Any], Predictions]:
    """The stored predictions in the columns that `predict` writes."""
    stored, clips = read("expected.json"), read("clip_annotations.json")
    classes = stored["detection"]["activity_index"]
    names = list(clips)  # the evaluator counts what is predicted in clips of other subsets as wrong
    own = [name for name, clip in clips.items() if clip["subset"] == stored["subset"]]
    truth = [(names.index(name), row) for name in own for row in clips[name]["annotations"]]
    results = read("pred.json")["results"]
    found = [(names.index(name), row) for name in names for row in results.get(name, []) if row["label"] in classes]
    arrays = {
        "ids": np.asarray(names),
        "video": np.asarray([video for video, _ in found]),
        "span": np.asarray([row["segment"] for _, row in found], dtype=np.float64),
        "score": np.asarray([row["score"] for _, row in found]),
        "label": np.asarray([classes[row["label"]] for _, row in found]),
        "truth_video": np.asarray([video for video, _ in truth]),
        "truth_span": np.asarray([(row["start_time"], row["end_time"]) for _, row in truth], dtype=np.float64),
        "truth_label": np.asarray([classes[row["label"]] for _, row in truth]),
    }
    protocol = {"tiou": stored["detection"]["tiou"], "recall": RECALLS["moments"]}
    return stored, Predictions(
        "temporal_localization", arrays, protocol, {"asked": len(names), "read": len(names), "unreadable": []}
    )


@pytest.mark.parity
def test_figures_of_a_table_are_the_evaluators() -> None:
    stored, table = stored_table()
    figures = score(table)["figures"]
    assert figures["mean_mAP"] == pytest.approx(stored["detection"]["average_mAP"], abs=1e-9)
    recall = stored["recall_at_kx"]
    row = recall["values"][recall["tiou"].index(0.5)]
    assert figures["recall_1x"] == pytest.approx(row[recall["k"].index(1)], abs=1e-9)
    assert figures["recall_5x"] == pytest.approx(row[recall["k"].index(5)], abs=1e-9)


def test_a_table_that_does_not_say_so_has_the_other_recall() -> None:
    table = stored_table()[1]
    other = replace(table, protocol={**table.protocol, "recall": RECALLS["classes"]})
    figures, plain = score(table)["figures"], score(other)["figures"]
    assert figures["recall_1x"] != plain["recall_1x"]
    assert figures["mean_mAP"] == plain["mean_mAP"]
    older = {key: value for key, value in table.protocol.items() if key != "recall"}
    assert score(replace(table, protocol=older))["figures"] == plain


def test_the_configuration() -> None:
    config = MODELS["actionformer-ego4d-mq"].config
    assert (config.levels, config.width, config.windows, config.max_length) == (8, 384, (9,), 1024)
    assert (config.num_classes, config.absolute_positions, config.multiple) == (110, True, 1024)
    with torch.device("meta"):
        model = create_model("actionformer-ego4d-mq")
    assert isinstance(model, ActionFormer)
    assert [len(points) for points in model.points(1024)] == [1024 >> level for level in range(8)]


def test_the_recipe_measures_as_ego4d_does() -> None:
    settings = read_recipe("benchmarks/ego4d_mq").settings
    assert isinstance(settings, LocalizationSettings)
    assert settings.tiou_thresholds == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert settings.recall_protocol == "moments"
