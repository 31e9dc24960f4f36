"""Show what a training run would do: parameters, steps, memory on each process, and one step on its data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from internvideo.distributed import choose_device
from internvideo.errors import RunError
from internvideo.pipeline import prepare, training_recipe
from internvideo.system import free_memory
from internvideo.training.memory import GIB, MIB, counted_activations, predict_activations, state_bytes, total
from internvideo.training.recipe import EvaluationRecipe, Job
from internvideo.training.settings import TrainingSettings
from internvideo.training.step import TrainStep, checkpoint_activations

LONG_STEP_FLOPS = 2e13
"""Above these operations the step is not made on a CPU: it would take minutes."""


def describe(
    recipe: EvaluationRecipe, *, device: str = "auto", processes: int = 1, memory_gib: float | None = None
) -> str:
    """Describe a run and make one step of it; nothing is kept.

    Memory is predicted from shapes. Should it not fit, the settings that would help are tried and listed. The step is
    made on one batch of the data, if it fits into the memory that is there.

    Args:
        device: that makes the step.
        processes: of the later run.
        memory_gib: of each of its GPUs, in GiB (`loop.precision=auto` is then bfloat16); by default that of `device`.

    Raises:
        as `prepare` does.
    """
    recipe = training_recipe(recipe)
    here, job = choose_device(device), prepare(recipe)
    loop = recipe.loop.model_copy(update={"compile": "none"})
    settings = TrainingSettings(optimizer=recipe.optimizer, schedule=recipe.schedule, loop=loop)
    per_epoch = len(job.loader) / loop.grad_accum_steps / processes
    steps = recipe.schedule.total_steps(per_epoch)
    counts = {kind: sum(p.numel() for p in job.model.parameters() if p.requires_grad == kind) for kind in (True, False)}
    batch = next(iter(job.loader.epoch(0))).to(torch.device("cpu"))  # augmented here, with data.augment.on_device
    gpu = here.type == "cuda" or memory_gib is not None
    bfloat16 = loop.precision == "bfloat16" or (loop.precision == "auto" and gpu)
    plan = _Plan(job.stage.train(), batch, settings, bfloat16, processes)
    memory, flops = plan.memory(settings)
    room = _free_memory(here) if memory_gib is None else int(memory_gib * GIB)
    step, measured = _one_step(job, settings, steps, here, batch, memory, flops)
    memory.setdefault("activations", measured)
    lines = [
        f"recipe    {recipe.about or recipe.stage}",
        f"model     {recipe.model.name} ({type(job.model).__name__})",
        *(f"head      {line}" for line in job.head),
        f"learning  {counts[True] / 1e6:.3f} M parameters",
        f"frozen    {counts[False] / 1e6:.3f} M parameters",
        f"steps     {steps} ({per_epoch:.1f} an epoch, {len(batch)} clips a batch of {_shape(batch)})",
        *([f"compute   {flops / 1e12:.3f} TFLOP a batch on each process, forward and backward"] if flops else []),
        f"memory    {total(memory) / MIB:.1f} MiB on each of {processes} process{'es' if processes > 1 else ''}, "
        f"temporary tensors not counted, of {room / MIB:.0f} MiB:",
        *(f"          {size / MIB:10.1f} MiB {name}" for name, size in memory.items()),
        *(plan.remedies(room) if total(memory) > room else ()),
        step,
    ]
    return "\n".join(lines)


class _Plan:
    """Predict the memory of a step with settings that differ from the recipe's.

    Args:
        stage, batch: of the recipe, with values. bfloat16: precision of the activations. processes: of the run.
    """

    def __init__(
        self, stage: nn.Module, batch: Any, settings: TrainingSettings, bfloat16: bool, processes: int
    ) -> None:
        self.stage, self.batch, self.settings = stage, batch, settings
        self.bfloat16, self.processes = bfloat16, processes

    def memory(self, settings: TrainingSettings) -> tuple[dict[str, int], int]:
        """Return bytes by kind, without activations where they cannot be predicted, and floating-point operations."""
        found = state_bytes(self.stage, settings, self.processes)
        checkpoint_activations(self.stage, settings.loop)
        try:
            activations, flops = predict_activations(self.stage, self.batch, bfloat16=self.bfloat16)
        except RunError:
            return found, 0
        finally:
            checkpoint_activations(self.stage, self.settings.loop)
        return {**found, "activations": activations}, flops

    def remedies(self, room: int) -> list[str]:
        """List settings that need less memory, up to the first that fits."""
        lines, loop, changes = [], self.settings.loop, list[str]()
        can_checkpoint = any(hasattr(module, "checkpointing") for module in self.stage.modules())
        if can_checkpoint and not loop.activation_checkpointing:
            changes.append("activation_checkpointing")
        if self.processes > 1 and loop.parallel == "ddp" and not getattr(self.stage, "unused_parameters", False):
            changes.append("parallel")
        text, clips = "", len(self.batch)
        for change in changes:
            loop = loop.model_copy(update={change: {"activation_checkpointing": True, "parallel": "fsdp"}[change]})
            text += f" loop.{change}={'true' if change == 'activation_checkpointing' else 'fsdp'}"
            needed, _ = self.memory(self.settings.model_copy(update={"loop": loop}))
            lines.append(f"with     {text}: {total(needed) / MIB:.0f} MiB")
            if total(needed) <= room:
                return lines
        needed, _ = self.memory(self.settings.model_copy(update={"loop": loop}))
        states = total(needed) - needed.get("activations", 0)
        if "activations" in needed and states < room:
            fitting = int(clips * (room - states) / needed["activations"])
            if 0 < fitting < clips:
                also = f"{text} and" if text else ""
                lines.append(f"with     {also} {fitting} clips a batch instead of {clips}: about {room / MIB:.0f} MiB")
                return lines
        more = "" if self.processes > 1 else "; --processes N shows what loop.parallel=fsdp would need"
        lines.append(f"does not fit with a smaller batch either{more}")
        return lines


def _one_step(
    job: Job, settings: TrainingSettings, steps: int, device: torch.device, batch: Any, memory: dict[str, int],
    flops: int,
) -> tuple[str, int]:  # fmt: skip
    """Make a forward and backward pass; return a line that describes it and the bytes of its activations."""
    free = _free_memory(device)
    if total(memory) > free:
        return f"first batch: not computed here, where {free / MIB:.0f} MiB are free", 0
    if device.type == "cpu" and flops > LONG_STEP_FLOPS:
        return "first batch: not computed here, it would take minutes on the CPU", 0
    stage = job.stage.to(device)
    stepper = TrainStep(stage, settings, steps, device, torch.Generator(device).manual_seed(settings.loop.seed))
    weights = (*stage.parameters(), *stage.buffers())
    with stepper.autocast, counted_activations(weights) as activations:
        losses: dict[str, Tensor] = stage(batch.to(device), stepper.generator)
    torch.autograd.backward(losses["loss"])
    values = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
    peak = f"; peak {torch.cuda.max_memory_allocated(device) / MIB:.0f} MiB" if device.type == "cuda" else ""
    return f"first batch, forward and backward: {values}{peak}", activations.bytes


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def _shape(batch: object) -> tuple[int, ...]:
    """(3, T, S, S) of clips, (C, T) of features: the shape of the first of a batch's largest tensor."""
    tensors = [value for value in vars(batch).values() if torch.is_tensor(value)]
    return tuple(max(tensors, key=torch.numel).shape[1:]) if tensors else ()
