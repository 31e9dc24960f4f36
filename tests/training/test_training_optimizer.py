"""Parameter groups, layer decay, multipliers, and the optimizers."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
import small_world
import torch
from goldens_folder import GOLDENS
from pydantic import ValidationError
from torch import nn

from internvideo.errors import RecipeError
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig
from internvideo.tasks.retrieval.stage import RetrievalSettings, RetrievalStage
from internvideo.training.optimizer import (
    BertAdam,
    ParameterRule,
    layer_scale,
    make_optimizer,
    parameter_rules,
    set_learning_rate,
)
from internvideo.training.schedule import Schedule
from internvideo.training.settings import OptimizerSettings, ScheduleSettings

TASKS: dict[str, Any] = json.loads((GOLDENS / "tasks/training_schedules/expected.json").read_text())
CLASSIFICATION: dict[str, Any] = json.loads((GOLDENS / "tasks/classification/expected.json").read_text())["layer_decay"]
PUBLISHED: dict[str, Any] = json.loads((GOLDENS / "models/mae_layer_decay.json").read_text())


class Tower(nn.Module):
    """Two blocks and a head, with rules of its own."""

    max_layer_id = 3

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)
        self.position = nn.Parameter(torch.zeros(1, 3, 4))

    def get_layer_id(self, name: str) -> int:
        if name.startswith(("embed", "position")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else self.max_layer_id

    def no_weight_decay(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim <= 1 or name == "position"


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Tower()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.extra = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.zeros(()))


def depths(kind: str) -> list[tuple[str, str]]:
    """Of every stored table of a kind its name, which tells depth and decay, and its keys."""
    return [(table, key) for table in TASKS if table.startswith(kind) for key in TASKS[table]]


@pytest.mark.parity
@pytest.mark.parametrize(("table", "layer"), depths("layer_scale_"))
def test_layer_scale(table: str, layer: str) -> None:
    told = re.fullmatch(r"layer_scale_depth(\d+)_decay(\d+)p(\d+)", table)
    assert told is not None
    decay, last = float(f"{told[2]}.{told[3]}"), int(told[1]) + 1
    assert layer_scale(decay, int(layer), last) == pytest.approx(TASKS[table][layer], abs=1e-12)


@cache
def classifier(depth: int) -> VideoMAEClassifier:
    """So many layers with the names of the published model."""
    return VideoMAEClassifier(VideoMAEConfig(image_size=16, frames=2, width=6, heads=1, depth=depth, num_classes=3))


@pytest.mark.parity
@pytest.mark.parametrize(("table", "name"), depths("layer_id_"))
def test_layer_id(table: str, name: str) -> None:
    depth = int(table.removeprefix("layer_id_depth"))
    assert classifier(depth).max_layer_id == depth + 1
    assert classifier(depth).get_layer_id(name) == TASKS[table][name]


@pytest.mark.parity
def test_every_stored_table_is_read() -> None:
    """Here, in tests/training/test_training_schedule.py and in tests/data/test_mixup.py."""
    known = ("mixup_target", "cosine_with_warmup", "retrieval_warmup_cosine", "retrieval_optimizer")
    assert [
        table for table in TASKS if table not in known and not table.startswith(("layer_id_", "layer_scale_"))
    ] == []
    assert set(known) <= set(TASKS)
    assert depths("layer_id_")
    assert depths("layer_scale_")


@pytest.mark.parity
@pytest.mark.parametrize("layer", range(len(CLASSIFICATION["scale_by_layer_id"])))
def test_layer_scale_of_four_layers(layer: int) -> None:
    case = CLASSIFICATION
    found = layer_scale(case["decay"], layer, case["num_layers"] + 1)
    assert found == pytest.approx(case["scale_by_layer_id"][layer], abs=1e-12)


@pytest.mark.parity
def test_groups_of_the_published_classifier() -> None:
    size = PUBLISHED["constructor"]
    config = VideoMAEConfig(
        image_size=size["img_size"],
        patch_size=size["patch_size"],
        frames=size["all_frames"],
        width=size["embed_dim"],
        depth=size["depth"],
        heads=size["num_heads"],
        num_classes=size["num_classes"],
    )
    settings = OptimizerSettings(
        base_lr=1.0, layer_decay=PUBLISHED["layer_decay"], weight_decay=PUBLISHED["weight_decay"]
    )
    rules = parameter_rules(nn.ModuleDict({"model": VideoMAEClassifier(config)}), settings)
    found = {
        name.removeprefix("model."): {"lr_scale": rule.lr_scale, "weight_decay": rule.weight_decay}
        for name, rule in rules.items()
    }
    assert found == PUBLISHED["params"]


@pytest.mark.parity
@pytest.mark.parametrize("last", range(len(TASKS["retrieval_optimizer"]["after_each_step"])))
def test_retrieval_optimizer(last: int) -> None:
    """The parameters after step number `last`, made from the stored gradients so far."""
    case = TASKS["retrieval_optimizer"]
    parameter = nn.Parameter(torch.tensor(case["initial"]))
    settings = OptimizerSettings(
        kind="bert_adam",
        base_lr=case["lr"],
        betas=tuple(case["betas"]),
        eps=case["eps"],
        weight_decay=case["weight_decay"],
    )
    module = nn.ParameterDict({"weight": parameter})
    optimizer = make_optimizer(module, settings)
    assert isinstance(optimizer, BertAdam)
    assert optimizer.param_groups[0]["clip"] == case["max_grad_norm_per_tensor"]
    total = case["t_total"]
    schedule = Schedule(
        ScheduleSettings(steps=total, kind="cosine_including_warmup"),
        peak=case["lr"],
        scale=1.0,
        total_steps=total,
        warmup_steps=round(case["warmup"] * total),
    )
    assert len(case["grads"]) == len(case["after_each_step"])
    for step, gradient in enumerate(case["grads"][: last + 1]):
        parameter.grad = torch.tensor(gradient)
        set_learning_rate(optimizer, schedule(step))
        optimizer.step()
    expected = torch.tensor(case["after_each_step"][last])
    torch.testing.assert_close(parameter.detach(), expected, atol=1e-7, rtol=1e-6)


def test_rules_are_found_through_the_stage() -> None:
    rules = parameter_rules(Stage(), OptimizerSettings(base_lr=1.0, weight_decay=0.1, layer_decay=0.5))
    assert rules == {
        "scale": ParameterRule(1.0, 0.0),
        "model.position": ParameterRule(0.125, 0.0),
        "model.embed.weight": ParameterRule(0.125, 0.1),
        "model.embed.bias": ParameterRule(0.125, 0.0),
        "model.blocks.0.weight": ParameterRule(0.25, 0.1),
        "model.blocks.0.bias": ParameterRule(0.25, 0.0),
        "model.blocks.1.weight": ParameterRule(0.5, 0.1),
        "model.blocks.1.bias": ParameterRule(0.5, 0.0),
        "model.head.weight": ParameterRule(1.0, 0.1),
        "model.head.bias": ParameterRule(1.0, 0.0),
        "extra.weight": ParameterRule(1.0, 0.1),
        "extra.bias": ParameterRule(1.0, 0.0),
    }


def test_multipliers_multiply_and_groups_follow() -> None:
    settings = OptimizerSettings(
        base_lr=1.0, layer_decay=0.5, lr_multipliers={"head": 10.0, r"blocks\.1": 4.0, "weight": 2.0}
    )
    stage = Stage()
    rules = parameter_rules(stage, settings)
    assert rules["model.head.weight"].lr_scale == 20.0
    assert rules["model.head.bias"].lr_scale == 10.0
    assert rules["model.blocks.1.weight"].lr_scale == 4.0
    optimizer = make_optimizer(stage, settings)
    set_learning_rate(optimizer, 1e-3)
    names = {id(parameter): name for name, parameter in stage.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert seen == {name: (1e-3 * rule.lr_scale, rule.weight_decay) for name, rule in rules.items()}


def test_wrong_requests_are_told() -> None:
    with pytest.raises(RecipeError, match="'classifier' is in no name"):
        parameter_rules(Stage(), OptimizerSettings(base_lr=1.0, lr_multipliers={"classifier": 10.0}))
    with pytest.raises(RecipeError, match="no layer ids"):
        parameter_rules(nn.Linear(2, 2), OptimizerSettings(base_lr=1.0, layer_decay=0.5))
    with pytest.raises(RecipeError, match="no trainable parameter"):
        parameter_rules(nn.Linear(2, 2).requires_grad_(False), OptimizerSettings(base_lr=1.0))
    with pytest.raises(ValidationError, match="not a regular expression"):
        OptimizerSettings(base_lr=1.0, lr_multipliers={"(": 1.0})
    with pytest.raises(ValidationError):
        OptimizerSettings.model_validate({"base_lr": 1.0, "learning_rate": 2.0})


def test_learning_rate_scaling() -> None:
    assert OptimizerSettings(base_lr=1.5e-4, lr_scaling="batch/256").scale(2048) == 8.0
    assert OptimizerSettings(base_lr=1.5e-4).scale(2048) == 1.0


@pytest.mark.parametrize("kind", ["adamw", "bert_adam", "sgd"])
def test_a_flagged_step_moves_nothing(kind: str) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = make_optimizer(module, OptimizerSettings.model_validate({"base_lr": 0.1, "kind": kind}))

    def step(bad: bool) -> None:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, float("nan") if bad else 1.0)
        optimizer.found_inf = torch.tensor(float(bad))  # type: ignore[attr-defined]  # the flag GradScaler uses too
        optimizer.step()

    step(bad=False)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    step(bad=True)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    step(bad=False)
    assert not any(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_adamw_against_the_formula() -> None:
    torch.manual_seed(1)
    module = nn.Linear(3, 1, bias=False)
    start, gradient = module.weight.detach().double().clone(), torch.randn(1, 3)
    optimizer = make_optimizer(module, OptimizerSettings(base_lr=1.0, weight_decay=0.1, betas=(0.9, 0.95)))
    set_learning_rate(optimizer, 0.01)
    module.weight.grad = gradient.clone()
    optimizer.step()
    # The first step of Adam with bias correction is lr * sign(gradient).
    expected = start * (1 - 0.01 * 0.1) - 0.01 * gradient.double() / (gradient.double().abs() + 1e-8)
    assert torch.allclose(module.weight.detach().double(), expected, atol=1e-7)


def test_sgd_against_the_formula() -> None:
    """v <- m v + g, w <- w - lr (g + m v) with g = gradient + decay w (Nesterov; DEAR)."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = make_optimizer(
        nn.ParameterDict({"weight": weight}), OptimizerSettings(kind="sgd", base_lr=0.1, momentum=0.9, weight_decay=0.5)
    )
    w, v = torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2)
    for _ in range(3):
        weight.grad = torch.tensor([[0.3, 0.1]])
        set_learning_rate(optimizer, 0.1)
        optimizer.step()
        g = torch.tensor([[0.3, 0.1]]) + 0.5 * w
        v = 0.9 * v + g
        w = w - 0.1 * (g + 0.9 * v)
    torch.testing.assert_close(weight.detach(), w)


def test_what_decays_in_the_retrieval_recipes() -> None:
    """The released list has "bias" and "LayerNorm.weight", which no gain of a CLIP is called: biases alone are spared.

    OpenGVLab/InternVideo, Video-Text-Retrieval/main_task_retrieval.py, prep_optimizer. Embeddings, positions, queries
    and the logit scale decay too, also by the rule that spares all normalizations.
    """
    stage = RetrievalStage(small_world.language_model(), RetrievalSettings())
    settings = OptimizerSettings(base_lr=1.0, weight_decay=0.2, no_decay="biases_and_norms")

    def spared(rule: str) -> set[str]:
        rules = parameter_rules(stage, settings.model_copy(update={"no_decay": rule}))
        assert {rule.weight_decay for rule in rules.values()} <= {0.0, 0.2}
        return {name for name, rule in rules.items() if rule.weight_decay == 0.0}

    names = set(parameter_rules(stage, settings))
    normalizations = tuple(
        f"{name}."
        for name, module in stage.named_modules()
        if isinstance(module, nn.LayerNorm | nn.modules.batchnorm._BatchNorm)
    )
    biases = {name for name in names if name.endswith("bias")}
    assert spared("biases_and_norms") == biases
    assert spared("nothing") == set()
    exempt, by_the_model = spared("biases_and_all_norms"), spared("model")
    assert exempt == biases | {name for name in names if name.startswith(normalizations)}
    assert biases < exempt
    assert exempt < by_the_model
    assert by_the_model - exempt == {
        "model.logit_scale",
        "model.text.positional_embedding",
        "model.text.token_embedding.weight",
        "model.visual.balance",
        "model.visual.query",
        "model.visual.stem.class_embedding",
        "model.visual.stem.positional_embedding",
    }
