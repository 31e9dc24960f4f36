"""Show what a training run would do: parameters, steps, memory on each process, and one step on its data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from internvideo.distributed import choose_device
from internvideo.errors import RunError
from internvideo.pipeline import prepare, training_recipe
from internvideo.system import free_memory
from internvideo.training.memory import GIB, MIB, count_activations, predict_activations, state_bytes, sum_bytes
from internvideo.training.recipe import EvaluationRecipe, Job
from internvideo.training.settings import TrainingSettings
from internvideo.training.step import TrainStep, checkpoint_activations

LONG_STEP_FLOPS = 2e13
"""Operations of a step above which it is not computed on a CPU, where it would take minutes."""


def describe(
    recipe: EvaluationRecipe, *, device: str = "auto", processes: int = 1, memory_gib: float | None = None
) -> str:
    """Describe a run and compute one forward and backward pass; nothing is written.

    Memory is predicted from shapes. If it does not fit, settings that reduce it are listed with their memory. The pass
    is computed on one batch of the data, if that fits into the free memory.

    Args:
        device: computes the pass.
        processes: number of processes of the run.
        memory_gib: memory of each GPU of the run, in GiB (`loop.precision=auto` is then bfloat16); by default that of
            `device`.

    Raises:
        as `prepare`.
    """
    recipe = training_recipe(recipe)
    device_, job = choose_device(device), prepare(recipe)
    loop = recipe.loop.model_copy(update={"compile": "none"})
    settings = TrainingSettings(optimizer=recipe.optimizer, schedule=recipe.schedule, loop=loop)
    steps_per_epoch = len(job.loader) / loop.grad_accum_steps / processes
    steps = recipe.schedule.total_steps(steps_per_epoch)
    num_parameters = {
        kind: sum(p.numel() for p in job.model.parameters() if p.requires_grad == kind) for kind in (True, False)
    }
    batch = next(iter(job.loader.epoch(0))).to(torch.device("cpu"))  # augmented here, with data.augment.on_device
    on_gpu = device_.type == "cuda" or memory_gib is not None
    bfloat16 = loop.precision == "bfloat16" or (loop.precision == "auto" and on_gpu)
    memory_plan = _MemoryPlan(job.stage.train(), batch, settings, bfloat16, processes)
    memory, flops = memory_plan.memory(settings)
    available_bytes = _free_memory(device_) if memory_gib is None else int(memory_gib * GIB)
    step, measured = _one_step(job, settings, steps, device_, batch, memory, flops)
    memory.setdefault("activations", measured)
    lines = [
        f"recipe    {recipe.about or recipe.stage}",
        f"model     {recipe.model.name} ({type(job.model).__name__})",
        *(f"head      {line}" for line in job.head_init_lines),
        f"learning  {num_parameters[True] / 1e6:.3f} M parameters",
        f"frozen    {num_parameters[False] / 1e6:.3f} M parameters",
        f"steps     {steps} ({steps_per_epoch:.1f} an epoch, {len(batch)} clips a batch of {_shape(batch)})",
        *([f"compute   {flops / 1e12:.3f} TFLOP a batch on each process, forward and backward"] if flops else []),
        f"memory    {sum_bytes(memory) / MIB:.1f} MiB on each of {processes} process{'es' if processes > 1 else ''}, "
        f"temporary tensors not counted, of {available_bytes / MIB:.0f} MiB:",
        *(f"          {size / MIB:10.1f} MiB {name}" for name, size in memory.items()),
        *(memory_plan.remedies(available_bytes) if sum_bytes(memory) > available_bytes else ()),
        step,
    ]
    return "\n".join(lines)


class _MemoryPlan:
    """Predict the memory of a step, also with other settings than those of the recipe.

    Args:
        stage, batch: of the recipe, with values. bfloat16: precision of the activations. processes: of the run.
    """

    def __init__(
        self, stage: nn.Module, batch: Any, settings: TrainingSettings, bfloat16: bool, processes: int
    ) -> None:
        self.stage, self.batch, self.settings = stage, batch, settings
        self.bfloat16, self.processes = bfloat16, processes

    def memory(self, settings: TrainingSettings) -> tuple[dict[str, int], int]:
        """Return {kind: bytes}, without activations if they cannot be predicted, and floating-point operations."""
        bytes_of = state_bytes(self.stage, settings, self.processes)
        checkpoint_activations(self.stage, settings.loop)
        try:
            activations, flops = predict_activations(self.stage, self.batch, bfloat16=self.bfloat16)
        except RunError:
            return bytes_of, 0
        finally:
            checkpoint_activations(self.stage, self.settings.loop)
        return {**bytes_of, "activations": activations}, flops

    def remedies(self, available_bytes: int) -> list[str]:
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
            lines.append(f"with     {text}: {sum_bytes(needed) / MIB:.0f} MiB")
            if sum_bytes(needed) <= available_bytes:
                return lines
        needed, _ = self.memory(self.settings.model_copy(update={"loop": loop}))
        states = sum_bytes(needed) - needed.get("activations", 0)
        if "activations" in needed and states < available_bytes:
            num_clips = int(clips * (available_bytes - states) / needed["activations"])
            if 0 < num_clips < clips:
                prefix = f"{text} and" if text else ""
                size = f"{num_clips} clips a batch instead of {clips}"
                lines.append(f"with     {prefix} {size}: about {available_bytes / MIB:.0f} MiB")
                return lines
        hint = "" if self.processes > 1 else "; --processes N shows what loop.parallel=fsdp would need"
        lines.append(f"does not fit with a smaller batch either{hint}")
        return lines


def _one_step(
    job: Job, settings: TrainingSettings, steps: int, device: torch.device, batch: Any, memory: dict[str, int],
    flops: int,
) -> tuple[str, int]:  # fmt: skip
    """Make a forward and backward pass; return a line that describes it and the bytes of its activations."""
    free = _free_memory(device)
    if sum_bytes(memory) > free:
        return f"first batch: not computed here, where {free / MIB:.0f} MiB are free", 0
    if device.type == "cpu" and flops > LONG_STEP_FLOPS:
        return "first batch: not computed here, it would take minutes on the CPU", 0
    stage = job.stage.to(device)
    stepper = TrainStep(stage, settings, steps, device, torch.Generator(device).manual_seed(settings.loop.seed))
    weights = (*stage.parameters(), *stage.buffers())
    with stepper.autocast, count_activations(weights) as activations:
        losses: dict[str, Tensor] = stage(batch.to(device), stepper.generator)
    torch.autograd.backward(losses["loss"])
    values = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
    peak = f"; peak {torch.cuda.max_memory_allocated(device) / MIB:.0f} MiB" if device.type == "cuda" else ""
    return f"first batch, forward and backward: {values}{peak}", activations.peak_bytes


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def _shape(batch: object) -> tuple[int, ...]:
    """Return the shape of a sample in the largest tensor of a batch: (3, T, S, S) of clips, (C, T) of features."""
    tensors = [value for value in vars(batch).values() if torch.is_tensor(value)]
    return tuple(max(tensors, key=torch.numel).shape[1:]) if tensors else ()
