"""Parameter groups (no-decay rules, layer decay, multipliers) and the optimizers.

A module may define, for its own parameters (names relative to it):
    no_weight_decay(name, parameter) -> bool      True for no weight decay; used with `no_decay: model`
    get_layer_id(name) -> int, max_layer_id: int  layer id for layer-wise decay, 0 (input) .. max_layer_id (head)
The rule of the outermost module that defines one applies to all its submodules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internvideo.errors import RecipeError
from internvideo.training.settings import OptimizerSettings


@dataclass(frozen=True)
class ParameterRule:
    """Learning-rate factor and weight decay of one trainable parameter."""

    lr_scale: float
    weight_decay: float


def _owner(module: nn.Module, name: str, attribute: str) -> tuple[Any, str] | None:
    """Find the outermost module with `attribute` on the path to a parameter.

    Returns:
        the module, and the name of the parameter relative to it; None without such a module.
    """
    owner, rest = module, name
    while not hasattr(owner, attribute):
        head, dot, rest = rest.partition(".")
        if not dot:
            return None
        owner = owner.get_submodule(head)
    return owner, rest


_NORM = re.compile(r"Norm(\dd)?$")


def _is_norm_parameter(module: nn.Module, name: str) -> bool:
    """Return whether a parameter belongs to a normalization layer, by the class name of its module."""
    return _NORM.search(type(module.get_submodule(name.rpartition(".")[0])).__name__) is not None


def _is_exempt_from_decay(module: nn.Module, name: str, parameter: nn.Parameter, rule: str) -> bool:
    if rule != "model":
        leaf = name.rpartition(".")[2]
        bias = leaf == "bias" or leaf.endswith("_bias")
        return rule != "nothing" and (bias or (rule == "biases_and_all_norms" and _is_norm_parameter(module, name)))
    if (owner_and_name := _owner(module, name, "no_weight_decay")) is None:
        return parameter.ndim <= 1 or name.endswith(".bias")
    return bool(owner_and_name[0].no_weight_decay(owner_and_name[1], parameter))


def _layer_decay_scale(module: nn.Module, name: str, decay: float | None) -> float:
    if decay is None or (owner_and_name := _owner(module, name, "get_layer_id")) is None:
        return 1.0
    owner, rest = owner_and_name
    return layer_scale(decay, owner.get_layer_id(rest), owner.max_layer_id)


def layer_scale(decay: float, layer_id: int, max_layer_id: int) -> float:
    """Return decay ** (max_layer_id - layer_id), which is 1 for the head (run_class_finetuning.py)."""
    return decay ** (max_layer_id - layer_id)


def parameter_rules(module: nn.Module, settings: OptimizerSettings) -> dict[str, ParameterRule]:
    """Return parameter name -> rule for every trainable parameter.

    Raises:
        RecipeError: no parameter is trainable, a multiplier pattern matches no trainable parameter, or layer decay is
            set for a module without layer ids.
    """
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise RecipeError("stage", "no trainable parameter", "at least one", "check what the stage freezes")
    for pattern in settings.lr_multipliers:
        if not any(re.search(pattern, name) for name, _ in trainable):
            owner_and_name, expected = f"{pattern!r} is in no name", f"names such as {trainable[-1][0]!r}"
            raise RecipeError("optimizer.lr_multipliers", owner_and_name, expected)
    if settings.layer_decay is not None and not any(_owner(module, name, "get_layer_id") for name, _ in trainable):
        raise RecipeError("optimizer.layer_decay", "this model has no layer ids", "null", "leave the setting out")
    rules = {}
    for name, parameter in trainable:
        scale = _layer_decay_scale(module, name, settings.layer_decay)
        for pattern, factor in settings.lr_multipliers.items():
            scale *= factor if re.search(pattern, name) else 1.0
        decay = 0.0 if _is_exempt_from_decay(module, name, parameter, settings.no_decay) else settings.weight_decay
        rules[name] = ParameterRule(scale, decay)
    return rules


def make_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build the optimizer with one parameter group per rule; `set_learning_rate` uses their `lr_scale`.

    Raises:
        RecipeError: see `parameter_rules`.
    """
    groups: dict[ParameterRule, list[nn.Parameter]] = {}
    parameters = dict(module.named_parameters())
    for name, rule in parameter_rules(module, settings).items():
        groups.setdefault(rule, []).append(parameters[name])
    param_groups: list[dict[str, Any]] = [
        {"params": parameters, "lr_scale": rule.lr_scale, "weight_decay": rule.weight_decay}
        for rule, parameters in groups.items()
    ]
    if settings.kind == "bert_adam":
        return BertAdam(param_groups, lr=settings.base_lr, betas=settings.betas, eps=settings.eps)
    # The fused kernels skip a step if the flag `found_inf` on the device is set, without a host-device sync.
    if settings.kind == "sgd":
        return torch.optim.SGD(param_groups, lr=settings.base_lr, momentum=settings.momentum, nesterov=True, fused=True)
    return torch.optim.AdamW(param_groups, lr=settings.base_lr, betas=settings.betas, eps=settings.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, with decoupled weight decay and per-tensor clipping (Video-Text-Retrieval).

    Args:
        params: parameters or parameter groups. lr, betas, eps, weight_decay: of Adam.
        clip: largest gradient norm of one tensor.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        clip: float = 1.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "clip": clip})
        self.found_inf: Tensor | None = None  # set by the training step: 1 skips the update

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure here
        """Update the parameters."""
        if closure is not None:
            raise ValueError("BertAdam takes no closure")
        parameters = ((parameter, group) for group in self.param_groups for parameter in group["params"])
        for parameter, group in parameters:
            if parameter.grad is None:
                continue
            gradient, state = parameter.grad, self.state[parameter]
            if not state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            gradient = gradient * (group["clip"] / (gradient.norm() + 1e-6)).clamp(max=1.0)
            update_factor: Tensor | float = 1.0
            if self.found_inf is not None:
                gradient = torch.where(self.found_inf > 0, 0.0, gradient)
                update_factor = 1.0 - self.found_inf
            beta1, beta2 = group["betas"]
            state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            update = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
            parameter.sub_((update + group["weight_decay"] * parameter) * (group["lr"] * update_factor))
