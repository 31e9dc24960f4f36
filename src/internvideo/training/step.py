"""One optimizer step, without asking the device for anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.errors import RecipeError
from internvideo.training.ema import Ema, scaled_decay
from internvideo.training.optimizer import make_optimizer, set_learning_rate
from internvideo.training.settings import LoopSettings, TrainingSettings

GRADIENT_NORM = "gradient_norm"


class Stepper:
    """Forward, backward, clip, move, average.

    From the first loss or gradient that is not finite on, parameters are no longer moved (a flag on the device skips
    the step), so that they are found as they were before it, whenever the host looks.

    Args:
        stage: the module that learns; already on `device`.
        settings: optimizer and loop.
        total: steps of the run (for the scaled average).
        device: of the stage.
        generator: handed to the stage; on `device`.

    Raises:
        RecipeError: settings that do not fit the stage.
    """

    def __init__(
        self, stage: nn.Module, settings: TrainingSettings, total: int, device: torch.device, generator: torch.Generator
    ) -> None:
        self.loop, self.device, self.generator = settings.loop, device, generator
        _checkpoint_activations(stage, self.loop)
        if self.loop.compile:
            stage.compile()  # in place: the names of the state dict stay
        self.module: nn.Module = stage
        if distributed.world_size() > 1:
            # Buffers are not broadcast: batch statistics stay those of each process, rank 0's are saved.
            self.module = DistributedDataParallel(
                stage,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=bool(getattr(stage, "unused_parameters", False)),
            )
        self.optimizer = make_optimizer(stage, settings.optimizer)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.ema = Ema(stage, _ema_decay(self.loop, total)) if self.loop.ema_decay is not None else None
        self.bad = torch.zeros((), device=device)
        half = self.loop.precision == "bfloat16" or (self.loop.precision == "auto" and device.type == "cuda")
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)

    def __call__(self, batches: Sequence[Batch], lr: float) -> dict[str, Tensor]:
        """Make one step with the mean loss of `batches` at learning rate `lr`.

        Returns:
            The stage's scalars, averaged over the batches, and the norm of the gradient before clipping; on the device.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            joined = number == len(batches) or not isinstance(self.module, DistributedDataParallel)
            with nullcontext() if joined else _no_sync(self.module):
                for name, value in self._backward(batch, len(batches)).items():
                    parts[name] = parts[name] + value if name in parts else value
        norm = self._clip()
        finite = torch.isfinite(parts["loss"]) & torch.isfinite(norm)
        self.bad = torch.maximum(self.bad, (~finite).float())
        self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]  # read by every optimizer
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        return {**parts, GRADIENT_NORM: norm}

    def _backward(self, batch: Batch, share: int) -> dict[str, Tensor]:
        with self.autocast:
            parts: Mapping[str, Tensor] = self.module(batch.to(self.device), self.generator)
        (parts["loss"] / share).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        return {name: value.detach().float() / share for name, value in parts.items()}

    def _clip(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.loop.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.loop.gradient_clip, norm)
        return norm


def _no_sync(module: nn.Module) -> Any:
    """Gradients of all but the last accumulated batch stay on this process."""
    if not isinstance(module, DistributedDataParallel):
        raise ValueError("only with several processes")
    return module.no_sync()


def _ema_decay(loop: LoopSettings, total: int) -> float:
    decay = loop.ema_decay or 0.0
    return scaled_decay(decay, total) if loop.ema_scaled else decay


def _checkpoint_activations(stage: nn.Module, loop: LoopSettings) -> None:
    able = [module for module in stage.modules() if hasattr(module, "checkpointing")]
    if loop.activation_checkpointing and not able:
        raise RecipeError("loop.activation_checkpointing", "this model cannot recompute its activations", "false")
    for module in able:
        module.checkpointing = loop.activation_checkpointing  # type: ignore[assignment]  # a plain attribute
