"""Models of shapes alone: on the meta device, without the arithmetic of their initial values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NAMES = ("uniform", "normal", "erfinv", "mul", "add", "clamp", "zero", "fill")
IN_PLACE = {getattr(Tensor, f"{name}_") for name in NAMES}
IN_PLACE |= {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.trunc_normal_}


class _NoValues(TorchFunctionMode):
    """On the meta device an operation in place changes nothing, and takes most of the time of building a model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in IN_PLACE:
            target = args[0] if args else (kwargs or {})["tensor"]
            if target.is_meta:
                return target
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Models built inside have shapes and no numbers."""
    with torch.device("meta"), _NoValues():
        yield
