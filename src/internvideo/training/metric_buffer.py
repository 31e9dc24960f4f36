"""Buffer the metrics of the steps since the last log line on the device and read them with one sync."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.errors import RunError
from internvideo.storage import write_text
from internvideo.training.checkpoint import RunState
from internvideo.training.logging import MetricLog, json_safe
from internvideo.training.step import GRADIENT_NORM

NONFINITE = "nonfinite.json"


class BatchSource(Protocol):
    """Interface of a training loader."""

    @property
    def data_time(self) -> float:
        """Seconds spent waiting for batches so far."""

    def __len__(self) -> int:
        """Number of batches per epoch on this process."""

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch k from batch index `start` (0..len) on; deterministic."""


class MetricBuffer:
    """Collect the outputs of training steps and the data time of a loader.

    `flush` logs their means, and raises RunError for non-finite values.
    """

    def __init__(self, loader: BatchSource) -> None:
        self.loader = loader
        self.steps: list[dict[str, Tensor]]
        self.ids: list[tuple[str, ...]]
        self.lr = 0.0
        self.start()

    def start(self) -> None:
        """Clear the buffer and restart the timer: after a log line, and after a checkpoint, which is not timed."""
        self.steps, self.ids = [], []
        self.data_time_at_start, self.started = self.loader.data_time, time.perf_counter()

    def add(self, outputs: dict[str, Tensor], batches: Sequence[Batch], lr: float) -> None:
        """Append the outputs of one step."""
        self.steps.append(outputs)
        self.ids.append(tuple(name for batch in batches for name in batch.ids))
        self.lr = lr

    def flush(self, state: RunState, folder: Path, log: MetricLog) -> None:
        """Write the means over the buffered steps and the processes as one log line; clear the buffer.

        Adds the losses, the clips and the time to `state`. Collective: all processes must call it.

        Raises:
            RunError: a loss or a gradient is not finite; nonfinite.json lists step, clips and parameter norms.
        """
        per_process: list[list[dict[str, float]]] = distributed.all_gather_objects(self._to_host())
        steps = [_mean(values) for values in zip(*per_process, strict=True)]
        first = state.step - len(steps) + 1
        for index, values in enumerate(zip(*per_process, strict=True)):
            if not all(map(_is_finite, values)):
                self._raise_nonfinite(first + index, self.ids[index], list(values), state, folder)
        seconds, data_time = time.perf_counter() - self.started, self.loader.data_time - self.data_time_at_start
        clips = distributed.sum_over_processes(sum(len(ids) for ids in self.ids))
        state.losses.extend(step["loss"] for step in steps)
        state.seconds, state.clips = state.seconds + seconds, state.clips + clips
        line = {"step": state.step, "epoch": state.epoch, "lr": self.lr, **_mean(steps)}
        log.write({**line, "clips_per_second": clips / seconds, "seconds": seconds, "data_wait_s": data_time})
        self.start()

    def _to_host(self) -> list[dict[str, float]]:
        """Copy the buffered values to the host, the only host-device sync of the training loop."""
        values = iter(torch.stack([value.double() for outputs in self.steps for value in outputs.values()]).tolist())
        return [{name: next(values) for name in outputs} for outputs in self.steps]

    def _raise_nonfinite(
        self, step: int, ids: tuple[str, ...], values: list[dict[str, float]], state: RunState, folder: Path
    ) -> None:
        clips: list[tuple[str, ...]] = distributed.all_gather_objects(ids)
        # All processes have the same gradient, but each has its own loss.
        nonfinite_ranks = [rank for rank, value in enumerate(values) if not math.isfinite(value["loss"])]
        quantity = "loss" if nonfinite_ranks else "gradient"
        nonfinite_ranks = nonfinite_ranks or [rank for rank, value in enumerate(values) if not _is_finite(value)]
        clip_ids = [name for rank in nonfinite_ranks for name in clips[rank]]
        report = {
            "step": step,
            "what": quantity,
            "clip_ids": clip_ids,
            "processes": [json_safe(value) for value in values],
            "lr": self.lr,
            "parameter_norms": parameter_norms(state.stage),
        }
        if distributed.rank() == 0:
            write_text(folder / NONFINITE, json.dumps(json_safe(report), indent=1) + "\n")
        shown = ", ".join(dict.fromkeys(clip_ids[:8])) + (", ..." if len(clip_ids) > 8 else "")
        hint = "look at these clips, lower optimizer.base_lr or set loop.max_grad_norm, then start in another folder"
        found = f"the {quantity} of step {step} is not finite; clips {shown}"
        raise RunError(folder / NONFINITE, found, "finite numbers", hint)


def _is_finite(outputs: Mapping[str, float]) -> bool:
    return math.isfinite(outputs["loss"]) and math.isfinite(outputs[GRADIENT_NORM])


def parameter_norms(stage: nn.Module) -> dict[str, float]:
    """Return the L2 norm of every parameter, with one host-device sync."""
    named = list(stage.named_parameters())
    norms = torch.stack(
        [distributed.full_tensor(parameter.detach().double().norm()) for _, parameter in named]
    ).tolist()
    return {name: norm for (name, _), norm in zip(named, norms, strict=True)}


def _mean(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average each value over the steps that have it."""
    columns: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}
