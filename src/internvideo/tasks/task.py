"""TaskSpec, the entry of a task in `tasks.TASKS`, and the base classes of evaluation options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from internvideo.data.settings import DataSettings
from internvideo.errors import RecipeError
from internvideo.models.entry import ModelEntry
from internvideo.tasks.table import Predictions, Result
from internvideo.training.recipe import StageSpec
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of every task; the text in each `Annotated` is the help of the command line.

    Raises:
        RecipeError: a value out of range.
    """

    batch_size: Annotated[int, "Videos, sequences or episodes per batch."] = 16
    workers: Annotated[int, "Processes that decode; 0 decodes in the main process."] = 0
    device: Annotated[str, "auto, cpu, cuda or cuda:N."] = "auto"

    def __post_init__(self) -> None:
        for name, minimum in (("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < minimum:
                raise RecipeError(name, str(getattr(self, name)), f"{minimum} or more")


@dataclass(frozen=True, kw_only=True)
class ClipOptions(EvaluateOptions):
    """Options of tasks on clips of videos."""

    num_clips: Annotated[int | None, "Clips per video, at different times; by default the recipe's."] = None
    num_crops: Annotated[int, "Spatial crops per clip: 1 or 3."] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_clips is not None and self.num_clips < 1:
            raise RecipeError("num_clips", str(self.num_clips), "1 or more")
        if self.num_crops not in (1, 3):
            raise RecipeError("num_crops", str(self.num_crops), "1 or 3")


@dataclass(frozen=True)
class TaskSpec:
    """A task of `internvideo evaluate`.

    Attributes:
        name: in commands and saved tables. about: one line for `internvideo list tasks`.
        section: section of the paper.
        evaluates: model classes that the task can evaluate.
        options: type of the options of `internvideo evaluate`.
        evaluate: (trained, manifest, output folder, options, split) -> result; writes NAME.npz, NAME.json and further
            files into the folder, and prints the metrics. Raises RecipeError, ManifestError, RunError.
        score: saved predictions -> result, without model or video.
        stages: stages that train models of the task. models: name -> size of models that only this task has.
        data: type of `data` in recipes with `task: NAME`, which evaluate weights of a stage of another task; None if
            there are no such recipes.
    """

    name: str
    about: str
    section: str
    evaluates: tuple[type[nn.Module], ...]
    options: type[EvaluateOptions]
    evaluate: Callable[[Trained, Path, Path, Any, str | None], Result]
    score: Callable[[Predictions], Result]
    stages: tuple[StageSpec, ...] = ()
    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    data: type[DataSettings] | None = None
