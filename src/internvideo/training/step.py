"""Run one optimizer step without a host-device sync."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.errors import RecipeError
from internvideo.terminal import LOGGER
from internvideo.training.ema import Ema, scaled_decay
from internvideo.training.optimizer import make_optimizer, set_learning_rate
from internvideo.training.settings import LoopSettings, TrainingSettings
from internvideo.training.sharding import is_sharded, layers, shard, synchronize_gradients

GRADIENT_NORM = "gradient_norm"


class TrainStep:
    """One optimizer step: forward, backward, gradient clipping, update of the parameters, update of the EMA.

    From the first non-finite loss or gradient on, a flag on the device (`found_inf`) makes the optimizer skip every
    update, so the parameters keep their last finite values until the host reads the log.

    Args:
        stage: the module to train, already on `device`. settings: optimizer and loop.
        total_steps: number of optimizer steps of the run, for the scaled EMA decay.
        device: of the stage. generator: passed to the stage; on `device`.

    Raises:
        RecipeError: the settings do not apply to the stage.
    """

    def __init__(
        self,
        stage: nn.Module,
        settings: TrainingSettings,
        total_steps: int,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        self.loop, self.device, self.generator = settings.loop, device, generator
        checkpoint_activations(stage, self.loop)
        self.stage, self.compiled = stage, self.loop.compile == "blocks"
        for layer in layers(stage) if self.compiled else ():
            layer.compile()  # in place, so the names in the state dict stay
        self.module: nn.Module = stage
        self.sharded = is_sharded(self.loop.parallel)
        if self.sharded:
            shard(stage, self.loop.parallel, device, reshard_after_forward=self.loop.reshard_after_forward)
        elif distributed.world_size() > 1:
            # Buffers are not broadcast: every process has its own batch statistics, and rank 0 saves its own.
            self.module = DistributedDataParallel(
                stage,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=bool(getattr(stage, "unused_parameters", False)),
            )
        self.optimizer = make_optimizer(stage, settings.optimizer)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.ema: Ema | None = None
        if (decay := self.loop.ema_decay) is not None:
            self.ema = Ema(stage, scaled_decay(decay, total_steps) if self.loop.ema_scaled else decay)
        self.found_inf = torch.zeros((), device=device)
        use_bfloat16 = self.loop.precision == "bfloat16" or (self.loop.precision == "auto" and device.type == "cuda")
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bfloat16)

    def __call__(self, batches: Sequence[Batch], lr: float) -> dict[str, Tensor]:
        """Step on the mean loss of `batches` (gradient accumulation) at learning rate `lr`.

        Returns:
            The stage's scalars, averaged over the batches, and the gradient norm before clipping; on the device.
        """
        self.optimizer.zero_grad(set_to_none=True)
        for module in self.stage.modules():  # not in the forward pass, where FSDP has copies of the parameters
            if hasattr(module, "clamp_logit_scale"):
                cast(Any, module).clamp_logit_scale()
        outputs: dict[str, Tensor] = {}
        for index, batch in enumerate(batches, start=1):
            with self._synchronizing(index == len(batches)):
                for name, value in self._backward_compiled(batch, len(batches)).items():
                    outputs[name] = outputs[name] + value if name in outputs else value
        gradient_norm = self._clip_gradients()
        finite = torch.isfinite(outputs["loss"]) & torch.isfinite(gradient_norm)
        self.found_inf = torch.maximum(self.found_inf, (~finite).float())
        self.optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]  # read by every optimizer
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        return {**outputs, GRADIENT_NORM: gradient_norm}

    def _synchronizing(self, synchronize: bool) -> Any:
        """Return the context of one accumulated batch: gradients are summed over the processes only with the last."""
        if self.sharded:
            synchronize_gradients(self.stage, synchronize)
        if isinstance(self.module, DistributedDataParallel) and not synchronize:
            return self.module.no_sync()
        return nullcontext()

    def _backward_compiled(self, batch: Batch, num_accumulated: int) -> dict[str, Tensor]:
        """Run forward and backward; if the compiler fails, switch compilation off and run them again."""
        if not self.compiled:
            return self._backward(batch, num_accumulated)
        generator_state, torch_state = self.generator.get_state(), torch.get_rng_state()
        try:
            return self._backward(batch, num_accumulated)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:2]) or type(error).__name__  # the first line may only name the compiler
            if distributed.rank() == 0:
                LOGGER.warning(f"loop.compile: the compiler failed ({reason}); the run continues without it")
        for layer in layers(self.stage):
            layer._compiled_call_impl = None
        self.compiled = False
        self.generator.set_state(generator_state)
        torch.set_rng_state(torch_state)
        return self._backward(batch, num_accumulated)

    def _backward(self, batch: Batch, num_accumulated: int) -> dict[str, Tensor]:
        with self.autocast:
            outputs: Mapping[str, Tensor] = self.module(batch.to(self.device), self.generator)
        (outputs["loss"] / num_accumulated).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        return {name: value.detach().float() / num_accumulated for name, value in outputs.items()}

    def _clip_gradients(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        gradient_norm = nn.utils.get_total_norm(gradients)
        if self.loop.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.loop.max_grad_norm, gradient_norm)
        return distributed.full_tensor(gradient_norm)


def checkpoint_activations(stage: nn.Module, loop: LoopSettings) -> None:
    """Switch activation checkpointing of a stage's modules on or off. Raises RecipeError if no module supports it."""
    supporting = [module for module in stage.modules() if hasattr(module, "checkpointing")]
    if loop.activation_checkpointing and not supporting:
        found = "this model does not support activation checkpointing"
        raise RecipeError("loop.activation_checkpointing", found, "false")
    for module in supporting:
        module.checkpointing = loop.activation_checkpointing  # type: ignore[assignment]  # a plain attribute
