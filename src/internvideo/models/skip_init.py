"""Build a model without random initialization, which takes most of the time of loading a large model from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from internvideo.errors import WeightsError

RANDOM_INITS = (Tensor.uniform_, Tensor.normal_, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)


class _SkipInit(TorchFunctionMode):
    """Fill tensors with NaN instead of random numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in RANDOM_INITS:
            target: Tensor = args[0] if args else (kwargs or {})["tensor"]
            with torch.no_grad():
                return target.fill_(torch.nan)
        return func(*args, **(kwargs or {}))


@contextmanager
def skip_init() -> Iterator[None]:
    """Within the block, fill new parameters with NaN instead of random numbers.

    Load the state dict strictly afterwards, then call `check_all_loaded`.
    """
    with _SkipInit():
        yield


def check_all_loaded(module: nn.Module, where: object) -> None:
    """Raise WeightsError, naming the file `where`, for a parameter that still has the NaN of `skip_init`."""
    for name, parameter in module.named_parameters():
        if parameter.numel() and bool(parameter.detach().reshape(-1)[0].isnan()):
            raise WeightsError(where, f"no values for {name}", "a tensor for every parameter")
