"""Train the steps of the demo; on a CPU two at once, since models this small gain little from more threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from internvideo.apps.demo_clock import DemoClock
from internvideo.errors import RunError
from internvideo.pipeline import run_recipe
from internvideo.recipe import Recipe
from internvideo.system import call_when_parent_dies, cores
from internvideo.terminal import LOGGER, NO_BARS
from internvideo.training.interruption import StopSignals
from internvideo.training.loop import RunInterruptedError

NUM_WORKERS = 2
"""Steps that train at the same time. A third worker would help little: most steps form two chains, one per encoder."""

_BUSY = threading.Event()
"""Set in a worker while it trains."""


@dataclass(frozen=True)
class DemoStage:
    """One recipe of the demo.

    Attributes:
        name: name of its output folder. recipe: file in recipes/sample. title: progress text.
        init: part of the model -> earlier step whose weights the part starts from.
    """

    name: str
    recipe: str
    title: str
    init: dict[str, str]


_PRETRAINED = {"weights": "multimodal_pretrained"}
_ENCODERS = {"masked": "supervised_masked", "multimodal": "supervised_multimodal"}
STEPS = (
    DemoStage("masked", "masked", "1  masked pretraining", {}),
    DemoStage("image_text", "image_text", "2a image-text pretraining", {}),
    DemoStage("multimodal_pretrained", "multimodal", "2b video-language pretraining", {"weights": "image_text"}),
    DemoStage("supervised_masked", "supervised_masked", "3  supervised, masked encoder", {"weights": "masked"}),
    DemoStage("supervised_scratch", "supervised_masked", "   the same without pretraining", {}),
    DemoStage("supervised_multimodal", "supervised_multimodal", "3  supervised, multimodal encoder", _PRETRAINED),
    DemoStage("single_frame", "single_frame", "   one frame a clip", _PRETRAINED),
    DemoStage("interaction", "interaction", "4  cross-model interaction", _ENCODERS),
)


def run_sequentially(recipe_of: Callable[[DemoStage], Recipe], output: Path, clock: DemoClock, device: str) -> None:
    """Train all steps that are not finished. Raises what `run_recipe` raises."""
    for step in STEPS:
        _announce(step)
        with clock.timed(step.name, already_done=(output / step.name / "model.safetensors").is_file()):
            run_recipe(recipe_of(step), output / step.name, device=device, title=step.title.strip())


def run_in_parallel(recipe_of: Callable[[DemoStage], Recipe], output: Path, clock: DemoClock) -> None:
    """Train all steps that are not finished on the CPU, each as soon as the steps it starts from are done.

    Raises:
        RunInterruptedError: SIGINT or SIGTERM was received; the checkpoints are written.
        RunError: a process was killed. Others: see `run_recipe`.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, cores() // NUM_WORKERS)
    with StopSignals() as stop, ProcessPoolExecutor(NUM_WORKERS, context, _start_worker, (threads,)) as pool:
        try:
            _schedule(pool, recipe_of, output, clock, stop)
        except BrokenProcessPool as error:
            hint = "free memory, then start the same command again to resume"
            raise RunError(output, "a worker process was killed", "", hint) from error
        except KeyboardInterrupt:  # Ctrl-C for the second time
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _schedule(
    pool: ProcessPoolExecutor,
    recipe_of: Callable[[DemoStage], Recipe],
    output: Path,
    clock: DemoClock,
    stop: StopSignals,
) -> None:
    waiting, finished = list(STEPS), set[str]()
    running: dict[Future[None], tuple[DemoStage, Callable[[], None]]] = {}
    try:
        while (waiting or running) and not stop.requested:
            for step in _startable(waiting, finished)[: NUM_WORKERS - len(running)]:
                waiting.remove(step)
                _announce(step)
                folder, recipe = output / step.name, recipe_of(step)
                stop_clock = clock.start(step.name, already_done=(folder / "model.safetensors").is_file())
                running[pool.submit(_train, recipe, folder, step.title.strip())] = step, stop_clock
            for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                step, stop_clock = running.pop(future)
                stop_clock()
                future.result()
                finished.add(step.name)
        if stop.requested:
            hint = "start the same command again to resume"
            raise RunInterruptedError(output, "interrupted, the checkpoints are written", "", hint)
    finally:  # of an interruption or an error: what still runs writes a checkpoint
        while running:
            for process in multiprocessing.active_children():
                process.terminate()
            for future in wait(running, timeout=0.5).done:
                running.pop(future)[1]()


def _startable(waiting: Sequence[DemoStage], finished: set[str]) -> list[DemoStage]:
    return [step for step in waiting if finished.issuperset(step.init.values())]


def _announce(step: DemoStage) -> None:
    LOGGER.info(f"[{STEPS.index(step) + 1}/{len(STEPS)}] {step.title}")


def _start_worker(threads: int) -> None:
    """Set up a worker: lines in place of bars, which two processes would draw over each other, and signals.

    Ctrl-C reaches the parent alone, which then sends SIGTERM repeatedly: the worker ignores it except while it trains.
    """
    os.environ[NO_BARS] = "1"
    torch.set_num_threads(threads)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    call_when_parent_dies(_exit_after_checkpoint)


def _train(recipe: Recipe, folder: Path, title: str) -> None:
    _BUSY.set()
    try:
        run_recipe(recipe, folder, device="cpu", title=title)
    finally:
        _BUSY.clear()


def _exit_after_checkpoint() -> None:
    """Exit a worker whose parent died, after the training has written a checkpoint."""
    while _BUSY.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
    os._exit(1)
