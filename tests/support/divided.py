"""Runs of small stages in several processes, as torchrun starts them: divided or not, saved here and resumed there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import small_world
import torch
from torch import nn

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.distributed import TIMEOUT_S, process_group, rank, world_size
from internvideo.errors import InternVideoError
from internvideo.pretraining.interaction import InteractionSettings, InteractionStage
from internvideo.pretraining.masked import MaskedSettings, MaskedStage
from internvideo.pretraining.multimodal import MultimodalSettings, MultimodalStage
from internvideo.pretraining.supervised import SupervisedSettings, SupervisedStage
from internvideo.training import sharded_checkpoint
from internvideo.training.loop import train
from internvideo.training.settings import TrainingSettings
from internvideo.training.sharding import builds_on_meta

CLIPS = 12
"""Per step, whatever the number of processes (1, 2 or 3)."""


def stage(name: str) -> nn.Module:
    """A stage, everything open a little."""
    divisor, made = distributed.divisor, nn.Module()
    if name == "masked":
        made = MaskedStage(small_world.pretraining_model(), MaskedSettings(ratio=0.75))
    elif name == "multimodal":
        settings = MultimodalSettings(encode_chunk_size=2)
        made = MultimodalStage(small_world.language_model(), settings, divisor)
    elif name == "supervised":
        made = SupervisedStage(small_world.masked_classifier(), SupervisedSettings(), divisor)
    elif name == "interaction":
        made = InteractionStage(small_world.cross_model(), InteractionSettings(temporal_stride=1), divisor)  # type: ignore[arg-type]  # a CrossModel
    if not any(parameter.is_meta for parameter in made.parameters()):
        drawn = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.02)
    return made


def settings(parallel: str, contrastive: bool, steps: int, **loop: Any) -> TrainingSettings:
    """Twelve clips a step: six batches of two in one process, fewer in several; one batch where they are contrasted."""
    given = {"parallel": parallel, "global_batch_size": CLIPS, "max_grad_norm": 1.0, "log_every": 1, **loop}
    given["grad_accum_steps"] = 1 if contrastive else 6 // world_size()
    return TrainingSettings.model_validate(
        {"optimizer": {"base_lr": 1e-3}, "schedule": {"steps": steps, "kind": "constant"}, "loop": given}
    )


class Clips:
    """Clips of a file in their order: two at a time, or the whole share of a step."""

    data_time = 0.0

    def __init__(self, file: Path, size: int) -> None:
        self.video, self.labels, self.text_ids = torch.load(file)
        self.size = size

    def __len__(self) -> int:
        return len(self.video) // (self.size * world_size())

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Those of an epoch, which begins elsewhere every time."""
        for position in range(start, len(self)):
            first = (position * world_size() + rank()) * self.size
            rows = (torch.arange(first, first + self.size) + 5 * k) % len(self.video)
            yield Batch(self.video[rows], tuple(map(str, rows.tolist())), self.labels[rows], self.text_ids[rows])


def save_clips(file: Path) -> None:
    """Write the clips of two epochs and a half."""
    clips = small_world.batch(30)
    torch.save((clips.video, clips.labels, clips.text_ids), file)


def run(folder: Path, name: str, parallel: str, steps: int, **loop: Any) -> tuple[list[float], Path] | str:
    """Train a stage on the clips beside `folder`; losses and the last checkpoint, or one line of what went wrong."""
    with process_group(torch.device("cpu"), timeout_s=loop.get("timeout_s", TIMEOUT_S)):
        contrastive = name == "multimodal"
        chosen = settings(parallel, contrastive, steps, **loop)
        with torch.device("meta") if builds_on_meta(chosen.loop.parallel) else nullcontext():
            made = stage(name)
        size = CLIPS // world_size() if contrastive else 2
        clips, written = Clips(folder.parent / "clips", size), chosen.model_dump(mode="json")
        ignored = ("loop.grad_accum_steps",)
        try:
            found = train(made, clips, chosen, folder, written, batch_size=size, ignore_keys=ignored)
        except InternVideoError as error:
            return str(error)
        return list(found.losses), found.checkpoint


def killed_while_saving(folder: Path, name: str, steps: int, save: int) -> list[float] | str:
    """A divided run whose last process is killed (SIGKILL) in its n-th save, after its tensors, before their hashes."""
    saves, digest = 0, sharded_checkpoint.sha256_of

    def dying(file: Path) -> str:
        nonlocal saves
        saves += 1
        if saves == save and rank() == world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return digest(file)

    with mock.patch.object(sharded_checkpoint, "sha256_of", dying):
        try:
            found = run(folder, name, "fsdp", steps, checkpoint_every=1, timeout_s=30)
        except InternVideoError as error:
            return str(error)
    return found if isinstance(found, str) else found[0]
