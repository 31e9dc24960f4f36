"""The memory of a step, predicted from shapes, is what a real step keeps: for every stage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_stages import CASES, IDS, inputs
from test_stages_devices import PARTS, built
from torch import nn

from internvideo.errors import RunError
from internvideo.training.memory import counted_activations, predict_activations

FROM_VALUES = {"temporal_localization", "refinement", "spatio_temporal_localization", "anticipation", "navigation"}
"""Stages whose shapes follow from values: how many truths a place matches, where an agent walks."""
IN_PARTS = [
    pytest.param(name, build, PARTS, True, id=f"{name}-parts-bfloat16", marks=pytest.mark.slow)
    for name, build in CASES
    if name == "multimodal"
]
ALL = [pytest.param(*case, {}, False, id=name) for case, name in zip(CASES, IDS, strict=True)]


@pytest.mark.parametrize(("name", "build", "given", "low"), [*ALL, *IN_PARTS])
def test_the_predicted_activations_are_those_of_a_step(
    name: str, build: Callable[[], nn.Module], given: dict[str, object], low: bool
) -> None:
    stage, batch = built(name, build, given), inputs(name, 4)
    if name in FROM_VALUES:
        with pytest.raises(RunError, match="shapes of this stage follow from values"):
            predict_activations(stage, batch, bfloat16=low)
        return
    found, operations = predict_activations(stage, batch, bfloat16=low)
    weights = [*stage.parameters(), *stage.buffers()]
    with counted_activations(weights) as activations:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            losses = stage(batch, torch.Generator().manual_seed(0))
        torch.autograd.backward(losses["loss"])
    assert found == pytest.approx(activations.bytes, rel=0.02)
    assert operations > 0
