"""Of every stage: its memory, a step on a CUDA device (simulated), in bfloat16, and its model compiled whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import pytest
import torch
from simulated_cuda import CUDA, CudaGenerator, CudaTensor, simulated_cuda, to_simulated
from test_stages import CASES, IDS, MODELS, generator, inputs
from torch import Tensor, nn

from internvideo.errors import RunError
from internvideo.tasks import STAGES
from internvideo.training.memory import count_activations, predict_activations

WALKS = {"navigation"}
"""Stages that walk: where an agent stands is decided on the host after every step."""
FROM_VALUES = {"temporal_localization", "refinement", "spatio_temporal_localization", "anticipation", "navigation"}
"""Stages whose shapes depend on values: how many truths a point matches, where an agent goes."""
DRAWS = {"masked", "refinement", "spatio_temporal_localization", "anticipation", "navigation"}
"""Stages that draw random numbers on the device, whose generator is another one than the CPU's."""
PARTS = {"max_captioned_clips": 3, "encode_chunk_size": 2, "similarity_chunk_size": 2}
IN_PARTS = ("multimodal", MODELS["multimodal"][0], {**PARTS, "caption_chunk_size": 5})
OPTIONS: list[tuple[str, Any, dict[str, Any]]] = [
    ("multimodal", MODELS["multimodal"][0], PARTS),
    ("retrieval", MODELS["retrieval"][0], {"loss": "dual_softmax"}),
    ("open_set", MODELS["open_set"][1], {"debias": "alternated", "kl": True, "annealing_batches": 4}),
    ("masked", MODELS["masked"][0], {"mask": "progressive", "ratio": 0.7}),
]
ALL = [*((name, build, {}) for name, build in CASES), *OPTIONS]
ALL_IDS = [*IDS, *(f"{name}-{'-'.join(given)}" for name, _, given in OPTIONS)]

CASE_OF = dict(zip((*ALL_IDS, "parts"), (*ALL, IN_PARTS), strict=True))


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


class Expected(NamedTuple):
    """Losses, gradients and peak of the kept activations of a step."""

    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]
    bytes: int


@cache
def on_the_cpu(label: str, low: bool = False) -> Expected:
    name, build, given = CASE_OF[label]
    stage = built(name, build, given)
    with count_activations([*stage.parameters(), *stage.buffers()]) as activations:
        losses = step(stage, inputs(name, 4), generator(), "cpu", low)
    gradients = {key: value.grad for key, value in stage.named_parameters() if value.grad is not None}
    return Expected({key: value.detach() for key, value in losses.items()}, gradients, activations.peak_bytes)


@pytest.mark.parametrize(
    ("label", "low"), [*((label, False) for label in IDS), pytest.param("parts", True, marks=pytest.mark.slow)]
)
def test_the_predicted_activations_are_those_of_a_step(label: str, low: bool) -> None:
    name, build, given = CASE_OF[label]
    stage, batch = built(name, build, given), inputs(name, 4)
    if name in FROM_VALUES:
        with pytest.raises(RunError, match="shapes of this stage depend on values"):
            predict_activations(stage, batch, bfloat16=low)
        return
    found, operations = predict_activations(stage, batch, bfloat16=low)
    assert found == pytest.approx(on_the_cpu(label, low).bytes, rel=0.02)
    assert operations > 0


@pytest.mark.parametrize(("name", "build", "given"), ALL, ids=ALL_IDS)
def test_a_step_on_cuda_is_that_of_the_cpu_and_waits_for_nothing(
    request: pytest.FixtureRequest, name: str, build: Callable[[], nn.Module], given: dict[str, Any]
) -> None:
    batch = inputs(name, 4)
    expected, gradients, _ = on_the_cpu(request.node.callspec.id)
    stage = to_simulated(built(name, build, given))
    with simulated_cuda() as waits:
        moved = batch.to(CUDA)
        found = step(stage, moved, CudaGenerator(), "cuda", low=False)
        for key, value in found.items():
            assert isinstance(value, CudaTensor), key
            torch.testing.assert_close(value.inner, expected[key], rtol=1e-4, atol=1e-5, msg=key)
        for key, parameter in stage.named_parameters():
            assert (parameter.grad is None) == (key not in gradients), key
            if parameter.grad is not None:
                inner = cast(CudaTensor, parameter.grad).inner
                torch.testing.assert_close(inner, gradients[key], rtol=1e-3, atol=1e-4, msg=key)
        low = step(stage, moved, CudaGenerator(), "cuda", low=True)["loss"]
    assert name in WALKS or not waits.found
    if name not in WALKS:  # where another choice leads elsewhere
        torch.testing.assert_close(cast(CudaTensor, low).inner.float(), expected["loss"], rtol=0.1, atol=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "build", "given"), ALL, ids=ALL_IDS)
def test_a_step_on_a_gpu_is_that_of_the_cpu(
    request: pytest.FixtureRequest, name: str, build: Callable[[], nn.Module], given: dict[str, Any]
) -> None:
    """In float32 the losses and gradients of the CPU, where nothing is drawn on the device; in bfloat16 near them."""
    expected, gradients, _ = on_the_cpu(request.node.callspec.id)
    stage, batch = built(name, build, given).cuda(), inputs(name, 4).to(torch.device("cuda"))
    draws = torch.Generator("cuda")
    with torch.backends.cudnn.flags(allow_tf32=False):
        losses = step(stage, batch, draws, "cuda", low=False)
    if name not in DRAWS:
        for key, value in losses.items():
            torch.testing.assert_close(value.detach().cpu(), expected[key], rtol=1e-3, atol=1e-4, msg=key)
    for key, parameter in stage.named_parameters():
        assert (parameter.grad is None) == (key not in gradients), key
        assert parameter.grad is None or parameter.grad.isfinite().all(), key
    torch.cuda.set_sync_debug_mode("default" if name in WALKS else "error")
    try:
        low = step(stage, batch, draws, "cuda", low=True)["loss"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if name not in DRAWS:
        torch.testing.assert_close(low.detach().cpu().float(), expected["loss"], rtol=0.1, atol=0.05)


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
def test_the_model_of_a_stage_is_one_graph(
    request: pytest.FixtureRequest, name: str, build: Callable[[], nn.Module]
) -> None:
    batch = inputs(name, 4)
    stage = built(name, build, {})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = cast(Any, stage.model)
    for entry in ENTRIES.get(name, ("forward",)):
        setattr(model, entry, torch.compile(getattr(model, entry), fullgraph=True, backend="eager"))
    found = step(stage, batch, generator(), "cpu", low=False)["loss"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(found.detach(), on_the_cpu(request.node.callspec.id).losses["loss"])
