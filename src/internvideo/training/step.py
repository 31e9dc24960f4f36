"""Run one optimizer step without a host-device sync."""

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


class TrainStep:
    """Forward, backward, gradient clipping, optimizer step, EMA update.

    After the first non-finite loss or gradient, a flag on the device (`found_inf`) makes the optimizer skip every
    step, so the parameters keep their values from before it until the host reads the flag.

    Args:
        stage: the module to train, already on `device`.
        settings: optimizer and loop.
        total: number of steps of the run (for the scaled EMA decay).
        device: device of the stage.
        generator: passed to the stage; on `device`.

    Raises:
        RecipeError: the settings do not apply to the stage.
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
        self.found_inf = torch.zeros((), device=device)
        use_bfloat16 = self.loop.precision == "bfloat16" or (self.loop.precision == "auto" and device.type == "cuda")
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bfloat16)

    def __call__(self, batches: Sequence[Batch], lr: float) -> dict[str, Tensor]:
        """Step on the mean loss of `batches` (gradient accumulation) at learning rate `lr`.

        Returns:
            The stage's scalars, averaged over the batches, and the gradient norm before clipping; on the device.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for index, batch in enumerate(batches, start=1):
            synchronize = index == len(batches) or not isinstance(self.module, DistributedDataParallel)
            with nullcontext() if synchronize else _no_sync(self.module):
                for name, value in self._backward(batch, len(batches)).items():
                    losses[name] = losses[name] + value if name in losses else value
        norm = self._clip_gradients()
        finite = torch.isfinite(losses["loss"]) & torch.isfinite(norm)
        self.found_inf = torch.maximum(self.found_inf, (~finite).float())
        self.optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]  # read by every optimizer
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        return {**losses, GRADIENT_NORM: norm}

    def _backward(self, batch: Batch, num_accumulated: int) -> dict[str, Tensor]:
        with self.autocast:
            losses: Mapping[str, Tensor] = self.module(batch.to(self.device), self.generator)
        (losses["loss"] / num_accumulated).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        return {name: value.detach().float() / num_accumulated for name, value in losses.items()}

    def _clip_gradients(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.loop.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.loop.max_grad_norm, norm)
        return norm


def _no_sync(module: nn.Module) -> Any:
    """Return DDP's context without gradient all-reduce, for all but the last accumulated batch."""
    if not isinstance(module, DistributedDataParallel):
        raise ValueError("only with several processes")
    return module.no_sync()


def _ema_decay(loop: LoopSettings, total: int) -> float:
    decay = loop.ema_decay or 0.0
    return scaled_decay(decay, total) if loop.ema_scaled else decay


def _checkpoint_activations(stage: nn.Module, loop: LoopSettings) -> None:
    supporting = [module for module in stage.modules() if hasattr(module, "checkpointing")]
    if loop.activation_checkpointing and not supporting:
        raise RecipeError(
            "loop.activation_checkpointing", "this model does not support activation checkpointing", "false"
        )
    for module in supporting:
        module.checkpointing = loop.activation_checkpointing  # type: ignore[assignment]  # a plain attribute
