"""Training loop for any stage: optimizer steps, metric log, checkpoints, resume.

Steps are counted from 1 in the log, in checkpoints and in messages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.errors import RunError
from internvideo.training import checkpoint, run_folder
from internvideo.training.checkpoint import RunState
from internvideo.training.interruption import StopSignals
from internvideo.training.logging import MetricLog
from internvideo.training.metric_buffer import BatchSource as BatchSource
from internvideo.training.metric_buffer import MetricBuffer
from internvideo.training.schedule import Schedule
from internvideo.training.settings import TrainingSettings
from internvideo.training.sharding import is_sharded
from internvideo.training.step import TrainStep


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run.

    Attributes:
        step: number of optimizer steps of the run, over all its sessions.
        losses: loss of every step, mean over the processes.
        seconds: time spent in steps, without interruptions.
        clips_per_second: throughput over all processes.
        checkpoint: path of the last checkpoint, for `checkpoint.read_weights`.
    """

    step: int
    losses: tuple[float, ...]
    seconds: float
    clips_per_second: float
    checkpoint: Path


class RunInterruptedError(RunError):
    """The run received SIGINT or SIGTERM, wrote a checkpoint and can be resumed."""


def train(
    stage: nn.Module,
    loader: BatchSource,
    settings: TrainingSettings,
    folder: Path,
    recipe: Mapping[str, Any],
    *,
    batch_size: int,
    device: torch.device | None = None,
    title: str = "train",
    ignore_keys: Collection[str] = (),
    changes: Collection[str] = (),
    fill_defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> TrainResult:
    """Train a stage to the end of its schedule; resume from the newest intact checkpoint in `folder`, if any.

    A finished run resumes when its schedule was extended.

    Args:
        stage: forward(batch, generator) -> {"loss": scalar, other scalars by name}. It may define `unused_parameters`
            (True if some steps leave some parameters without gradient), `same_draws` (True if the generators of all
            processes must have the same seed) and the parameter rules that `training.optimizer` describes.
        loader: batches of this process.
        settings: optimizer, schedule, loop.
        folder: run folder with run.json, metrics.jsonl, checkpoints/ and, after a failure, nonfinite.json.
        recipe: resolved settings as JSON values; stored in every checkpoint. On resume they must be equal, except for
            a longer schedule, `ignore_keys` and `changes`.
        batch_size: clips per batch and process, without repeated augmentations (for "batch/256").
        device: training device; the CPU by default.
        title: prefix of the progress line.
        ignore_keys: dotted keys of `recipe` that may change between sessions, such as the number of workers.
        changes: dotted keys that the user changed on purpose, such as optimizer.base_lr; stderr and log report them.
        fill_defaults: see `run_folder.init_run_dir`.

    Raises:
        RunError: `folder` contains another run, or another process writes to it; the disk is full; a loss or gradient
            is not finite; the data set is smaller than one batch (then nothing is written).
        RunInterruptedError: SIGINT or SIGTERM was received; a checkpoint of the last step is written.
        RecipeError: the settings do not apply to the stage.
    """
    with (
        distributed.process_group(device or torch.device("cpu"), settings.loop.timeout_s) as device,
        StopSignals() as stop,
        run_folder.locked(folder),
    ):
        batches_per_epoch = len(loader)
        if settings.loop.global_batch_size is not None:  # drop the batches of an incomplete step
            batches_per_epoch -= batches_per_epoch % settings.loop.grad_accum_steps
        schedule = _build_schedule(settings, batches_per_epoch, batch_size)
        train_step, state = _setup(stage, settings, schedule.total_steps, device)
        changed = run_folder.init_run_dir(folder, recipe, ignore_keys, changes, fill_defaults)
        last_checkpoint = checkpoint.resume(folder, state)
        saver = checkpoint.Saver(sharded=train_step.sharded)
        loop, buffer = settings.loop, MetricBuffer(loader)
        log = MetricLog(
            folder, total_steps=schedule.total_steps, step=state.step, title=title, tensorboard=loop.tensorboard
        )
        if state.step > schedule.total_steps:
            log.message(
                f"already at step {state.step}, the schedule has {schedule.total_steps} steps: nothing to train"
            )
        elif changed:
            run_folder.record(folder, recipe, changed, state.step)
            log.log_changes(state.step, changed, schedule(min(state.step, schedule.total_steps - 1)))
        with log, closing(BatchStream(loader, state.epoch, state.position, batches_per_epoch)) as stream:
            while state.step < schedule.total_steps:
                batches = stream.take(loop.grad_accum_steps, stop)
                stopping = distributed.any_process(stop.requested)
                if not stopping:
                    lr = schedule(state.step)
                    buffer.add(train_step(batches, lr), batches, lr)
                    state.step, state.epoch, state.position = state.step + 1, stream.epoch, stream.position
                at_end = stopping or state.step == schedule.total_steps
                saving = at_end or (loop.checkpoint_every is not None and state.step % loop.checkpoint_every == 0)
                if buffer.steps and (saving or state.step % loop.log_every == 0):
                    buffer.flush(state, folder, log)
                log.progress(state.step)
                if saving:
                    last_checkpoint = saver.save(folder, state, recipe, loop.keep_checkpoints)
                    buffer.start()
                if stopping:
                    break
        saver.finish()
        if distributed.any_process(stop.requested):
            reached = f"stopped at step {state.step} of {schedule.total_steps}"
            raise RunInterruptedError(folder, reached, "", "start the same command again to resume")
        if last_checkpoint is None:
            raise ValueError("a schedule without steps")
        speed = state.clips / state.seconds if state.seconds else 0.0
        return TrainResult(state.step, tuple(state.losses), state.seconds, speed, last_checkpoint)


def _build_schedule(settings: TrainingSettings, batches_per_epoch: int, batch_size: int) -> Schedule:
    """Build the learning-rate schedule of a run with `batches_per_epoch` batches per process."""
    if batches_per_epoch == 0:
        found = f"{batch_size} on each of {distributed.world_size()} processes: fewer samples than one batch"
        raise RunError("data.loader.batch_size", found, "at least one batch", "decrease it or add clips")
    schedule, num_accumulated = settings.schedule, settings.loop.grad_accum_steps
    scale = settings.optimizer.scale(batch_size * num_accumulated * distributed.world_size())
    steps_per_epoch = batches_per_epoch / num_accumulated
    total_steps, warmup_steps = schedule.total_steps(steps_per_epoch), schedule.warmup_steps(steps_per_epoch)
    return Schedule(schedule, settings.optimizer.base_lr * scale, scale, total_steps, warmup_steps)


def _setup(
    stage: nn.Module, settings: TrainingSettings, total_steps: int, device: torch.device
) -> tuple[TrainStep, RunState]:
    """Seed the generators of this process, move the stage to the device in training mode, and build step and state."""
    seed = settings.loop.seed + distributed.rank()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    generator = torch.Generator(device)
    generator.manual_seed(settings.loop.seed if getattr(stage, "same_draws", False) else seed)
    if not is_sharded(settings.loop.parallel):
        stage.to(device)
    train_step = TrainStep(stage.train(), settings, total_steps, device, generator)
    state = RunState(stage, train_step.optimizer, train_step.ema, generator)
    if settings.loop.global_batch_size is not None:
        state.batches_per_step = settings.loop.grad_accum_steps
    return train_step, state


class BatchStream:
    """Iterate over the batches of successive epochs; `epoch` and `position` are those of the next batch.

    Args:
        loader: yields the batches of an epoch.
        epoch, position: epoch and batch index to start from.
        batches_per_epoch: largest number of batches to take from an epoch.
    """

    def __init__(self, loader: BatchSource, epoch: int, position: int, batches_per_epoch: int) -> None:
        self.loader, self.epoch, self.position, self.batches_per_epoch = loader, epoch, position, batches_per_epoch
        self._batches: Iterator[Batch] | None = None

    def take(self, num_batches: int, stop: StopSignals) -> list[Batch]:
        """Return the next `num_batches` batches, or fewer once a stop is requested.

        Raises:
            RunError: an epoch has no batch.
        """
        batches: list[Batch] = []
        while len(batches) < num_batches and not stop.requested:
            try:
                batches.append(self._next())
            except Exception:
                if not stop.requested:  # Ctrl-C also ends the loader's workers, which is no error then
                    raise
        return batches

    def _next(self) -> Batch:
        for _ in ("the rest of this epoch", "the next epoch"):
            if self._batches is None:
                self._batches = self.loader.epoch(self.epoch, self.position)
            batch = next(self._batches, None) if self.position < self.batches_per_epoch else None
            if batch is not None:
                self.position += 1
                return batch
            self.close()
            self.epoch, self.position = self.epoch + 1, 0
        raise RunError("data.train", f"epoch {self.epoch - 1} has no batch", "at least one", "look at skipped.jsonl")

    def close(self) -> None:
        """Close the epoch's iterator, which ends the loader's workers."""
        getattr(self._batches, "close", lambda: None)()
        self._batches = None
