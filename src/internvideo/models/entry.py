"""`ModelEntry`, one row of a table of named model sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ModelEntry:
    """A named model size.

    Attributes:
        build: config -> initialized model.
        config: frozen dataclass with the published sizes; `create_model` replaces fields of it.
        million_parameters: number of parameters in millions, as published; None if not published.
        description: one line for `internvideo list models`.
    """

    build: Callable[[Any], nn.Module]
    config: Any
    million_parameters: float | None
    description: str
