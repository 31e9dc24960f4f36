"""mAP of the plain way to localise: class scores of sliding windows, thresholded, merged, thinned out.

internvideo extract WORLD/long.jsonl -o SCORES -e CLASSIFIER --window-frames 24 --stride-frames 4 --layer scores
python benchmarks/localization_baseline.py SCORES --background "standing still" -o runs/baseline

With --fit the scores are those of a linear classifier of windows, fitted on the features of a split: every class for
itself, a window belongs to the actions that are going on in its middle.

python benchmarks/localization_baseline.py FEATURES --fit train -o runs/fitted_baseline
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

import window_baseline
from internvideo.tasks.table import print_result, save_result
from internvideo.tasks.temporal_localization import predict as localization
from internvideo.tasks.temporal_localization.data import FeatureSet, load_features, read_feature_set

THUMOS_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)

Classify = Callable[[NDArray[Any]], NDArray[Any]]


def fitted(features: FeatureSet, steps: int = 400) -> Classify:
    """A linear layer and sigmoids, fitted on the windows of all videos: features (T, width) -> (T, C)."""
    values, targets = [], []
    for video in features.videos:
        rows = torch.from_numpy(load_features(video))
        middle = (torch.arange(len(rows)) * video.stride + 0.5 * video.window) / video.fps
        target = torch.zeros(len(rows), len(features.classes))
        for (start, end), label in zip(video.spans.tolist(), video.labels.tolist(), strict=True):
            target[(middle >= start) & (middle <= end), label] = 1.0
        values.append(rows)
        targets.append(target)
    x, y = torch.cat(values), torch.cat(targets)
    mean, deviation = x.mean(dim=0), x.std(dim=0) + 1e-6
    torch.manual_seed(0)
    head = torch.nn.Linear(x.shape[1], y.shape[1])
    torch.nn.init.constant_(head.bias, -3.0)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head((x - mean) / deviation), y)
        torch.autograd.backward(loss)
        optimizer.step()

    def classify(rows: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            found: NDArray[Any] = head((torch.from_numpy(rows) - mean) / deviation).sigmoid().numpy()
        return found

    return classify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--fit", metavar="SPLIT")
    parser.add_argument("--background", nargs="*", default=[])
    parser.add_argument("--tiou", type=float, nargs="+", default=THUMOS_THRESHOLDS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    features = read_feature_set(given.features)
    table = window_baseline.predict(
        features.subset(given.split),
        tiou_thresholds=tuple(given.tiou),
        classify=fitted(features.subset(given.fit)) if given.fit else None,
        background=given.background,
    )
    result = localization.score(table)
    save_result(result, table.save(given.output / "temporal_localization.npz").with_suffix(".json"))
    print_result(result)


if __name__ == "__main__":
    main()
