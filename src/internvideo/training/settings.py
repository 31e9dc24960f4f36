"""Typed settings of a training run: optimizer, schedule, loop. An unknown key is an error."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from internvideo.data.settings import Settings
from internvideo.distributed import TIMEOUT_S

Decay = Annotated[float, Field(gt=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]


class OptimizerSettings(Settings):
    """Optimizer, learning rates and weight decay.

    Attributes:
        kind: "adamw", "bert_adam" (no bias correction, each tensor's gradient clipped to norm 1;
            Video-Text-Retrieval) or "sgd" with Nesterov momentum, whose weight decay is part of the gradient (DEAR).
        base_lr: peak learning rate before scaling.
        lr_scaling: "batch/256" multiplies every rate by the clips of one step over all processes, repeats not
            counted, divided by 256 (mae.py); "none" applies no scaling.
        betas, eps, weight_decay: of Adam; the decay is decoupled. momentum: of sgd.
        no_decay: parameters exempt from weight decay. "model": the model's own rule, by default vectors and biases;
            "biases_and_norms": as the released retrieval script, names with "bias" or "LayerNorm.weight", which matches
            no norm gain of a CLIP: those decay, as do embeddings, positions, query tokens and the logit scale
            (OpenGVLab/InternVideo, Video-Text-Retrieval/main_task_retrieval.py, `prep_optimizer`);
            "biases_and_all_norms": the intended rule, biases and all norm parameters exempt; "nothing".
        layer_decay: rate of layer id i is multiplied by layer_decay ** (layers - i); None for no layer decay.
        lr_multipliers: regular expression -> factor for the parameters in whose name it is found; several multiply.
    """

    base_lr: PositiveFloat
    kind: Literal["adamw", "bert_adam", "sgd"] = "adamw"
    lr_scaling: Literal["batch/256", "none"] = "none"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    momentum: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    weight_decay: NotNegative = 0.05
    no_decay: Literal["model", "biases_and_norms", "biases_and_all_norms", "nothing"] = "model"
    layer_decay: Decay | None = None
    lr_multipliers: dict[str, PositiveFloat] = Field(default_factory=dict)

    @field_validator("lr_multipliers")
    @classmethod
    def _patterns(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _of_the_kind(self) -> Self:
        others, fields = ("betas", "eps") if self.kind == "sgd" else ("momentum",), type(self).model_fields
        if unread := [f"optimizer.{name}" for name in others if getattr(self, name) != fields[name].default]:
            raise ValueError(f"{', '.join(unread)}: not of optimizer.kind '{self.kind}'")
        return self

    def scale(self, clips_per_step: int) -> float:
        """Return the factor of all learning rates; `clips_per_step` counts all processes and accumulated batches."""
        return clips_per_step / 256 if self.lr_scaling == "batch/256" else 1.0


class ScheduleSettings(Settings):
    """Length of the run and learning-rate schedule.

    Attributes:
        steps, epochs: the length; exactly one is given.
        warmup: linear rise from `start_lr` to the peak, in the unit of the length (steps or epochs).
        start_lr, final_lr: before scaling, like `OptimizerSettings.base_lr`.
        kind: after the warm-up "cosine" or "linear" from the peak to `final_lr`, "constant", or "multistep": the
            rate is multiplied by 0.1 at each of `milestones`;
            "cosine_including_warmup" is 0.5 (1 + cos(pi x)) of the progress x over the whole run, warm-up included,
            down to 0 (Video-Text-Retrieval).
        milestones: of the kind "multistep", in the unit of the length, ascending.
    """

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    warmup: NotNegative = 0.0
    start_lr: NotNegative = 0.0
    final_lr: NotNegative = 0.0
    kind: Literal["cosine", "linear", "constant", "multistep", "cosine_including_warmup"] = "cosine"
    milestones: tuple[PositiveFloat, ...] = ()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        length = self.steps if self.steps is not None else self.epochs
        if length is None or (self.steps is not None and self.epochs is not None):
            given = "neither" if length is None else f"schedule.steps {self.steps} and schedule.epochs {self.epochs:g}"
            raise ValueError(f"give either schedule.steps or schedule.epochs, found {given}")
        run = f"the run of {length:g} {'steps' if self.steps is not None else 'epochs'}"
        ascending = list(self.milestones) == sorted(set(self.milestones)) and max(self.milestones, default=0) < length
        rates = self.start_lr or self.final_lr
        shorter = f"give schedule.warmup={length / 10:g} or a longer run"
        milestones = ", ".join(f"{at:g}" for at in self.milestones)
        zero = f"schedule.kind {self.kind} starts and ends at 0: leave out schedule.start_lr and schedule.final_lr"
        both = "schedule.milestones and schedule.kind multistep belong together: give both or neither"
        faults = {
            f"schedule.warmup {self.warmup:g} is longer than {run}: {shorter}": self.warmup > length,
            zero: self.kind == "cosine_including_warmup" and rates,
            both: (self.kind == "multistep") != bool(self.milestones),
            f"schedule.milestones {milestones} do not ascend within {run}": not ascending,
        }
        if found := [text for text, wrong in faults.items() if wrong]:
            raise ValueError("; ".join(found))
        return self

    def total_steps(self, steps_per_epoch: float) -> int:
        """Optimizer steps of the whole run."""
        return max(1, round((self.epochs or 0.0) * steps_per_epoch)) if self.steps is None else self.steps

    def warmup_steps(self, steps_per_epoch: float) -> int:
        """Optimizer steps of the warm-up."""
        return round(self.warmup if self.steps is not None else self.warmup * steps_per_epoch)

    def relative_milestones(self) -> tuple[float, ...]:
        """Return the milestones as fractions of the run, 0..1."""
        return tuple(at / (self.steps or self.epochs or 1.0) for at in self.milestones)


class LoopSettings(Settings):
    """Settings of the training loop.

    Attributes:
        max_grad_norm: global gradient norm above which gradients are clipped, None for no clipping.
        grad_accum_steps: batches per optimizer step, all of equal size and weight.
        precision: "auto" is bfloat16 autocast on CUDA and float32 elsewhere.
        ema_decay: keep an exponential moving average of the learning parameters; None for none.
        ema_scaled: shorten the average in a short run, so that it spans at most a tenth of the steps.
        checkpoint_every: steps between checkpoints; one is always written at the end. None for that one only.
        keep_checkpoints: number of newest checkpoints kept.
        log_every: steps between log lines; the device is synchronized only then.
        activation_checkpointing: recompute activations in the backward pass instead of storing them.
        compile: "blocks" compiles the repeated layers one by one (torch.compile); if the compiler fails, a warning is
            printed and the run continues without it. true and false of earlier versions are "blocks" and "none".
        parallel: with several processes: "ddp" replicates the model, "fsdp" shards parameters, gradients and optimizer
            state over all processes (FSDP2), "hsdp" over those of a machine.
        reshard_after_forward: of "fsdp" and "hsdp": free a layer's gathered parameters until its backward pass.
        global_batch_size: clips per optimizer step of all processes. `grad_accum_steps` follows from it and from the
            number of processes (in stages with a contrastive loss `data.loader.batch_size` does, because negatives are
            taken from a batch), so a run may be resumed with another number of them. None: determined by those two.
        tensorboard: also write TensorBoard events (needs the `track` extra).
        timeout_s: seconds after which a process that does not answer counts as lost.
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
    def _earlier_compile(cls, value: object) -> object:
        return {True: "blocks", False: "none"}[value] if isinstance(value, bool) else value


class TrainingSettings(Settings):
    """All settings of `loop.train`."""

    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    loop: LoopSettings = LoopSettings()
