"""ActionFormer: every level's outputs, targets, losses, gradients and detections of the published detector."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS
from torch import Tensor

from internvideo.objectives.detection import detection_loss, diou_loss, focal_loss, point_targets
from internvideo.tasks.temporal_localization.config import ActionFormerConfig
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.temporal_localization.nms import SuppressionSettings
from internvideo.tasks.temporal_localization.segment_decoding import DecodingSettings, FeatureGrid, detect
from internvideo.weights.state import load_state

FOLDER = GOLDENS / "tasks" / "actionformer"
STORED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
CASES = sorted(STORED)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@cache
def arrays(case: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{case}.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def build(case: str) -> ActionFormer:
    stored, train = STORED[case]["config"], STORED[case]["train_cfg"]
    windows = stored["n_mha_win_size"]
    embedding, stem, branch = stored["backbone_arch"]
    model = ActionFormer(
        ActionFormerConfig(
            input_width=stored["input_dim"],
            width=stored["embd_dim"],
            heads=stored["n_head"],
            windows=(windows,) if isinstance(windows, int) else tuple(windows),
            max_length=stored["max_seq_len"],
            num_classes=stored["num_classes"],
            embedding_layers=embedding,
            stem_layers=stem,
            branch_layers=branch,
            neck="identity" if stored["fpn_type"] == "identity" else "pyramid",
            absolute_positions=stored["use_abs_pe"],
            relative_positions=stored["use_rel_pe"],
            head_layers=stored["head_num_layers"],
            ranges=tuple((low, high) for low, high in stored["regression_range"]),
            drop_path=train["droppath"],
            dropout=train["dropout"],
            prior=train["cls_prior_prob"],
        )
    )
    weights = {name.removeprefix("param/"): value for name, value in arrays(case).items() if name.startswith("param/")}
    load_state(model, weights)  # strict: the published names are ours
    return model.eval()


def videos(case: str) -> list[str]:
    return [name.split("/")[1] for name in arrays(case) if name.startswith("in/") and name.endswith("segments")]


def batch(case: str, model: ActionFormer) -> tuple[Tensor, Tensor]:
    names, config = videos(case), model.config
    features = torch.zeros(len(names), config.input_width, config.max_length)
    mask = torch.zeros(len(names), config.max_length, dtype=torch.bool)
    for row, name in enumerate(names):
        sequence = arrays(case)[f"in/{name}/feats"]
        features[row, :, : sequence.shape[1]], mask[row, : sequence.shape[1]] = sequence, True
    return features, mask


@cache
def outputs(case: str) -> dict[str, Tensor]:
    model = build(case)
    features, mask = batch(case, model)
    made = {}
    with torch.no_grad():
        levels, masks = model.backbone(features, mask[:, None])
        neck, found = model.neck(levels, masks), model(features, mask)
        points = model.points(features.shape[-1])
        long = arrays(case)["in/long/feats"]
        padded = model.config.padded_length(long.shape[-1])
        within = torch.arange(padded)[None, None] < long.shape[-1]
        extended = torch.nn.functional.pad(long, (0, padded - long.shape[-1]))[None]
        long_neck = model.neck(*model.backbone(extended, within))
    for level in range(model.config.levels):
        made |= {
            f"out/backbone_{level}": levels[level],
            f"out/fpn_{level}": neck[level],
            f"out/mask_{level}": masks[level],
            f"out/cls_logits_{level}": found.logits[level].transpose(1, 2),
            f"out/offsets_{level}": found.offsets[level].transpose(1, 2),
            f"out/points_{level}": points[level],
            f"out/long_fpn_{level}": long_neck[level],
        }
    return made


OUTPUTS = [(case, name) for case in CASES for name in sorted(arrays(case)) if name.startswith("out/")]


@pytest.mark.parity
@pytest.mark.parametrize(("case", "name"), OUTPUTS)
def test_output(case: str, name: str) -> None:
    torch.testing.assert_close(outputs(case)[name], arrays(case)[name], **CLOSE)


def targets(case: str, model: ActionFormer) -> tuple[Tensor, Tensor]:
    points = torch.cat(model.points(model.config.max_length))
    radius = STORED[case]["train_cfg"]["center_sample_radius"]
    made = [
        point_targets(
            points,
            arrays(case)[f"in/{name}/segments"],
            arrays(case)[f"in/{name}/labels"],
            model.config.num_classes,
            radius=radius,
        )
        for name in videos(case)
    ]
    return torch.stack([a for a, _ in made]), torch.stack([b for _, b in made])


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_targets(case: str) -> None:
    classes, distances = targets(case, build(case))
    for row, name in enumerate(videos(case)):
        torch.testing.assert_close(classes[row], arrays(case)[f"target/{name}/cls"])
        torch.testing.assert_close(distances[row], arrays(case)[f"target/{name}/reg"], rtol=1e-5, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case: str) -> None:
    model, stored = build(case), STORED[case]
    features, mask = batch(case, model)
    wanted, distances = targets(case, model)
    normaliser = torch.tensor(float(stored["train_cfg"]["init_loss_norm"]))
    loss: dict[str, Tensor] = {}
    for call in range(4):
        found = model(features, mask)
        valid = torch.cat(found.masks, dim=1)
        normaliser = 0.9 * normaliser + 0.1 * ((wanted.sum(dim=-1) > 0) & valid).sum().clamp(min=1)
        loss = detection_loss(
            torch.cat(found.logits, dim=1),
            torch.cat(found.offsets, dim=1),
            valid,
            wanted,
            distances,
            normalizer=normaliser,
            smoothing=stored["train_cfg"]["label_smoothing"],
            weight=stored["train_cfg"]["loss_weight"],
        )
        if call < 3:
            expected = stored["losses_three_successive_calls"][call]
            assert loss["class_loss"].item() == pytest.approx(expected["cls_loss"], rel=1e-5)
            assert loss["offset_loss"].item() == pytest.approx(expected["reg_loss"], rel=1e-5)
            assert loss["loss"].item() == pytest.approx(expected["final_loss"], rel=1e-5)
            assert normaliser.item() == pytest.approx(expected["loss_normalizer_after"], rel=1e-5)
    loss["loss"].backward()
    norms = {name: 0.0 if p.grad is None else p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms == pytest.approx(stored["grad_l2_norm_of_fourth_call_final_loss"], rel=1e-3, abs=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("case", "video"), [(case, video["video_id"]) for case in CASES for video in STORED[case]["videos"]]
)
def test_detections(case: str, video: str) -> None:
    asked = STORED[case]["test_cfg"]
    known = next(entry for entry in STORED[case]["videos"] if entry["video_id"] == video)
    settings = DecodingSettings(
        min_score=asked["pre_nms_thresh"],
        pre_nms_top_k=asked["pre_nms_topk"],
        min_length=asked["duration_thresh"],
        suppression=SuppressionSettings(
            sigma=asked["nms_sigma"],
            overlap=asked["iou_threshold"],
            min_score=asked["min_score"],
            max_segments=asked["max_seg_num"],
            per_class=asked["multiclass_nms"],
            voting=asked["voting_thresh"],
        ),
    )
    grid = FeatureGrid(known["fps"], known["feat_stride"], known["feat_num_frames"], known["duration"])
    segments, scores, labels = detect(build(case), arrays(case)[f"in/{video}/feats"], grid, settings)
    stored = {name: arrays(case)[f"det/{video}/{name}"].numpy() for name in ("segments", "scores", "labels")}
    np.testing.assert_allclose(segments, stored["segments"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores, stored["scores"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, stored["labels"])


LOSSES = GOLDENS / "tasks" / "tal_losses" / "losses.npz"
with np.load(LOSSES, allow_pickle=False) as file:
    LOSS = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in LOSS
        if name.startswith(("focal", "diou")) and not name.endswith(("logits", "targets", "smoothed"))
    ],
)
def test_stored_loss(name: str) -> None:
    kind, _, rest = name.partition("_")
    if kind == "focal":
        smoothed = rest.startswith("smoothed")
        x = LOSS["focal_logits"].clone().requires_grad_()
        wanted = LOSS["focal_targets_smoothed" if smoothed else "focal_targets"]
        off = "alpha_off" in rest
        each = focal_loss(x, wanted, alpha=-1.0 if off else 0.25, gamma=1.5 if off else 2.0)
    else:
        x = LOSS["iou_pred_offsets"].clone().requires_grad_()
        each = diou_loss(x, LOSS["iou_target_offsets"])
    if "grad" in rest:
        first = 3 if rest.endswith("rows_from_3") else 0
        (value,) = torch.autograd.grad(each.sum(), x)
        value = value[first:]
    else:
        value = each if rest.endswith("none") else each.mean() if rest.endswith("mean") else each.sum()
    torch.testing.assert_close(value, LOSS[name].to(value.dtype), rtol=1e-5, atol=1e-6)


def test_the_paper_s_sizes() -> None:
    thumos = ActionFormerConfig()
    activitynet = ActionFormerConfig(
        width=256, windows=(25,) * 5 + (-1,), max_length=768, num_classes=1, absolute_positions=True
    )
    counts = [sum(p.numel() for p in ActionFormer(config).parameters()) for config in (thumos, activitynet)]
    assert counts == [28_071_964, 7_533_321]


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    model = ActionFormer(ActionFormerConfig(8, 8, 2, (3,), 64, 2)).eval()
    features = torch.randn(1, 8, 64)
    shorter = torch.arange(64)[None] < 40
    with torch.no_grad():
        first = model(features, shorter)
        features[:, :, 40:] = 1e3
        second = model(features, shorter)
    for a, b in zip(first.logits, second.logits, strict=True):
        torch.testing.assert_close(a, b)


def test_a_length_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="multiple of"):
        ActionFormerConfig(max_length=100)
    model = ActionFormer(ActionFormerConfig(8, 8, 2, (3,), 64, 2))
    with pytest.raises(ValueError, match="multiple of"):
        model(torch.zeros(1, 8, 33), torch.ones(1, 33, dtype=torch.bool))


def test_steps_become_seconds_of_the_video() -> None:
    grid = FeatureGrid(fps=30.0, stride=4, window=16, duration=10.0)
    assert grid.to_seconds(np.asarray([0.0, 1.0, 1e6])) == pytest.approx([8 / 30, 12 / 30, 10.0])


def test_the_iou_loss_has_exact_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(6, 2, generator=generator, dtype=torch.float64) + 0.1).requires_grad_()
    y = torch.rand(6, 2, generator=generator, dtype=torch.float64) + 0.1
    assert diou_loss(y, y).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda v: diou_loss(v, y), (x,))


def test_focal_loss_has_exact_gradients() -> None:
    x = torch.linspace(-4, 4, 12, dtype=torch.float64).requires_grad_()
    y = torch.tensor([0.0, 1.0, 0.3] * 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: focal_loss(v, y), (x,))
    plain = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
    torch.testing.assert_close(focal_loss(x, y, alpha=-1.0, gamma=0.0), plain)
