"""A tiny stage and loader for tests of the training loop, and what other processes do there."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.data.batch import Batch
from internvideo.distributed import (
    any_process,
    gather_with_gradient,
    process_group,
    raise_on_all_ranks,
    rank,
    world_size,
)
from internvideo.errors import InternVideoError, RunError
from internvideo.pretraining.global_contrastive import global_contrastive, global_dual_softmax
from internvideo.storage import folder_lock, write_safetensors, write_text
from internvideo.training.earlier_recipes import rename_settings
from internvideo.training.loop import RunInterruptedError, TrainResult, train
from internvideo.training.settings import TrainingSettings


class TinyLoader:
    """Four batches of two clips an epoch, random pixels drawn from (epoch, position)."""

    def __init__(self, *, batches: int = 4, clips: int = 2, hook: Callable[[int, int], None] | None = None) -> None:
        self.batches, self.clips, self.hook = batches, clips, hook
        self.data_time = 0.0

    def __len__(self) -> int:
        return self.batches

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        for position in range(start, self.batches):
            if self.hook is not None:
                self.hook(k, position)
            self.data_time += 0.25
            generator = torch.Generator().manual_seed(1000 * k + position)
            clips = self.clips * world_size()
            video = torch.randint(0, 256, (clips, 3, 2, 4, 4), generator=generator, dtype=torch.uint8)
            labels = torch.randint(0, 3, (clips,), generator=generator)
            mine = slice(rank() * self.clips, (rank() + 1) * self.clips)
            ids = tuple(f"e{k}b{position}c{clip}" for clip in range(clips))[mine]
            yield Batch(video=video[mine], ids=ids, labels=labels[mine])


class TinyStage(nn.Module):
    """A classifier with dropout (global generator), noise (stage generator), batch statistics and a frozen part."""

    def __init__(self, *, random: bool = True, contrastive: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.frozen = nn.Linear(96, 16).requires_grad_(False)
        self.hidden = nn.Linear(16, 8)
        self.norm = nn.BatchNorm1d(8) if random else nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.random, self.contrastive = random, contrastive

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.labels is not None
        x = self.frozen(batch.video.float().flatten(1) / 255.0)
        if self.random:
            x = F.dropout(x, 0.2) + 0.1 * torch.randn(x.shape, generator=generator, device=x.device)
        hidden = torch.relu(self.norm(self.hidden(x)))
        cross_entropy = F.cross_entropy(self.head(hidden) * self.scale, batch.labels)
        if not self.contrastive:
            return {"loss": cross_entropy, "scale": self.scale}
        left, right = gather_with_gradient(hidden), gather_with_gradient(x[:, :8])
        scores = self.scale * left @ right.t()
        contrastive = F.cross_entropy(scores, torch.arange(len(scores)))
        return {"loss": cross_entropy + contrastive, "contrastive": contrastive}


def settings(**loop: Any) -> TrainingSettings:
    """Ten steps of AdamW with warm-up, clipping and an average."""
    return TrainingSettings.model_validate(
        {
            "optimizer": {"base_lr": 0.05, "weight_decay": 0.01},
            "schedule": {"steps": 10, "warmup": 2},
            "loop": {
                "max_grad_norm": 1.0,
                "ema_decay": 0.9,
                "ema_scaled": False,
                "log_every": 3,
                "checkpoint_every": 1,
                **loop,
            },
        }
    )


def run(folder: Path, stage: nn.Module | None = None, loader: TinyLoader | None = None, **loop: Any) -> TrainResult:
    """Train the tiny stage, with a checkpoint after every step if nothing else is said."""
    chosen = settings(**{"checkpoint_every": 1, **loop})
    return train(
        TinyStage() if stage is None else stage,
        TinyLoader() if loader is None else loader,
        chosen,
        folder,
        chosen.model_dump(mode="json"),
        batch_size=2,
        fill_defaults=rename_settings,
    )


def kill_self_at(epoch: int, position: int) -> Callable[[int, int], None]:
    """A hook that kills this process when the loader is asked for that batch."""

    def hook(k: int, now: int) -> None:
        if (k, now) == (epoch, position):
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def gather(folder: Path) -> None:
    """What a process sees of gathering rows of uneven number."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(5, 4, generator=generator)
    mine = (whole[:3] if rank() == 0 else whole[3:]).clone().requires_grad_()
    gathered = gather_with_gradient(mine)
    loss = (gathered @ gathered.t()).logsumexp(1).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
    told = ""
    try:
        raise_on_all_ranks(RunError("run", "from process 1") if rank() == 1 else None)
    except RunError as error:
        told = str(error)
    saved = {"loss": loss.item(), "gathered": gathered.detach(), "gradient": mine.grad, "error": told}
    saved |= {"contrastive": contrastive(), "half": gather_with_gradient(mine.detach().bfloat16())}
    torch.save({**saved, "any": [any_process(rank() == 1), any_process(False)]}, folder / f"{rank()}.pt")


def contrastive() -> list[list[Tensor]]:
    """Loss of a joined batch, and the gradients of this process's rows and of the scale; all rows in one process."""
    found = []
    for loss, dtype in (
        (global_contrastive, torch.float64),
        (global_contrastive, torch.float32),
        (dual, torch.float64),
    ):
        for rows in (None, 2):
            generator = torch.Generator().manual_seed(1)
            whole = torch.randn(2, 5, 4, generator=generator, dtype=dtype)
            mine = whole if world_size() == 1 else (whole[:, :3], whole[:, 3:])[rank()]
            video, text = (features.clone().requires_grad_() for features in mine)
            scale = torch.tensor([30.0], dtype=dtype, requires_grad=True)
            value = loss(video, text, scale, rows)
            found.append([value.detach(), *torch.autograd.grad(value, (video, text, scale))])
    return found


def dual(video: Tensor, text: Tensor, scale: Tensor, rows: int | None) -> Tensor:
    """The dual softmax loss, always of all rows at once."""
    return global_dual_softmax(video, text, scale)


def terminate_at(epoch: int, position: int) -> Callable[[int, int], None]:
    """A hook that asks this process, and no other, to stop when the loader is asked for that batch."""

    def hook(k: int, now: int) -> None:
        if (k, now) == (epoch, position):
            os.kill(os.getpid(), signal.SIGTERM)

    return hook


def join(folder: Path) -> None:
    """Everything that is tested with several processes, in one start of them."""
    with process_group(torch.device("cpu")):
        _join(folder)


def _join(folder: Path) -> None:
    for grad_accum_steps in (1, 2):
        stage = TinyStage(random=False, contrastive=True)
        run(
            folder / f"two{grad_accum_steps}",
            stage,
            TinyLoader(clips=4 // world_size()),
            grad_accum_steps=grad_accum_steps,
        )
    gather(folder)
    run(folder / "straight", checkpoint_every=None)
    try:
        hook = terminate_at(1, 2) if rank() == 1 else None
        run(folder / "parts", loader=TinyLoader(hook=hook), checkpoint_every=None)
    except RunInterruptedError as error:
        (folder / f"{rank()}.txt").write_text(str(error))
    run(folder / "parts", checkpoint_every=None)


def lost() -> Iterator[str]:
    """What the others are told when one of several processes ends in the middle."""
    try:
        with process_group(torch.device("cpu"), timeout_s=30):
            any_process(False)
            yield "joined"
            if rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            any_process(True)
    except RunError as error:
        yield str(error)


def private(folder: Path) -> str:
    """What is told when every process has a run folder of its own."""
    with process_group(torch.device("cpu")):
        own = folder / f"private{rank()}"
        run(own, checkpoint_every=None)
        try:
            run(own, checkpoint_every=None)
        except RunError as error:
            return str(error)
    return "nothing"


def killed(folder: Path) -> None:
    """Die while fetching the seventh batch."""
    run(folder, loader=TinyLoader(hook=kill_self_at(1, 2)))


def write_alone(folder: Path, wait: bool) -> Iterator[str]:
    """Take a folder for oneself, and keep it where asked to."""
    try:
        with folder_lock(folder):
            yield "mine"
            if wait:
                signal.pause()
    except InternVideoError as error:
        yield str(error)


def full_disk(folder: Path) -> Iterator[str]:
    """Write more than this process may, which fails in the same call as a full disk does."""
    write_safetensors(folder / "a.safetensors", {"x": torch.ones(10)}, {"n": "1"})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))
    for write in (
        lambda: write_safetensors(folder / "a.safetensors", {"x": torch.zeros(100000)}),
        lambda: write_text(folder / "b.json", "x" * 100000),
    ):
        try:
            write()
        except RunError as error:
            yield str(error)
