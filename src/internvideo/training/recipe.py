"""Recipes: the typed settings of one training run with the stage that it names, or those of a model that is tested.

What stages and models there are is given from above (`Catalog`): this file knows none of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, PrivateAttr, SerializeAsAny, ValidationInfo, field_validator
from torch import nn

from internvideo.data.settings import DataSettings, HeadInit, Settings
from internvideo.errors import RecipeError, shown
from internvideo.models.entry import ModelEntry
from internvideo.training.loop import BatchSource
from internvideo.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings

VERSION = 4
"""Version of the form of a recipe; `training/earlier_recipes.py` reads the others."""

Some = TypeVar("Some", bound=BaseModel)


@dataclass(frozen=True)
class StageSpec:
    """One stage: what it learns from and with, and what builds it.

    Attributes:
        name: in recipes. about: one line for `internvideo list stages`.
        settings: type of the recipe's `settings`. data: type of its `data`.
        stage: (model, settings, ...) -> module whose call with a batch and a generator gives {"loss": ...}.
        models: classes of the models that it trains.
        build: makes the job of a recipe; unreadable videos are named in the file `skipped`. Raises RecipeError,
            ManifestError, WeightsError.
        classifiers: parts of the model that have one output per class ("" is the model itself); they get the number
            of classes of the data in their setting `outputs`.
    """

    name: str
    about: str
    settings: type[BaseModel]
    data: type[DataSettings]
    stage: type[nn.Module]
    models: tuple[type[nn.Module], ...]
    build: Callable[[Recipe, Path | None], Job]
    classifiers: tuple[str, ...] = ()
    outputs: str = "num_classes"


@dataclass(frozen=True)
class Catalog:
    """What a recipe can name: stages, models, and the data of tasks that recipes for evaluation are of."""

    stages: Mapping[str, StageSpec]
    models: Mapping[str, ModelEntry]
    tasks: Mapping[str, type[DataSettings]] = field(default_factory=dict)


class ModelSettings(Settings):
    """A named model and what is changed in it."""

    name: str
    overrides: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        models = catalog_of(info).models
        if name not in models:
            near = difflib.get_close_matches(name, models, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "; `internvideo list models` names them"
            raise ValueError(f"no model '{shown(name)}'{hint}")
        return name


def catalog_of(info: ValidationInfo) -> Catalog:
    """The catalog that a recipe is read with."""
    if not isinstance(info.context, Catalog):
        raise TypeError("a recipe is built by internvideo.recipe.build_recipe")
    return info.context


class EvaluationRecipe(Settings):
    """A model and how its clips are made in testing: what using it needs, and nothing about training.

    It is of a `stage`, whose models and data it has, or of a `task` that is evaluated with weights of other stages.
    """

    version: int = VERSION
    about: str = ""
    stage: str = ""
    task: str = ""
    model: ModelSettings
    # Made by `_of_the_stage`, of nothing as well: which settings these are is known only with the stage.
    settings: Annotated[SerializeAsAny[BaseModel], Field(validate_default=True)] = Field(
        default_factory=dict  # type: ignore[assignment]  # the validator makes a model of it
    )
    data: Annotated[SerializeAsAny[DataSettings], Field(validate_default=True)] = Field(
        default_factory=dict  # type: ignore[assignment]  # the validator makes a model of it
    )
    _catalog: Catalog = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Keep the catalog."""
        self._catalog = context

    @field_validator("version")
    @classmethod
    def _readable(cls, version: int) -> int:
        if version != VERSION:
            raise ValueError(f"{version}, this internvideo reads recipes up to version {VERSION}: update it")
        return version

    @field_validator("stage")
    @classmethod
    def _known_stage(cls, stage: str, info: ValidationInfo) -> str:
        stages = catalog_of(info).stages
        if stage not in stages:
            raise ValueError(f"no stage '{stage}'; expected: {', '.join(stages)}")
        return stage

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str, info: ValidationInfo) -> str:
        tasks = catalog_of(info).tasks
        if (task or not info.data.get("stage")) and (task not in tasks or info.data.get("stage")):
            raise ValueError(f"'{task}'; expected: {', '.join(tasks)}, without a stage")
        return task

    @field_validator("settings", "data", mode="before")
    @classmethod
    def _of_the_stage(cls, value: object, info: ValidationInfo) -> object:
        catalog = catalog_of(info)
        spec, task = catalog.stages.get(info.data.get("stage", "")), info.data.get("task", "")
        if spec is None and task not in catalog.tasks:
            return value
        if info.field_name == "settings":
            kind: type[BaseModel] = Settings if spec is None else spec.settings
        else:
            kind = catalog.tasks[task] if spec is None else spec.data
        if isinstance(value, kind):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"must be settings of the stage, {', '.join(kind.model_fields)}, found {value!r}")
        return kind.model_validate({} if value is None else value, context=info.context)

    @property
    def catalog(self) -> Catalog:
        """What it could name."""
        return self._catalog

    def data_as(self, kind: type[Some]) -> Some:
        """`data` of a stage that reads this kind. Raises RecipeError for another stage."""
        return self._checked(self.data, kind)

    def settings_as(self, kind: type[Some]) -> Some:
        """`settings` of a stage that has this kind. Raises RecipeError for another stage."""
        return self._checked(self.settings, kind)

    def _checked(self, value: BaseModel, kind: type[Some]) -> Some:
        if isinstance(value, kind):
            return value
        fields = ("settings", "data")
        fitting = [
            name
            for name, spec in self._catalog.stages.items()
            if any(issubclass(getattr(spec, field), kind) for field in fields)
        ]
        found = f"the weights or the recipe are of the {'stage' if self.stage else 'task'} '{self.stage or self.task}'"
        raise RecipeError("stage", found, ", ".join(fitting))

    def resolved(self) -> dict[str, Any]:
        """Plain values of every setting, as they are saved."""
        return self.model_dump(mode="json", exclude={"task" if self.stage else "stage"})


class Recipe(EvaluationRecipe):
    """One training run, complete: on one kind of machine the same recipe and data give the same weights."""

    stage: str
    init: dict[str, Path] = Field(
        default_factory=dict, description="weights to start from: {weights: FILE}, interaction: {masked:, multimodal:}"
    )
    init_head: HeadInit = Field(
        "exact",
        description="the head of init.weights: the same classes, its rows matched by class name, or a random one",
    )
    init_class_map: Path | None = Field(
        None, description="with init_head: match_names, which class is which of the file's"
    )
    base_weight: float = Field(
        0.0, ge=0.0, le=1.0, description="weight-space ensemble: share of the initial weights in the result"
    )
    data: SerializeAsAny[DataSettings]
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    loop: LoopSettings = LoopSettings()

    @property
    def spec(self) -> StageSpec:
        """Its stage."""
        return self.catalog.stages[self.stage]

    def for_evaluation(self, overrides: Mapping[str, Any]) -> EvaluationRecipe:
        """What using the model needs; the training data, and how they are read, stay behind.

        Args:
            overrides: settings of the model as it was built, with its number of classes.
        """
        data = self.data.model_dump(mode="json", exclude=set(TRAINING_DATA))
        loader = {name: data["loader"][name] for name in ("short_side", "single_frame")}
        tree = {
            **self.model_dump(mode="json", include={"version", "about", "stage", "settings"}),
            "model": {"name": self.model.name, "overrides": overrides},
            "data": {**data, "loader": {"batch_size": 1, **loader}},
        }
        return EvaluationRecipe.model_validate(tree, context=self.catalog)


TRAINING_DATA = (
    "train",
    "split",
    "extra_manifests",
    "image_manifest",
    "image_shards",
    "shard_index",
    "image_batch_size",
)
"""Settings below `data` of what is learned from."""


@dataclass(frozen=True)
class Job:
    """A recipe with everything that it names built; `fingerprint` is that of the training rows and their classes.

    `context` is what else must be known to use the model later, and is kept beside its weights: how the features were
    made that a detector learned from, the words of an instruction. It must be ready for JSON. `head` tells where the
    classification head comes from, where the recipe says something of it. `facts` are fingerprints of what else is
    learned from: a run is resumed only where they are the same.
    """

    recipe: Recipe
    stage: nn.Module
    loader: BatchSource
    classes: tuple[str, ...]
    fingerprint: str
    context: Mapping[str, Any] = field(default_factory=dict)
    head: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model that the stage trains."""
        model = self.stage.model
        if not isinstance(model, nn.Module):
            raise TypeError(f"{type(self.stage).__name__}.model is no module")
        return model
