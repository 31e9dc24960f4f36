"""Regions: the stored head, and RoIAlign against a plain float64 sampling of every point."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS
from torch import Tensor

from internvideo.tasks.spatio_temporal_localization import regions
from internvideo.tasks.spatio_temporal_localization.regions import (
    RegionHead,
    default_roi_align,
    jitter_boxes,
    region_loss,
    roi_align,
    torchvision_roi_align,
    widen_boxes,
)

FOLDER = GOLDENS / "tasks" / "ava_head"
STORED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
with np.load(FOLDER / "head.npz", allow_pickle=False) as file:
    ARRAYS = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def head() -> RegionHead:
    pooler = STORED["pooler"]
    classes, width = ARRAYS["weight"].shape
    model = RegionHead(width, classes, patch=round(1 / pooler["scale"]), output_size=pooler["output"])
    model.projection.load_state_dict({"weight": ARRAYS["weight"], "bias": ARRAYS["bias"]})
    return model


def rois() -> tuple[Tensor, Tensor]:
    return ARRAYS["rois"][:, 0].long(), ARRAYS["rois"][:, 1:]


@pytest.mark.parity
def test_widened_boxes() -> None:
    size = tuple(ARRAYS["image_size_wh"].tolist())
    torch.testing.assert_close(widen_boxes(ARRAYS["boxes_xyxy"], size), ARRAYS["boxes_extended_0p1_0p05"])


@pytest.mark.parity
def test_pooled_features() -> None:
    clip, boxes = rois()
    grid = ARRAYS["tokens"].mean(dim=1).permute(0, 3, 1, 2)
    pooled = roi_align(
        grid, clip, boxes, output_size=STORED["pooler"]["output"], spatial_scale=STORED["pooler"]["scale"]
    )
    torch.testing.assert_close(pooled[0], ARRAYS["pooled_7x7_roi0"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head().pool(ARRAYS["tokens"], clip, boxes), ARRAYS["pooled_max"], rtol=1e-5, atol=1e-5)


@pytest.mark.parity
def test_logits_loss_and_scores() -> None:
    logits = head()(ARRAYS["tokens"], *rois())
    torch.testing.assert_close(logits, ARRAYS["logits"], rtol=1e-5, atol=1e-5)
    assert region_loss(logits, ARRAYS["labels"]).item() == pytest.approx(ARRAYS["loss"].item(), rel=1e-5)
    scores = logits.sigmoid() * ARRAYS["person_scores"][:, None]
    torch.testing.assert_close(scores, ARRAYS["action_scores"], rtol=1e-5, atol=1e-6)


def sampled(features: Tensor, box: list[float], bins: int, scale: float) -> Tensor:
    """RoIAlign of one box of (D, H, W), sample by sample."""
    x1, y1, x2, y2 = (value * scale for value in box)
    width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    rows, columns = math.ceil(height / bins), math.ceil(width / bins)
    result = torch.zeros(features.shape[0], bins, bins, dtype=features.dtype)
    limit_y, limit_x = features.shape[1] - 1, features.shape[2] - 1
    for p in range(bins):
        for q in range(bins):
            for i in range(rows):
                for j in range(columns):
                    y = y1 + (p + (i + 0.5) / rows) * height / bins
                    x = x1 + (q + (j + 0.5) / columns) * width / bins
                    if not (-1 <= y <= limit_y + 1 and -1 <= x <= limit_x + 1):
                        continue
                    y, x = min(max(y, 0.0), limit_y), min(max(x, 0.0), limit_x)
                    a, b = int(y), int(x)
                    c, d = min(a + 1, limit_y), min(b + 1, limit_x)
                    low = features[:, a, b] * (1 - (x - b)) + features[:, a, d] * (x - b)
                    high = features[:, c, b] * (1 - (x - b)) + features[:, c, d] * (x - b)
                    result[:, p, q] += (low * (1 - (y - a)) + high * (y - a)) / (rows * columns)
    return result


@pytest.mark.parametrize(
    "box",
    [
        [0.0, 0, 160, 96],
        [13.3, 40.7, 90.1, 77.2],
        [150, 80, 158, 95],
        [-60, -60, 40, 40],
        [100, 50, 400, 300],
        [5, 5, 6, 6],
    ],
)
def test_against_sampling_point_by_point(box: list[float]) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    found = roi_align(
        features, torch.tensor([1]), torch.tensor([box], dtype=torch.float64), output_size=7, spatial_scale=1 / 16
    )
    torch.testing.assert_close(found[0], sampled(features[1], box, 7, 1 / 16), rtol=1e-9, atol=1e-9)


def test_gradients() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[3.0, 5.0, 60.0, 50.0], [10.0, 0.0, 20.0, 64.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, torch.tensor([0, 0]), boxes, output_size=2), (features,))


def test_torchvision_is_taken_where_it_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed: torchvision's where it is, ours where it is not or is made for another torch."""
    present = find_spec("torchvision") is not None
    default_roi_align.cache_clear()
    assert default_roi_align() is (torchvision_roi_align if present else roi_align)
    asked: list[tuple[int, float]] = []

    def operator(features: Tensor, rois: Tensor, bins: int, scale: float, **how: object) -> Tensor:
        assert how == {"sampling_ratio": -1, "aligned": False}
        assert features.dtype == rois.dtype == torch.float32
        asked.append((bins, scale))
        return roi_align(features, rois[:, 0].long(), rois[:, 1:], output_size=bins, spatial_scale=scale)

    def stand_in(name: str) -> object:
        return SimpleNamespace(roi_align=operator) if name == "torchvision.ops" else import_module(name)

    monkeypatch.setattr(regions, "import_module", stand_in)
    default_roi_align.cache_clear()
    model = RegionHead(4, 2, patch=8, output_size=3)
    tokens, clip, boxes = torch.randn(1, 2, 4, 4, 4), torch.tensor([0]), torch.tensor([[2.0, 3.0, 20.0, 30.0]])
    found = model.pool(tokens, clip, boxes)
    assert asked == [(3, 1 / 8)]
    assert torchvision_roi_align(torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16), clip, boxes).dtype == torch.bfloat16

    def broken(name: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(regions, "import_module", broken)
    default_roi_align.cache_clear()
    assert default_roi_align() is roi_align
    model.roi_align = default_roi_align()
    torch.testing.assert_close(model.pool(tokens, clip, boxes), found)
    default_roi_align.cache_clear()


BOTH = [torchvision_roi_align] if find_spec("torchvision") is not None else []
"""Compared only where torchvision is installed."""


@pytest.mark.parametrize("other", [roi_align, *BOTH])
def test_every_roi_align_here_is_equal(other: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, 9, 13, dtype=torch.float64)
    corners = torch.rand(40, 4, dtype=torch.float64) * 260 - 30
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:].abs()], dim=1)
    clip = torch.arange(40) % 2
    found = other(features, clip, boxes, output_size=7, spatial_scale=1 / 16)
    for row in (0, 7, 23, 39):
        expected = sampled(features[clip[row]], boxes[row].tolist(), 7, 1 / 16)
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-6)


def test_no_boxes() -> None:
    assert roi_align(torch.zeros(1, 2, 4, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)).shape == (
        0,
        2,
        7,
        7,
    )


def test_jitter_stays_within_its_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[100.0, 100.0, 199.0, 299.0]]).expand(500, 4)
    moved = jitter_boxes(boxes, (640, 480), generator) - boxes
    out = moved * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    assert out[:, [0, 2]].max() <= 20
    assert out[:, [0, 2]].min() >= -10
    assert out[:, [1, 3]].max() <= 20
    assert out[:, [1, 3]].min() >= -10
    assert out.max() > 18
    assert out.min() < -9
    assert (jitter_boxes(torch.tensor([[0.0, 0.0, 639.0, 479.0]]), (640, 480), generator) >= 0).all()
