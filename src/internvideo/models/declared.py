"""Limit the size of a model that untrusted settings declare, by its weights or by the memory, while it is built.

A few bytes of settings can declare a million layers, or layers of width a million.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

MAX_INTEGER = 2**20
"""Largest integer in a model's settings."""
MAX_LAYERS = 1024
MAX_WIDTH = 2**15
MAX_SIDE = 8192
"""Largest number of frames of a clip, and largest side in pixels."""
MAX_POSITIONS = 2**26
"""Largest number of elements of a table of positions."""
_SIDES = ("image_size", "patch_size", "frames", "tubelet")
_EXTRA_TENSORS, _EXTRA_ELEMENTS = 256, 2**25
"""Allowance for modules that are built and then replaced, and for tables that no file has."""


class ModelSizeError(ValueError):
    """The settings declare a larger model than the weights, the memory or the limits of this module allow."""


def check_setting_size(name: str, value: object) -> None:
    """Raise ModelSizeError for a setting outside the limits of its kind: the name says layers, pixels or width."""
    minimum = 1 if name in (*_SIDES, "width", "heads") else 0
    maximum = MAX_SIDE if name in _SIDES else MAX_INTEGER
    if name == "width" or name.endswith("_width"):
        maximum = MAX_WIDTH
    if name in ("depth", "layers") or name.endswith(("_depth", "_layers")):
        maximum = MAX_LAYERS
    for entry in value if isinstance(value, tuple | list) else (value,):
        if isinstance(entry, int) and not minimum <= entry <= maximum:
            shown = str(entry) if abs(entry) < 10**20 else "a number of more than 20 digits"
            raise ModelSizeError(f"{shown}, {minimum} to {maximum:,} are the limits")
        if isinstance(entry, tuple | list) and len(entry) > MAX_LAYERS:
            raise ModelSizeError(f"{len(entry):,} entries, {MAX_LAYERS:,} is the limit")


@contextmanager
def limit_parameters(max_tensors: int, max_elements: int, message: str) -> Iterator[None]:
    """Within the block, raise ModelSizeError(`message`) in this thread when modules get more parameters than allowed.

    Args:
        max_tensors: largest number of parameter tensors. max_elements: largest total number of their elements.
    """
    thread, num_tensors, num_elements = threading.get_ident(), 0, 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal num_tensors, num_elements
        if threading.get_ident() != thread or parameter is None:
            return
        num_tensors, num_elements = num_tensors + 1, num_elements + (0 if parameter.is_meta else parameter.numel())
        if num_tensors > max_tensors or num_elements > max_elements:
            raise ModelSizeError(message)

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


def limit_model_size(state: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """Within the block, limit the models that are built to about twice the size of the state dict for them."""
    num_elements = sum(tensor.numel() for tensor in state.values())
    message = f"the settings declare a larger model than its {len(state)} tensors of {num_elements:,} elements"
    return limit_parameters(2 * len(state) + _EXTRA_TENSORS, 2 * num_elements + _EXTRA_ELEMENTS, message)


def limit_to_memory(config: object) -> AbstractContextManager[None]:
    """Within the block, limit the models that are built to the memory of this machine, in float32.

    Raises ModelSizeError at once if the attention of `config` alone, 4 width^2 weights per layer, is larger.
    """
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    message = (
        f"the settings declare a model that does not fit into this machine's memory of {memory_bytes / 2**30:.0f} GiB"
    )
    width, depth = getattr(config, "width", 0), getattr(config, "depth", 0)
    if 4 * 4 * width**2 * depth > memory_bytes:
        raise ModelSizeError(message)
    return limit_parameters(64 * MAX_LAYERS, memory_bytes // 4, message)
