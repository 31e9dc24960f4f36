"""TCANet: the stored parts of the published network, and that it learns to move the ends of proposals."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS

from internvideo.metrics.temporal_detection import tiou
from internvideo.objectives.refinement import balanced_sample, refinement_loss
from internvideo.tasks.refinement import model as tcanet
from internvideo.tasks.refinement.model import TCANet, TCANetConfig
from internvideo.tasks.temporal_localization.nms import SuppressionSettings, suppress

FOLDER = GOLDENS / "tasks" / "tcanet_parts"
STORED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
with np.load(FOLDER / "parts.npz", allow_pickle=False) as file:
    ARRAYS = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
MASKS = sorted(name for name in ARRAYS if name.startswith("attention_blocked_mask"))


def config() -> TCANetConfig:
    stored = STORED["ttn"]
    return TCANetConfig(
        input_width=8,
        width=16,
        boundary_ratio=stored["boundary_ratio"],
        start_samples=stored["start_samples"],
        action_samples=stored["action_samples"],
        end_samples=stored["end_samples"],
        seconds_per_feature=stored["seconds_per_feature"],
    )


@pytest.mark.parity
@pytest.mark.parametrize("region", ["start", "action", "end"])
def test_regions(region: str) -> None:
    segments = ARRAYS["segments"]
    made = tcanet.sample_regions(ARRAYS["features"], torch.arange(len(segments)), segments, config())
    found = dict(zip(("start", "action", "end"), made, strict=True))[region]
    torch.testing.assert_close(found, ARRAYS[f"{region}_feature"], rtol=1e-4, atol=5e-5)


@pytest.mark.parity
def test_codecs() -> None:
    proposals, truth, deltas = ARRAYS["proposals"], ARRAYS["gt"], ARRAYS["deltas"]
    torch.testing.assert_close(tcanet.encode_ends(proposals, truth), ARRAYS["se_targets"])
    torch.testing.assert_close(tcanet.encode_center(proposals, truth), ARRAYS["xw_targets"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tcanet.decode_ends(proposals, deltas), ARRAYS["se_decoded_1p0"])
    torch.testing.assert_close(tcanet.decode_ends(proposals, deltas, 0.2), ARRAYS["se_decoded_0p2"])
    torch.testing.assert_close(tcanet.decode_center(proposals, deltas), ARRAYS["xw_decoded_0p1_0p2"])
    torch.testing.assert_close(tcanet.decode_ends(proposals, tcanet.encode_ends(proposals, truth)), truth)
    back = tcanet.decode_center(proposals, tcanet.encode_center(proposals, truth), (1.0, 1.0))
    torch.testing.assert_close(back, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parity
def test_overlaps() -> None:
    made = tiou(ARRAYS["proposals"].double().numpy(), ARRAYS["gt"].double().numpy()).diagonal()
    np.testing.assert_allclose(made, ARRAYS["iou"].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("name", MASKS)
def test_mask(name: str) -> None:
    stored = ARRAYS[name]
    window, heads = (int(name.rpartition(key)[2].partition("_")[0]) for key in ("_w", "_heads"))
    assert torch.equal(tcanet.blocked_attention_mask(stored.shape[-1], window, heads), stored.bool())


@pytest.mark.parity
def test_suppression() -> None:
    stored, rows = STORED["soft_nms"], ARRAYS["snms_in"].numpy()
    settings = SuppressionSettings(
        sigma=stored["alpha"],
        power=stored["iou_power"],
        extent=0.0,
        min_score=0.0,
        max_segments=stored["max_outputs"],
        per_class=False,
    )
    index, scores = suppress(rows[:, :2], rows[:, 2], settings)
    found = np.concatenate([rows[index, :2], scores[:, None]], axis=1)
    expected = ARRAYS["snms_out"].numpy()
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parity
def test_every_stored_array_is_read() -> None:
    regions = {"features", "segments", "start_feature", "action_feature", "end_feature"}
    codecs = {"se_targets", "xw_targets", "se_decoded_1p0", "se_decoded_0p2", "xw_decoded_0p1_0p2"}
    given = {"proposals", "gt", "deltas", "iou", "snms_in", "snms_out"}
    assert set(ARRAYS) == regions | codecs | given | set(MASKS)
    assert MASKS


def test_it_learns_to_move_the_ends() -> None:
    torch.manual_seed(0)
    settings = TCANetConfig(
        input_width=8,
        width=32,
        heads=4,
        window=3,
        feed_forward=32,
        dropout=0.0,
        inference_factor=1.0,
        center_factors=(1.0, 1.0),
    )
    model = TCANet(settings)
    start, length = torch.rand(48) * 8 + 4, torch.rand(48) * 8 + 6
    truth = torch.stack([start, start + length], dim=1)
    time = (torch.arange(64) + 0.5) * settings.seconds_per_feature
    inside = ((time >= truth[:, :1]) & (time <= truth[:, 1:])).float()
    features = inside[:, None] * torch.ones(1, 8, 1) + 0.05 * torch.randn(48, 8, 64)
    proposals = truth + (torch.rand(48, 2) - 0.5) * 0.4 * length[:, None]
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        said, _ = model(features[:40], torch.arange(40), proposals[:40])
        losses = []
        for step, threshold in zip(said, settings.thresholds, strict=True):
            overlap = torch.from_numpy(tiou(step.proposals.numpy(), truth[:40].numpy()).diagonal().copy())
            targets = tcanet.encode_ends(step.proposals, truth[:40]), tcanet.encode_center(step.proposals, truth[:40])
            parts = (step.ends, step.center, step.quality, *targets, overlap, threshold, generator)
            losses.append(refinement_loss(*parts)["loss"])
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).sum())
        optimizer.step()
    model.eval()
    with torch.no_grad():
        _, refined = model(features[40:], torch.arange(8), proposals[40:])
    before, after = ((p - truth[40:]).abs().mean() for p in (proposals[40:], refined))
    assert after < 0.6 * before, (float(before), float(after))


def test_the_quality_loss_reads_as_many_of_each_group() -> None:
    overlap = torch.tensor([0.9] * 7 + [0.5] * 3 + [0.1] * 20)
    chosen = balanced_sample(overlap, torch.Generator().manual_seed(0))
    assert [int(chosen[part].sum()) for part in (slice(0, 7), slice(7, 10), slice(10, 30))] == [3, 3, 3]


def test_proposals_below_the_threshold_move_no_end() -> None:
    ends, center, quality = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True), torch.zeros(2)
    targets = torch.tensor([[1.0, 1.0], [float("inf"), float("inf")]])
    overlap = torch.tensor([0.8, 0.1])
    made = refinement_loss(ends, center, quality, targets, targets, overlap, 0.5, torch.Generator())
    gradient = torch.autograd.grad(made["loss"], ends)[0]
    assert made["ends_loss"].item() == pytest.approx(1.0)
    assert gradient[1].tolist() == [0.0, 0.0]
