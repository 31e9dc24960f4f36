"""What holds of every stage: a step on a CUDA device (simulated), in bfloat16, and its model compiled whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from simulated_cuda import CUDA, CudaGenerator, CudaTensor, simulated_cuda, to_simulated
from test_stages import CASES, IDS, MODELS, generator, inputs
from torch import Tensor, nn

from internvideo.tasks import STAGES

WALKS = {"navigation"}
"""Stages that walk: where an agent stands is decided on the host after every step."""
PARTS = {"max_captioned_clips": 3, "encode_chunk_size": 2, "similarity_chunk_size": 2, "caption_chunk_size": 5}
OPTIONS: list[tuple[str, Any, dict[str, Any]]] = [
    (
        "multimodal",
        MODELS["multimodal"][0],
        {"max_captioned_clips": 3, "encode_chunk_size": 2, "similarity_chunk_size": 2},
    ),
    ("retrieval", MODELS["retrieval"][0], {"loss": "dual_softmax"}),
    ("open_set", MODELS["open_set"][1], {"debias": "alternated", "kl": True, "annealing_batches": 4}),
    ("masked", MODELS["masked"][0], {"mask": "progressive", "ratio": 0.7}),
]
ALL = [*((name, build, {}) for name, build in CASES), *OPTIONS]
ALL_IDS = [*IDS, *(f"{name}-{'-'.join(given)}" for name, _, given in OPTIONS)]


def built(name: str, build: Callable[[], nn.Module], given: dict[str, Any]) -> nn.Module:
    """A stage in training mode, everything open a little."""
    stage = STAGES[name].stage(build(), STAGES[name].settings.model_validate(given))
    drawn = generator(2)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.02)
    return stage.train()


def step(stage: nn.Module, batch: Any, draws: torch.Generator, device: str, low: bool) -> dict[str, Tensor]:
    """Losses of one forward and backward pass; dropout draws the same every time."""
    torch.manual_seed(3)
    draws.manual_seed(4)
    stage.zero_grad()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=low):
        losses: dict[str, Tensor] = stage(batch, draws)
    torch.autograd.backward(losses["loss"])
    return losses


@pytest.mark.parametrize(("name", "build", "given"), ALL, ids=ALL_IDS)
def test_a_step_on_cuda_is_that_of_the_cpu_and_waits_for_nothing(
    name: str, build: Callable[[], nn.Module], given: dict[str, Any]
) -> None:
    batch = inputs(name, 4)
    expected = step(stage := built(name, build, given), batch, generator(), "cpu", low=False)
    gradients = {key: value.grad for key, value in stage.named_parameters() if value.grad is not None}
    stage = to_simulated(built(name, build, given))
    with simulated_cuda() as waits:
        moved = batch.to(CUDA)
        found = step(stage, moved, CudaGenerator(), "cuda", low=False)
        for key, value in found.items():
            assert isinstance(value, CudaTensor), key
            torch.testing.assert_close(value.inner, expected[key].detach(), rtol=1e-4, atol=1e-5, msg=key)
        for key, parameter in stage.named_parameters():
            assert (parameter.grad is None) == (key not in gradients), key
            if parameter.grad is not None:
                inner = cast(CudaTensor, parameter.grad).inner
                torch.testing.assert_close(inner, gradients[key], rtol=1e-3, atol=1e-4, msg=key)
        low = step(stage, moved, CudaGenerator(), "cuda", low=True)["loss"]
    assert name in WALKS or not waits.found
    if name not in WALKS:  # where another choice leads elsewhere
        torch.testing.assert_close(cast(CudaTensor, low).inner.float(), expected["loss"].detach(), rtol=0.1, atol=0.05)


def test_the_simulated_device_finds_what_a_gpu_would() -> None:
    values = torch.arange(6.0)
    with simulated_cuda() as waits:
        here = values.to(CUDA, non_blocking=True)
        assert here.device == CUDA
        assert not waits.found
        with pytest.raises(RuntimeError, match=r"of cuda:0 and of the CPU, \(6,\)"):
            here + values
        for wait in (
            lambda: here.sum().item(),
            lambda: here[here > 2],
            lambda: here.nonzero(),
            lambda: values.to(CUDA),
            lambda: here.cpu(),
            lambda: here.tolist(),
            lambda: torch.tensor([1.0], device=CUDA),
            lambda: bool((here > 2).any()),
        ):
            waits.found.clear()
            wait()
            assert len(waits.found) == 1
        waits.found.clear()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            low = here[None] @ here[:, None]
            assert (low.dtype, low.softmax(0).dtype, (low + 1).dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
        assert not waits.found
    with torch.autocast("cuda", enabled=False):
        assert (values[None] @ values[:, None]).item() == 55


COMPILED = [(name, build) for name, build in CASES if name != "navigation"]
"""A walk reads where it stands after every step."""
ENTRIES = {
    "retrieval": ("encode_video", "encode_text"),
    "waypoints": ("waypoints",),
}
"""What a stage calls of its model, where that is not the model itself."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, while it traces
@pytest.mark.parametrize(("name", "build"), COMPILED, ids=[name for name in IDS if not name.startswith("navigation")])
def test_the_model_of_a_stage_is_one_graph(name: str, build: Callable[[], nn.Module]) -> None:
    batch = inputs(name, 4)
    expected = step(built(name, build, {}), batch, generator(), "cpu", low=False)["loss"]
    stage = built(name, build, {})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = cast(Any, stage.model)
    for entry in ENTRIES.get(name, ("forward",)):
        setattr(model, entry, torch.compile(getattr(model, entry), fullgraph=True, backend="eager"))
    found = step(stage, batch, generator(), "cpu", low=False)["loss"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(found, expected)
