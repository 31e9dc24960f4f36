"""One row of the table of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ModelEntry:
    """A named size.

    Attributes:
        build: config -> model, initialized.
        config: frozen dataclass with the published sizes; `create_model` replaces fields of it.
        parameters: millions, as the papers give them; None where they give none.
        about: one line for `internvideo list models`.
    """

    build: Callable[[Any], nn.Module]
    config: Any
    parameters: float | None
    about: str
