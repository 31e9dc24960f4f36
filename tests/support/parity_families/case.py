"""A stored case, and what a family must say about itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from internvideo.weights.state import reference_names

Value = Tensor | float | Mapping[str, float]

WORDS = frozenset({"model", "official_class", "constructor", "config", "official_config", "io"})
"""Entries of every JSON that describe the case. Entries that are plain text describe it too."""


@dataclass(frozen=True)
class Case:
    """One reference model: NAME.json, NAME.weights.safetensors, NAME.io.safetensors.

    Attributes:
        path: of the JSON.
        perturbed: published name of one tensor to falsify ("" for none), to see that the comparisons would notice.
    """

    path: Path
    perturbed: str = ""

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())  # type: ignore[no-any-return]  # JSON is untyped

    @cached_property
    def io(self) -> dict[str, Tensor]:
        return load_file(self.path.with_suffix(".io.safetensors"))

    @cached_property
    def stored_weights(self) -> dict[str, Tensor]:
        return load_file(self.path.with_suffix(".weights.safetensors"))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The published state dict in float32 (integers keep their type)."""
        state = {k: v.float() if v.is_floating_point() else v for k, v in self.stored_weights.items()}
        if self.perturbed:
            wrong = state[self.perturbed]
            state[self.perturbed] = wrong + 0.1 * torch.linspace(-1, 1, wrong.numel()).view_as(wrong)
        return state

    def input(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor of `io`, floats in `dtype`."""
        value = self.io[name]
        return value.to(dtype) if value.is_floating_point() else value

    def quantities(self, family: Family) -> list[str]:
        """Names of everything stored that a computation must reproduce, from the JSON alone."""
        names = [name for name in self.info["io"] if name not in family.inputs]
        for key, value in self.info.items():
            if key in WORDS or key in family.settings or isinstance(value, str) or value is None:
                continue
            if isinstance(value, dict) and not key.startswith("grad_norms"):
                names += [".".join([key, *rest]) for rest in _leaves(value)]
            else:
                names.append(key)
        return names

    def stored(self, quantity: str) -> Any:
        """The stored value of a quantity."""
        if quantity in self.info["io"]:
            return self.io[quantity]
        value: Any = self.info
        for part in [quantity] if quantity in value else quantity.split("."):
            value = value[part]
        return value


def _leaves(tree: dict[str, Any]) -> list[list[str]]:
    found = []
    for key, value in tree.items():
        found += [[key, *rest] for rest in _leaves(value)] if isinstance(value, dict) else [[key]]
    return found


@dataclass(frozen=True)
class Family:
    """How one kind of model is built, called and compared.

    Attributes:
        build: case -> our model in float32, eval mode, with the case's weights loaded.
        compute: see the package's text.
        inputs: names of `io` that are fed in, not compared.
        settings: further entries of the JSON that are read as settings.
        tolerance32: largest absolute deviation of a float32 output (1e-5, caption decoder and its users 3e-5).
        tolerance64: the same for float64 (1e-9; where a float32 table is computed anew 1e-6).
    """

    build: Callable[[Case], nn.Module]
    compute: Callable[[Case, torch.dtype], dict[str, Value]]
    inputs: frozenset[str]
    settings: frozenset[str] = frozenset()
    tolerance32: float = 1e-5
    tolerance64: float = 1e-9


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Our parameter name -> gradient of the loss (zeros where it does not reach)."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }


def grad_norms(model: nn.Module, found: Mapping[str, Tensor], keys: Mapping[str, object]) -> dict[str, float]:
    """Norms under the published names; a published tensor that we hold in parts has the norm of the parts together.

    Args:
        model: ours.
        found: our gradients.
        keys: published names wanted (the stored table will do).
    """
    ours = reference_names(model, keys)
    return {
        key: torch.stack([found[name].norm() for name in names]).norm().item() for key, names in ours.items() if names
    }


def total_norm(found: Mapping[str, Tensor]) -> float:
    """Norm of all gradients together."""
    return torch.stack([gradient.norm() for gradient in found.values()]).norm().item()
