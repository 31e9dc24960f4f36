"""Every stage in bfloat16, with each optional weight at 0, and in two processes against one with the joined batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from processes import as_process
from test_stages import CASES, IDS, MODELS, build_stage, generator, inputs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from internvideo import distributed
from internvideo.data.batch import FeatureBatch, ProposalBatch, QueryBatch, RegionBatch
from internvideo.tasks import STAGES

WITHOUT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("multimodal", {"caption_weight": 0.0}),
    ("multimodal", {"contrastive_weight": 0.0}),
    ("multimodal", {"max_captioned_clips": 1, "encode_chunk_size": 2}),
    ("grounding", {"highlight_weight": 0.0}),
    ("anticipation", {"time_weight": 0.0}),
    ("verb_noun", {"noun_weight": 0.0}),
    ("temporal_localization", {"loss_weight": 0.0}),
    ("open_set", {"debias": "maximized"}),
    ("open_set", {"debias": "alternated", "kl": True, "annealing_batches": 4}),
)
"""Stages with losses left out, limited or added."""
DRAWN = {"navigation", "open_set", "spatio_temporal_localization"}
"""Stages whose loss is drawn for each process, takes dependence within its batch, or is a sum over its boxes."""
GATHERING = {"temporal_localization"}


def uneven(name: str) -> Any:
    """Eight clips of which the first four have fewer things to learn from than the others."""
    with as_process(0, 1):  # all of them, on both processes
        clips: Any = inputs(name, 8)
    first = torch.arange(8) < 3
    if name in ("supervised", "interaction"):
        return replace(clips, labels=clips.labels.masked_fill(first, -100))
    if name in ("question_answering", "multiple_choice"):
        return replace(clips, labels=clips.labels.masked_fill(first, -100))
    if name == "verb_noun":
        labels = clips.labels.clone()
        labels[:3, 1], labels[4:, 1] = -100, torch.tensor([0, 1, 0, 1])
        return replace(clips, labels=labels)
    if name == "future_hands":
        return replace(clips, visible=clips.visible & ~first[:, None, None])
    if name == "anticipation":
        targets = clips.targets.clone()
        targets[:2, 1] = torch.nan
        return replace(clips, targets=targets[1:], clip_index=clips.clip_index[1:], boxes=clips.boxes[1:])
    if isinstance(clips, QueryBatch):
        mask = clips.mask.clone()
        mask[:2, 11:] = False
        nothing = torch.zeros(0, 2)
        return replace(clips, mask=mask, segments=(nothing, nothing, *clips.segments[2:]))
    if isinstance(clips, ProposalBatch):  # all near the truth, so that the balanced choice takes all
        near = (torch.tensor([[1.0, 4.0]]),) * 3 + (torch.tensor([[1.0, 4.0], [3.0, 13.5]]),) * 5
        return replace(clips, proposals=near)
    if isinstance(clips, FeatureBatch):
        none = (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
        segments, labels = zip(*([none] * 3 + list(zip(clips.segments, clips.labels, strict=True))[3:]), strict=True)
        return replace(clips, segments=segments, labels=labels)
    return clips


def share(batch: Any, rank: int) -> Any:
    """Half of eight clips."""
    mine = slice(4 * rank, 4 * rank + 4)
    if isinstance(batch, RegionBatch):
        kept = batch.clip_index // 4 == rank
        return replace(
            batch, video=batch.video[mine], ids=batch.ids[mine], clip_index=batch.clip_index[kept] - 4 * rank,
            boxes=batch.boxes[kept], targets=batch.targets[kept],
        )  # fmt: skip
    cut = {field.name: getattr(batch, field.name) for field in fields(batch)}
    each = {name: len(value) // 8 for name, value in cut.items() if value is not None}  # clips of a panorama: several
    return replace(batch, **{name: cut[name][mine.start * k : mine.stop * k] for name, k in each.items()})


def opened(stage: nn.Module) -> nn.Module:
    """Opens what starts closed: gates, heads, fresh readings. Nothing is dropped."""
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator()) * 0.05)
    return stage.train()


def build(name: str, model: Callable[[], nn.Module], settings: dict[str, Any]) -> nn.Module:
    together: dict[str, Any] = {}
    if name in GATHERING:
        together["gather"] = distributed.gather_with_gradient
    if name not in DRAWN | {"masked", "retrieval", "temporal_localization", "waypoints"}:
        together["divisor"] = distributed.divisor
    return opened(STAGES[name].stage(model(), STAGES[name].settings.model_validate(settings), **together))


ALL = [(name, model, {}) for name, model in CASES] + [(name, MODELS[name][0], given) for name, given in WITHOUT]
ALL_IDS = [*IDS, *(f"{name}-{'-'.join(given)}" for name, given in WITHOUT)]


def equal_steps(stage: nn.Module, batch: Any, count: int) -> dict[str, Tensor]:
    """Losses of equal steps and the gradients of the last, of which rank 0 keeps the mean over the processes."""
    module: nn.Module = stage
    if distributed.world_size() > 1:
        unused = bool(getattr(stage, "unused_parameters", False))
        module = DistributedDataParallel(stage, broadcast_buffers=False, find_unused_parameters=unused)
    losses: dict[str, Tensor] = {}
    for step in range(count):
        stage.zero_grad()
        torch.manual_seed(0)
        parts = module(batch, generator())
        torch.autograd.backward(parts["loss"])
        losses |= {f"first/{name}": value for name, value in parts.items()} if step == 0 else {}
        losses |= {f"loss/{name}": value for name, value in parts.items()}
    mean = {
        key: distributed.sum_over_processes(value.item()) / distributed.world_size() for key, value in losses.items()
    }
    gradients = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
    return {key: torch.tensor(value) for key, value in mean.items()} | gradients


@cache
def in_one_process(label: str) -> dict[str, Tensor]:
    """Steps on the joined batch; the second is equal but for a normalizer that is a running mean."""
    name, model, given = ALL[ALL_IDS.index(label)]
    return equal_steps(build(name, model, given), uneven(name), 2 if name in GATHERING else 1)


def steps_of_every_stage(folder: Path) -> None:
    """What one of two processes does."""
    with distributed.process_group(torch.device("cpu")):
        for (name, model, given), label in zip(ALL, ALL_IDS, strict=True):
            batch = inputs(name, 4) if name == "navigation" else share(uneven(name), distributed.rank())
            told = equal_steps(build(name, model, given), batch, 2)
            if distributed.rank() == 0:
                torch.save(told, folder / f"{label}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saw."""
    folder = tmp_path_factory.mktemp("both")
    forked.two(steps_of_every_stage, folder)
    return folder


@pytest.mark.parametrize(("name", "model", "given"), ALL, ids=ALL_IDS)
def test_two_processes_learn_as_one_with_the_joined_batch(
    both: Path, request: pytest.FixtureRequest, name: str, model: Callable[[], nn.Module], given: dict[str, Any]
) -> None:
    two = torch.load(both / f"{request.node.callspec.id}.pt")
    assert all(bool(value.isfinite().all()) for value in two.values())
    if name in DRAWN or "max_captioned_clips" in given or "loss_weight" in given:
        return
    one = in_one_process(request.node.callspec.id)
    assert one.keys() == two.keys()
    for label, value in one.items():
        torch.testing.assert_close(two[label], value, atol=2e-5, rtol=1e-3, msg=lambda text, at=label: f"{at}: {text}")


@pytest.mark.parametrize(("name", "model", "given"), ALL, ids=ALL_IDS)
def test_every_stage_learns_in_bfloat16(
    request: pytest.FixtureRequest, name: str, model: Callable[[], nn.Module], given: dict[str, Any]
) -> None:
    stage, exact = build(name, model, given), in_one_process(request.node.callspec.id)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = stage(uneven(name), generator())
    torch.autograd.backward(parts["loss"])
    gradients = {label: p.grad for label, p in stage.named_parameters() if p.requires_grad}
    assert gradients.keys() == {label for label in exact if not label.startswith(("first/", "loss/"))}
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in (*gradients.values(), *exact.values()))
    assert parts["loss"].item() == pytest.approx(exact["first/loss"].item(), rel=0.1, abs=0.05)


def test_a_decoder_that_writes_nothing_rests() -> None:
    stage = STAGES["multimodal"].stage(MODELS["multimodal"][0](), STAGES["multimodal"].settings(caption_weight=0.0))
    resting = {name for name, parameter in stage.named_parameters() if not parameter.requires_grad}
    assert any(name.startswith("model.caption_decoder.") for name in resting)
    assert build_stage("multimodal", MODELS["multimodal"][0]).model.caption_decoder is not None
