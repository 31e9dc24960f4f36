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

MOST_WHOLE = 2**20
"""Of any whole number in a model's settings."""
MOST_LAYERS = 1024
MOST_WIDTH = 2**15
MOST_SIDE = 8192
"""Frames of a clip, pixels of a side."""
MOST_POSITIONS = 2**26
"""Numbers of a table of positions."""
_SIDES = ("image_size", "patch_size", "frames", "tubelet")
_SPARE_TENSORS, _SPARE_NUMBERS = 256, 2**25
"""A model may build parts that it replaces, and have tables that are in no file."""


class DeclaredError(ValueError):
    """Settings that declare more than is there."""


def check_whole(name: str, value: object) -> None:
    """Raise DeclaredError for a setting that no model can have: `name` tells whether it counts layers or pixels."""
    least = 1 if name in (*_SIDES, "width", "heads") else 0
    most = MOST_SIDE if name in _SIDES else MOST_WHOLE
    if name == "width" or name.endswith("_width"):
        most = MOST_WIDTH
    if name in ("depth", "layers") or name.endswith(("_depth", "_layers")):
        most = MOST_LAYERS
    for number in value if isinstance(value, tuple | list) else (value,):
        if isinstance(number, int) and not least <= number <= most:
            shown = str(number) if abs(number) < 10**20 else "a number of more than 20 digits"
            raise DeclaredError(f"{shown}, {least} to {most:,} are the limits")
        if isinstance(number, tuple | list) and len(number) > MOST_LAYERS:
            raise DeclaredError(f"{len(number):,} entries, {MOST_LAYERS:,} is the limit")


@contextmanager
def at_most(tensors: int, numbers: int, told: str) -> Iterator[None]:
    """Building modules inside, in this thread, stops with DeclaredError(`told`) at the first parameter beyond.

    Args:
        tensors: how many parameters there may be. numbers: how many numbers they may have together.
    """
    thread, count, size = threading.get_ident(), 0, 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count, size
        if threading.get_ident() != thread or parameter is None:
            return
        count, size = count + 1, size + (0 if parameter.is_meta else parameter.numel())
        if count > tensors or size > numbers:
            raise DeclaredError(told)

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


def within(state: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """As `at_most`: models built inside are filled with `state`, and so have no more than it has."""
    numbers = sum(tensor.numel() for tensor in state.values())
    told = f"the settings declare a larger model than its {len(state)} tensors of {numbers:,} numbers"
    return at_most(2 * len(state) + _SPARE_TENSORS, 2 * numbers + _SPARE_NUMBERS, told)


def within_memory(config: object) -> AbstractContextManager[None]:
    """As `at_most`: models built inside have to fit into the memory of this machine.

    Attention alone has 4 width^2 weights a layer: a `config` with more of them is refused before any is made, as
    DeclaredError.
    """
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    told = f"the settings declare a model that does not fit into this machine's memory of {there / 2**30:.0f} GiB"
    width, depth = getattr(config, "width", 0), getattr(config, "depth", 0)
    if 4 * 4 * width**2 * depth > there:
        raise DeclaredError(told)
    return at_most(64 * MOST_LAYERS, there // 4, told)
