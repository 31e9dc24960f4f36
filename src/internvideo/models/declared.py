"""Stop building a model as soon as its settings ask for more parameters than its weights have.

A few bytes of settings can ask for a million layers, or for layers a million wide.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

MAX_WHOLE = 2**20
"""Largest whole number in a model's settings."""
MAX_LAYERS = 1024
MAX_WIDTH = 2**15
MAX_SIDE = 8192
"""Frames of a clip, pixels of a side."""
MAX_POSITIONS = 2**26
"""Elements of a table of positions."""
_SIDES = ("image_size", "patch_size", "frames", "tubelet")
_SPARE_TENSORS, _SPARE_NUMBERS = 256, 2**25
"""A model may build parts that it replaces, and have tables that are in no file."""


class DeclaredError(ValueError):
    """Settings that declare more than the weights or the memory hold."""


def check_whole(name: str, value: object) -> None:
    """Raise DeclaredError for a setting outside the limits of its kind (layers, pixels, width), known by its name."""
    least = 1 if name in (*_SIDES, "width", "heads") else 0
    most = MAX_SIDE if name in _SIDES else MAX_WHOLE
    if name == "width" or name.endswith("_width"):
        most = MAX_WIDTH
    if name in ("depth", "layers") or name.endswith(("_depth", "_layers")):
        most = MAX_LAYERS
    for number in value if isinstance(value, tuple | list) else (value,):
        if isinstance(number, int) and not least <= number <= most:
            shown = str(number) if abs(number) < 10**20 else "a number of more than 20 digits"
            raise DeclaredError(f"{shown}, {least} to {most:,} are the limits")
        if isinstance(number, tuple | list) and len(number) > MAX_LAYERS:
            raise DeclaredError(f"{len(number):,} entries, {MAX_LAYERS:,} is the limit")


@contextmanager
def at_most(tensors: int, numbers: int, message: str) -> Iterator[None]:
    """Stop building modules inside, in this thread, with DeclaredError(`message`) at the first parameter beyond.

    Args:
        tensors: maximum number of parameters. numbers: maximum number of their elements together.
    """
    thread, count, size = threading.get_ident(), 0, 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count, size
        if threading.get_ident() != thread or parameter is None:
            return
        count, size = count + 1, size + (0 if parameter.is_meta else parameter.numel())
        if count > tensors or size > numbers:
            raise DeclaredError(message)

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


def within(state: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """Limit models built inside, as `at_most`, to the size of `state`, with which they are filled."""
    numbers = sum(tensor.numel() for tensor in state.values())
    message = f"the settings declare a larger model than its {len(state)} tensors of {numbers:,} numbers"
    return at_most(2 * len(state) + _SPARE_TENSORS, 2 * numbers + _SPARE_NUMBERS, message)


def within_memory(config: object) -> AbstractContextManager[None]:
    """Limit models built inside, as `at_most`, to the memory of this machine.

    Attention alone has 4 width^2 weights per layer: DeclaredError for a `config` with more, before any is allocated.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    message = f"the settings declare a model that does not fit into this machine's memory of {memory / 2**30:.0f} GiB"
    width, depth = getattr(config, "width", 0), getattr(config, "depth", 0)
    if 4 * 4 * width**2 * depth > memory:
        raise DeclaredError(message)
    return at_most(64 * MAX_LAYERS, memory // 4, message)
