"""What every stage is: a loss on a model."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import nn

from internvideo.objectives.classification import Divisor, at_least_one

Model = TypeVar("Model", bound=nn.Module)
SettingsType = TypeVar("SettingsType")


class Stage(nn.Module, Generic[Model, SettingsType]):
    """Called with a batch and a generator it gives {"loss", what is watched besides}.

    Args:
        model: what learns. settings: of the recipe.
        divisor: what a sum over this process's targets is divided by for the mean over those of all processes.
    """

    def __init__(self, model: Model, settings: SettingsType, divisor: Divisor = at_least_one) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.divisor = divisor
