"""The steps since the last line of the log: values stay on the device until they are read all at once."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.errors import RunError
from internvideo.storage import write_text
from internvideo.training.checkpoint import RunState
from internvideo.training.logging import MetricLog, plain
from internvideo.training.step import GRADIENT_NORM

NONFINITE = "nonfinite.json"


class Waits(Protocol):
    """Something that counts the seconds its user waited for data."""

    @property
    def waited(self) -> float:
        """Seconds so far."""


class Window:
    """Collects what steps return; `flush` reads it from the device, writes one line and looks for non-finite values.

    Args:
        loader: whose waiting time is measured.
    """

    def __init__(self, loader: Waits) -> None:
        self.loader = loader
        self.steps: list[dict[str, Tensor]]
        self.ids: list[tuple[str, ...]]
        self.lr = 0.0
        self.start()

    def start(self) -> None:
        """Forget what was kept and start the clock, after a line and after a checkpoint (whose time is no step's)."""
        self.steps, self.ids = [], []
        self.waited, self.began = self.loader.waited, time.perf_counter()

    def add(self, parts: dict[str, Tensor], batches: Sequence[Batch], lr: float) -> None:
        """Keep what one step returned."""
        self.steps.append(parts)
        self.ids.append(tuple(name for batch in batches for name in batch.ids))
        self.lr = lr

    def flush(self, state: RunState, folder: Path, log: MetricLog) -> None:
        """Write the means over the window and over the processes as one line; start a new window.

        Adds the losses, the clips and the time to `state`. All processes call it together.

        Raises:
            RunError: a loss or a gradient was not finite; nonfinite.json tells step, clips and parameter norms.
        """
        everyone: list[list[dict[str, float]]] = distributed.collect(self._read())
        steps = [_mean(values) for values in zip(*everyone, strict=True)]
        first = state.step - len(steps) + 1
        for offset, values in enumerate(zip(*everyone, strict=True)):
            if not all(math.isfinite(value[name]) for value in values for name in ("loss", GRADIENT_NORM)):
                self._stop(first + offset, self.ids[offset], list(values), state, folder)
        seconds, waited = time.perf_counter() - self.began, self.loader.waited - self.waited
        clips = distributed.sum_over_processes(sum(len(ids) for ids in self.ids))
        state.losses.extend(step["loss"] for step in steps)
        state.seconds, state.clips = state.seconds + seconds, state.clips + clips
        line = {"step": state.step, "epoch": state.epoch, "lr": self.lr, **_mean(steps)}
        log.write({**line, "clips_per_second": clips / seconds, "seconds": seconds, "waited": waited})
        self.start()

    def _read(self) -> list[dict[str, float]]:
        """The only place where the host waits for the device."""
        flat = torch.stack([value.double() for parts in self.steps for value in parts.values()]).tolist()
        values = iter(flat)
        return [{name: next(values) for name in parts} for parts in self.steps]

    def _stop(
        self, step: int, ids: tuple[str, ...], values: list[dict[str, float]], state: RunState, folder: Path
    ) -> None:
        clips: list[tuple[str, ...]] = distributed.collect(ids)
        bad = [
            number
            for number, value in enumerate(values)
            if not all(math.isfinite(value[name]) for name in ("loss", GRADIENT_NORM))
        ]
        lost: list[bool] = [not math.isfinite(value["loss"]) for value in values]
        what = "loss" if any(lost) else "gradient"
        # A gradient is shared by all processes; a loss belongs to the process that computed it.
        guilty = [number for number, is_lost in enumerate(lost) if is_lost] or bad
        named = [name for number in guilty for name in clips[number]]
        report = {
            "step": step,
            "what": what,
            "clip_ids": named,
            "processes": [plain(value) for value in values],
            "lr": self.lr,
            "parameter_norms": parameter_norms(state.stage),
        }
        if distributed.rank() == 0:
            write_text(folder / NONFINITE, json.dumps(plain(report), indent=1) + "\n")
        shown = ", ".join(dict.fromkeys(named[:8])) + (", ..." if len(named) > 8 else "")
        raise RunError(
            folder / NONFINITE,
            f"the {what} of step {step} is not finite; clips {shown}",
            "finite numbers",
            "look at these clips, lower optimizer.base_lr or set loop.gradient_clip, then start in another folder",
        )


def parameter_norms(stage: nn.Module) -> dict[str, float]:
    """Euclidean norm of every parameter; read from the device all at once."""
    named = list(stage.named_parameters())
    norms = torch.stack([parameter.detach().double().norm() for _, parameter in named]).tolist()
    return {name: norm for (name, _), norm in zip(named, norms, strict=True)}


def _mean(values: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean by name, over those that have the name."""
    names = dict.fromkeys(name for value in values for name in value)
    return {name: _average([value[name] for value in values if name in value]) for name in names}


def _average(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)
