"""Compare a table of `evaluate spatio_temporal_localization` with other scores of the same boxes, by frame mAP.

python benchmarks/region_baseline.py TABLE.npz MANIFEST CLASSIFIER.safetensors --split test

Chance is random scores; "whole clip" gives every box of a key frame what a classifier says of the clip around it;
"own clip", for a detector that sees a clip around every box, what the classifier says of that without learning more;
"frame mean" gives them the mean of the detector's own scores in the frame. Differences to the detector are paired over
videos, which are drawn again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from internvideo.data.loader import LoaderSettings
from internvideo.data.manifest import read_manifest
from internvideo.data.settings import SampledData
from internvideo.metrics import bootstrap
from internvideo.metrics.bootstrap import Statistic
from internvideo.metrics.frame_detection import Boxes, frame_average_precision, frame_map_statistic
from internvideo.pipeline import load_trained
from internvideo.tasks.spatio_temporal_localization import predict as spatio_temporal
from internvideo.tasks.spatio_temporal_localization.box_transforms import BoxedTransform
from internvideo.tasks.spatio_temporal_localization.data import (
    KeyFrameClipSettings,
    KeyFrameViews,
    frame_key,
    key_frames,
)
from internvideo.tasks.table import Predictions


def clip_scores(table: Predictions, manifest_path: Path, weights: Path, split: str | None) -> NDArray[Any]:
    """(N,) for the rows of the table: probability of the row's class in the clip around its key frame."""
    trained, manifest = load_trained(weights, device="cpu"), read_manifest(manifest_path)
    rows = manifest if split is None else manifest.subset(split=split)
    frames, stride = table.protocol["frames"], table.protocol["stride"]
    size = trained.recipe.data_as(SampledData).augment.size
    form = KeyFrameClipSettings(
        frames, stride, BoxedTransform(size=size, short=size, longest=2 * size), len(manifest.classes)
    )
    chosen = key_frames(rows)
    keys = zip(table["frame_video"].tolist(), table["frame_time"].tolist(), strict=True)
    number = {frame_key(*key): index for index, key in enumerate(keys)}
    place = [trained.classes.index(name) if name in trained.classes else -1 for name in table["classes"].tolist()]
    scores = np.zeros((len(number), len(place)))
    model: Any = trained.model
    with torch.no_grad():
        for (index,), batch in KeyFrameViews(rows, chosen, form, LoaderSettings(batch_size=1)):
            video = batch.video[..., :size, :size]
            said = model(model.normalize(video)).softmax(1)[0].numpy()
            frame = chosen[index]
            scores[number[frame_key(frame.video, frame.time)]] = [said[at] if at >= 0 else 0.0 for at in place]
    result: NDArray[Any] = scores[table["frame"], table["label"]]
    return result


def box_scores(table: Predictions, manifest_path: Path, weights: Path, split: str | None) -> NDArray[Any]:
    """(N,) for the rows of a table of annotated boxes: the same of the clip around the row's box."""
    trained, manifest = load_trained(weights, device="cpu"), read_manifest(manifest_path)
    rows = manifest if split is None else manifest.subset(split=split)
    told, size = table.protocol, trained.recipe.data_as(SampledData).augment.size
    form = KeyFrameClipSettings(
        told["frames"], told["stride"], BoxedTransform(size, around=told["around"]), len(manifest.classes)
    )
    place = [trained.classes.index(name) for name in table["classes"].tolist()]
    model: Any = trained.model
    with torch.no_grad():
        views = KeyFrameViews(rows, key_frames(rows), form, LoaderSettings(batch_size=1))
        found = [model(model.normalize(batch.video)).softmax(1)[:, place].numpy().reshape(-1) for _, batch in views]
    result: NDArray[Any] = np.concatenate(found)
    if len(result) != len(table["score"]):
        raise SystemExit("this table has other boxes than the annotated ones")
    return result


def frame_means(table: Predictions) -> NDArray[Any]:
    """(N,) the mean score of the row's class over the boxes of its frame."""
    cell = table["frame"] * len(table["classes"]) + table["label"]
    total = np.bincount(cell, table["score"]) / np.maximum(np.bincount(cell), 1)
    result: NDArray[Any] = total[cell]
    return result


def _both(own: Statistic, other: Statistic) -> Statistic:
    """The other's figure, and how far the own one is before it."""

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        value = other(weights)
        return np.stack([value, own(weights) - value], axis=1)

    return statistic


def main() -> None:
    """Print a line for each kind of scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("--split")
    parser.add_argument("-o", "--output", type=Path, help="write the figures, the detector's before each, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Predictions.load(given.table)
    truth, found = spatio_temporal.evaluated_boxes(table)
    names, video = np.unique(table["frame_video"], return_inverse=True)
    kinds: dict[str, Boxes] = {
        "detector": found,
        "chance": replace(found, score=np.random.default_rng(0).random(len(found))),
        "frame mean": replace(found, score=frame_means(table)),
        "whole clip": replace(found, score=clip_scores(table, given.manifest, given.classifier, given.split)),
    }
    if "around" in table.protocol:
        kinds["own clip"] = replace(found, score=box_scores(table, given.manifest, given.classifier, given.split))
    own = frame_map_statistic(truth, found, video)
    result: dict[str, dict[str, Any]] = {"figures": {}, "intervals": {}}
    for name, boxes in kinds.items():
        value = float(np.mean(list(frame_average_precision(truth, boxes).values())))
        other = frame_map_statistic(truth, boxes, video)
        low, high = bootstrap.interval(_both(own, other), len(names), draws=200)
        print(
            f"{name:12} {100 * value:5.1f} ({100 * low[0]:.1f} to {100 * high[0]:.1f}), "
            f"detector before it by {100 * low[1]:.1f} to {100 * high[1]:.1f}"
        )
        result["figures"][name] = value
        result["intervals"] |= {name: [low[0], high[0]], f"detector over {name}": [low[1], high[1]]}
    if given.output:
        given.output.write_text(json.dumps(result, indent=1), "utf-8")


if __name__ == "__main__":
    main()
