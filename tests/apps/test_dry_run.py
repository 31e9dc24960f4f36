"""The dry run: parameters, steps, memory by kind, and what would make a step fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import in_process
import pytest
import small_world
import torch
from small_world import CLASSES, small_recipe

from internvideo.apps.dry_run import describe
from internvideo.recipe import Recipe, build_recipe
from internvideo.training.model_setup import build_model


def recipe(**changes: Any) -> Recipe:
    return build_recipe(small_recipe("supervised", **changes))


def test_a_dry_run_tells_parameters_steps_memory_and_a_loss_and_writes_nothing() -> None:
    told = describe(recipe(), device="cpu")
    model = small_world.masked_classifier()
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"learning  {count:.3f} M parameters" in told
    assert "frozen    0.000 M" in told
    assert "steps     6 (5.0 an epoch, 8 clips a batch of (3, 4, 32, 32))" in told
    assert "loss 0.6" in told or "loss 0.7" in told


def memory(**changes: Any) -> dict[str, float]:
    """MiB by kind, as the dry run tells them; "" is their sum."""
    lines = describe(recipe(**changes), device="cpu").splitlines()
    told = {line.split()[2]: float(line.split()[0]) for line in lines if re.match(r" +\d+\.\d MiB \w+$", line)}
    (whole,) = (float(line.split()[1]) for line in lines if line.startswith("memory "))
    assert whole == pytest.approx(sum(told.values()), abs=0.3)
    return told


def test_a_dry_run_tells_what_takes_memory() -> None:
    wide = {"model": {"overrides": {"width": 192, "heads": 2}}}
    plain = memory(**wide)
    with torch.device("meta"):
        model = build_model(recipe(**wide), len(CLASSES))
    whole = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    assert whole > 4
    assert plain["parameters"] == pytest.approx(whole, abs=0.2)
    assert plain["gradients"] == pytest.approx(whole, abs=0.1)
    assert plain["optimizer"] == pytest.approx(2 * whole, abs=0.1)
    assert plain["averages"] == 0.0
    twice = memory(**wide, loader={"batch_size": 16}, loop={"ema_decay": 0.9})
    assert twice["averages"] == pytest.approx(whole, abs=0.1)
    assert twice["activations"] == pytest.approx(2 * plain["activations"], rel=0.02)
    assert memory(**wide) == plain, "the same figures every time"
    again = memory(**wide, loop={"activation_checkpointing": True})
    assert again["activations"] < 0.4 * plain["activations"]
    assert {**again, "activations": 0} == {**plain, "activations": 0}


def test_a_dry_run_lists_what_would_make_a_step_fit() -> None:
    wide = recipe(model={"overrides": {"width": 192, "heads": 2}})

    def needed(*lines: str) -> list[float]:
        return [float(found[1]) for line in lines if (found := re.search(r": (?:about )?(\d+) MiB$", line))]

    def remedies(gib: float, processes: int = 1) -> list[str]:
        told = describe(wide, device="cpu", memory_gib=gib, processes=processes).splitlines()
        return [line for line in told if line.startswith(("with", "does not"))]

    assert remedies(1.0) == []
    (checkpointing,) = remedies(0.025)
    assert "loop.activation_checkpointing=true" in checkpointing
    assert needed(checkpointing)[0] <= 0.025 * 1024
    smaller = remedies(0.0213)[-1]
    assert "clips a batch instead of 8" in smaller
    assert "--processes N" in remedies(0.01)[-1]
    divided = remedies(0.02, 8)
    assert "loop.parallel=fsdp" in divided[1]
    assert needed(*divided)[1] < needed(*divided)[0]


def test_options_of_a_later_run_need_a_dry_run(tmp_path: Path) -> None:
    found = in_process.command("train", "sample/masked", "--memory-gib", "8", "-o", tmp_path / "run")
    assert "without --dry-run" in found.mistake()
