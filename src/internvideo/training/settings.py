"""Typed settings of a training run: optimizer, schedule, loop. An unknown key is an error."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from internvideo.data.settings import Settings
from internvideo.distributed import TIMEOUT_S

Decay = Annotated[float, Field(gt=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class OptimizerSettings(Settings):
    """Optimizer, learning rates and weight decay.

    Attributes:
        kind: "adamw", "bert_adam" (no bias correction, each tensor's gradient clipped to norm 1;
            Video-Text-Retrieval) or "sgd" with Nesterov momentum, whose weight decay is part of the gradient (DEAR).
        base_lr: peak learning rate before scaling.
        lr_scaling: "batch/256" multiplies all rates by (clips per optimizer step over all processes) / 256, without
            repeated augmentations (mae.py); "none" does not scale.
        betas, eps: of Adam. momentum: of sgd.
        weight_decay: decoupled, except for sgd.
        no_decay: parameters without weight decay. "model": by the model's rule, by default vectors and biases;
            "biases_and_norms": as the released retrieval script, names with "bias" or "LayerNorm.weight": the latter
            matches no norm of CLIP, whose gains therefore decay, as do embeddings, positions, query tokens and the
            logit scale (OpenGVLab/InternVideo, Video-Text-Retrieval/main_task_retrieval.py, `prep_optimizer`);
            "biases_and_all_norms": biases and all norm parameters, what that script intends; "nothing": no parameter.
        layer_decay: the rate of layer id i is multiplied by layer_decay ** (max_layer_id - i); None for no layer decay.
        lr_multipliers: regular expression -> factor of the learning rate of parameters whose names it matches; the
            factors of several matches are multiplied.
    """

    base_lr: PositiveFloat
    kind: Literal["adamw", "bert_adam", "sgd"] = "adamw"
    lr_scaling: Literal["batch/256", "none"] = "none"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    momentum: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    weight_decay: NonNegative = 0.05
    no_decay: Literal["model", "biases_and_norms", "biases_and_all_norms", "nothing"] = "model"
    layer_decay: Decay | None = None
    lr_multipliers: dict[str, PositiveFloat] = Field(default_factory=dict)

    @field_validator("lr_multipliers")
    @classmethod
    def _check_patterns(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _refuse_unused(self) -> Self:
        others, fields = ("betas", "eps") if self.kind == "sgd" else ("momentum",), type(self).model_fields
        if unread := [f"optimizer.{name}" for name in others if getattr(self, name) != fields[name].default]:
            raise ValueError(f"{', '.join(unread)}: not a setting of optimizer.kind '{self.kind}'")
        return self

    def scale(self, clips_per_step: int) -> float:
        """Return the factor of all learning rates for the clips per optimizer step over all processes."""
        return clips_per_step / 256 if self.lr_scaling == "batch/256" else 1.0


class ScheduleSettings(Settings):
    """Length of the run and learning-rate schedule.

    Attributes:
        steps, epochs: length of the run; exactly one is given.
        warmup: length of the linear warm-up, in the same unit as the length of the run (steps or epochs).
        start_lr: learning rate of the first warm-up step, before scaling (see `OptimizerSettings.base_lr`).
        final_lr: learning rate at the end, before scaling; only of the kinds "cosine" and "linear".
        kind: after the warm-up, "cosine" or "linear" decay from the peak to `final_lr`; "constant"; "multistep":
            multiplied by 0.1 at each milestone; or "cosine_including_warmup": peak * 0.5 (1 + cos(pi x)), where the
            progress x counts from the start of the warm-up (Video-Text-Retrieval).
        milestones: of the kind "multistep", ascending, in the same unit as the length of the run.
    """

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    warmup: NonNegative = 0.0
    start_lr: NonNegative = 0.0
    final_lr: NonNegative = 0.0
    kind: Literal["cosine", "linear", "constant", "multistep", "cosine_including_warmup"] = "cosine"
    milestones: tuple[PositiveFloat, ...] = ()

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        length = self.steps if self.steps is not None else self.epochs
        if length is None or (self.steps is not None and self.epochs is not None):
            given = "neither" if length is None else f"schedule.steps {self.steps} and schedule.epochs {self.epochs:g}"
            raise ValueError(f"give either schedule.steps or schedule.epochs, found {given}")
        run = f"the run of {length:g} {'steps' if self.steps is not None else 'epochs'}"
        ascending = list(self.milestones) == sorted(set(self.milestones)) and max(self.milestones, default=0) < length
        rates = self.start_lr or self.final_lr
        hint = f"give schedule.warmup={length / 10:g} or a longer run"
        milestones = ", ".join(f"{at:g}" for at in self.milestones)
        zero = f"schedule.kind {self.kind} starts and ends at 0: leave out schedule.start_lr and schedule.final_lr"
        both = "schedule.milestones are of schedule.kind multistep: give both or neither"
        problems = {
            f"schedule.warmup {self.warmup:g} is longer than {run}: {hint}": self.warmup > length,
            zero: self.kind == "cosine_including_warmup" and rates,
            both: (self.kind == "multistep") != bool(self.milestones),
            f"schedule.milestones {milestones} do not ascend within {run}": not ascending,
        }
        if messages := [text for text, wrong in problems.items() if wrong]:
            raise ValueError("; ".join(messages))
        return self

    def total_steps(self, steps_per_epoch: float) -> int:
        """Return the number of optimizer steps of the run."""
        return max(1, round((self.epochs or 0.0) * steps_per_epoch)) if self.steps is None else self.steps

    def warmup_steps(self, steps_per_epoch: float) -> int:
        """Return the number of optimizer steps of the warm-up."""
        return round(self.warmup if self.steps is not None else self.warmup * steps_per_epoch)

    def relative_milestones(self) -> tuple[float, ...]:
        """Return the milestones as fractions of the run, 0..1."""
        return tuple(at / (self.steps or self.epochs or 1.0) for at in self.milestones)


class LoopSettings(Settings):
    """Settings of the training loop.

    Attributes:
        max_grad_norm: global gradient norm above which gradients are clipped, None for no clipping.
        grad_accum_steps: batches per optimizer step (gradient accumulation), all of equal size and weight.
        precision: "auto" is bfloat16 autocast on CUDA and float32 elsewhere.
        ema_decay: decay of an exponential moving average of the trainable parameters; None for no average.
        ema_scaled: in a short run, limit the decay so that the average spans at most a tenth of the steps.
        checkpoint_every: steps between checkpoints; None for a checkpoint at the end only, which is always written.
        keep_checkpoints: number of newest checkpoints that are not deleted.
        log_every: steps between log lines; only then the host waits for the device.
        activation_checkpointing: recompute activations in the backward pass instead of storing them.
        compile: "blocks" compiles the repeated layers one by one (torch.compile); if the compiler fails, a warning is
            printed and the run continues without it. true and false mean "blocks" and "none".
        parallel: with several processes: "ddp" replicates the model, "fsdp" shards parameters, gradients and optimizer
            state over all processes (FSDP2), "hsdp" over those of a machine.
        reshard_after_forward: of "fsdp" and "hsdp": free a layer's gathered parameters until its backward pass.
        global_batch_size: clips per optimizer step over all processes. It determines `grad_accum_steps` for any number
            of processes, so a run may be resumed with another number of them. In stages with a contrastive loss it
            determines `data.loader.batch_size` instead, because the negatives of a clip are those of its batch. None:
            the global batch is batch_size * grad_accum_steps * processes.
        tensorboard: also write TensorBoard events (needs the `track` extra).
        timeout_s: seconds without an answer after which a process is considered dead.
        seed: seed of all random draws of the loop and the stage.
    """

    max_grad_norm: PositiveFloat | None = None
    grad_accum_steps: PositiveInt = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    ema_scaled: bool = True
    checkpoint_every: PositiveInt | None = None
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 10
    activation_checkpointing: bool = False
    compile: Literal["none", "blocks"] = "none"
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    reshard_after_forward: bool = True
    global_batch_size: PositiveInt | None = None
    tensorboard: bool = False
    timeout_s: PositiveFloat = TIMEOUT_S
    seed: int = 0

    @field_validator("compile", mode="before")
    @classmethod
    def _convert_bool(cls, value: object) -> object:
        return {True: "blocks", False: "none"}[value] if isinstance(value, bool) else value


class TrainingSettings(Settings):
    """The settings that `loop.train` takes."""

    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    loop: LoopSettings = LoopSettings()
