"""The training loop: batches in, steps, a log and checkpoints out. It never knows which stage it trains.

Steps are counted from 1: "step 7" is the seventh, in the log, in checkpoints and in messages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
from internvideo.training.schedule import Schedule
from internvideo.training.settings import TrainingSettings
from internvideo.training.step import Stepper
from internvideo.training.window import Window


class BatchSource(Protocol):
    """What the loop asks of a loader."""

    @property
    def waited(self) -> float:
        """Seconds that the loop has waited for data so far."""

    def __len__(self) -> int:
        """Batches of an epoch on this process."""

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Batches of epoch k from batch number `start` (0..len) on, always the same ones."""


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    Attributes:
        step: optimizer steps made, of all sessions.
        losses: loss of every step, mean over the processes.
        seconds: spent in steps, interruptions not counted.
        clips_per_second: over all processes.
        checkpoint: the last one; `checkpoint.read_weights` reads the stage's weights (or averages) from it.
    """

    step: int
    losses: tuple[float, ...]
    seconds: float
    clips_per_second: float
    checkpoint: Path


class RunInterruptedError(RunError):
    """The run was asked to stop (SIGINT, SIGTERM), wrote a checkpoint and can be resumed."""


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
    may_differ: Collection[str] = (),
    changes: Collection[str] = (),
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> TrainResult:
    """Train a stage to the end of its schedule, from the newest whole checkpoint in `folder` if there is one.

    A finished run goes on when its schedule has become longer.

    Args:
        stage: forward(batch, generator) -> {"loss": scalar, other scalars by name}. It may say `unused_parameters`
            (True when some steps give some parameters no gradient; needed with several processes) and, about its
            parameters, what `training.optimizer` describes.
        loader: batches of this process.
        settings: optimizer, schedule, loop.
        folder: of this run alone; takes run.json, metrics.jsonl, checkpoints/ and, after a failure, nonfinite.json.
        recipe: resolved settings, plain values; they travel in every checkpoint and must be the same on resuming, but
            for a longer schedule and for what follows.
        batch_size: clips of one batch of the loader on one process, repeats not counted (for "batch/256").
        device: where to train; the CPU by default.
        title: in front of the progress.
        may_differ: dotted keys of `recipe` that may change between sessions, such as the number of workers.
        changes: dotted keys that are changed on purpose, such as optimizer.base_lr; told on stderr and in the log.
        complete: see `run_folder.claim`.

    Raises:
        RunError: `folder` holds another run, or another process writes there; the disk is full; a loss or gradient is
            not finite; the data do not fill a batch (then nothing is written).
        RunInterruptedError: SIGINT or SIGTERM came; a checkpoint of the last step is written.
        RecipeError: settings that do not fit the stage.
    """
    with (
        distributed.process_group(device or torch.device("cpu")) as here,
        StopSignals() as stop,
        run_folder.writing(folder),
    ):
        schedule = _schedule(settings, len(loader), batch_size)
        stepper, state = _prepare(stage, settings, schedule.total, here)
        changed = run_folder.claim(folder, recipe, may_differ, changes, complete)
        last = checkpoint.resume(folder, state)
        loop, window = settings.loop, Window(loader)
        log = MetricLog(folder, total=schedule.total, step=state.step, title=title, tensorboard=loop.tensorboard)
        if state.step > schedule.total:
            log.tell(f"{state.step} steps are made, more than the {schedule.total} asked for: nothing is left to learn")
        elif changed:
            run_folder.record(folder, recipe, changed, state.step)
            log.tell_changes(state.step, changed, schedule(min(state.step, schedule.total - 1)))
        with log, closing(BatchStream(loader, state.epoch, state.position)) as stream:
            while state.step < schedule.total:
                batches = stream.take(loop.accumulate, stop)
                stopping = distributed.any_process(stop.asked)
                if not stopping:
                    lr = schedule(state.step)
                    window.add(stepper(batches, lr), batches, lr)
                    state.step, state.epoch, state.position = state.step + 1, stream.epoch, stream.position
                end = stopping or state.step == schedule.total
                saving = end or (loop.checkpoint_every is not None and state.step % loop.checkpoint_every == 0)
                if window.steps and (saving or state.step % loop.log_every == 0):
                    window.flush(state, folder, log)
                log.progress(state.step)
                if saving:
                    last = checkpoint.save(folder, state, recipe, loop.keep_checkpoints)
                    window.start()
                if stopping:
                    break
        if distributed.any_process(stop.asked):
            reached = f"stopped at step {state.step} of {schedule.total}"
            raise RunInterruptedError(folder, reached, "", "start the same command again to resume")
        if last is None:
            raise ValueError("a schedule without steps")
        speed = state.clips / state.seconds if state.seconds else 0.0
        return TrainResult(state.step, tuple(state.losses), state.seconds, speed, last)


def _schedule(settings: TrainingSettings, batches: int, batch_size: int) -> Schedule:
    """Learning rates of a run whose epoch has `batches` batches on each process."""
    if batches == 0:
        found = f"{batch_size} on each of {distributed.world_size()} processes: not one whole batch in an epoch"
        raise RunError("data.loader.batch_size", found, "at least one batch", "lower it or add clips")
    accumulate = settings.loop.accumulate
    scale = settings.optimizer.scale(batch_size * accumulate * distributed.world_size())
    return Schedule(
        settings.schedule,
        peak=settings.optimizer.base_lr * scale,
        scale=scale,
        total=settings.schedule.total_steps(batches / accumulate),
        warmup=settings.schedule.warmup_steps(batches / accumulate),
    )


def _prepare(
    stage: nn.Module, settings: TrainingSettings, total: int, device: torch.device
) -> tuple[Stepper, RunState]:
    """Seed the generators (each process its own way) and put the stage on the device, ready to learn."""
    seed = settings.loop.seed + distributed.rank()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    generator = torch.Generator(device).manual_seed(seed)
    stage.to(device).train()
    stepper = Stepper(stage, settings, total, device, generator)
    return stepper, RunState(stage, stepper.optimizer, stepper.ema, generator)


class BatchStream:
    """The batches of all epochs in a row; `epoch` and `position` tell which one comes next.

    Args:
        loader: where they come from.
        epoch, position: the first batch.
    """

    def __init__(self, loader: BatchSource, epoch: int, position: int) -> None:
        self.loader, self.epoch, self.position = loader, epoch, position
        self._batches: Iterator[Batch] | None = None

    def take(self, count: int, stop: StopSignals) -> list[Batch]:
        """The next `count` batches; fewer when the run was asked to stop.

        Raises:
            RunError: a whole epoch without a batch.
        """
        taken: list[Batch] = []
        while len(taken) < count and not stop.asked:
            try:
                taken.append(self._next())
            except Exception:
                if not stop.asked:  # Ctrl-C reaches the loader's workers too: then their end is no failure
                    raise
        return taken

    def _next(self) -> Batch:
        for _ in ("the rest of this epoch", "the next epoch"):
            if self._batches is None:
                self._batches = self.loader.epoch(self.epoch, self.position)
            batch = next(self._batches, None)
            if batch is not None:
                self.position += 1
                return batch
            self.close()
            self.epoch, self.position = self.epoch + 1, 0
        raise RunError("data", f"epoch {self.epoch - 1} gave no batch", "at least one", "look at skipped.jsonl")

    def close(self) -> None:
        """End the iterator of the epoch, and with it the loader's workers."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
        self._batches = None
