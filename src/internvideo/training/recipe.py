"""Recipes: typed settings of a training run of one stage, or of the evaluation of a model.

The available stages and models are passed in as a `Catalog`; this module imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, Field, PrivateAttr, SerializeAsAny, ValidationInfo, field_validator
from torch import nn

from internvideo.data.settings import DataSettings, HeadInit, Settings
from internvideo.errors import RecipeError, shown, suggestion
from internvideo.models.entry import ModelEntry
from internvideo.objectives.classification import Divisor, at_least_one
from internvideo.training.loop import BatchSource
from internvideo.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings

VERSION = 4
"""Version of the recipe format; `training/earlier_recipes.py` upgrades earlier ones."""

Some = TypeVar("Some", bound=BaseModel)
Model = TypeVar("Model", bound=nn.Module)
SettingsType = TypeVar("SettingsType")


class Stage(nn.Module, Generic[Model, SettingsType]):
    """A loss on a model: (batch, generator) -> {"loss", other values to log}.

    Args:
        model: the trained model. settings: of the recipe.
        divisor: maps this process's number of targets to the divisor of its sum of losses (mean over all processes).
    """

    def __init__(self, model: Model, settings: SettingsType, divisor: Divisor = at_least_one) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.divisor = divisor


@dataclass(frozen=True)
class StageSpec:
    """A training stage: types of its data and settings, and its builder.

    Attributes:
        name: in recipes. about: one line for `internvideo list stages`.
        settings: type of the recipe's `settings`. data: type of its `data`.
        stage: its class, which may take more arguments than `Stage`.
        models: model classes that it trains.
        build: builds the job of a recipe and lists unreadable videos in the file `skipped`. Raises RecipeError,
            ManifestError, WeightsError.
        classifiers: parts of the model that have one output per class ("" is the model itself); they get the number
            of classes of the data in their setting `outputs`.
    """

    name: str
    about: str
    settings: type[BaseModel]
    data: type[DataSettings]
    stage: type[Stage[Any, Any]]
    models: tuple[type[nn.Module], ...]
    build: Callable[[Recipe, Path | None], Job]
    classifiers: tuple[str, ...] = ()
    outputs: str = "num_classes"


@dataclass(frozen=True)
class Catalog:
    """Names available to recipes: stages, models, and data types of tasks (recipes for evaluation)."""

    stages: Mapping[str, StageSpec]
    models: Mapping[str, ModelEntry]
    tasks: Mapping[str, type[DataSettings]] = field(default_factory=dict)


class ModelSettings(Settings):
    """A named model with overridden settings."""

    name: str
    overrides: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        models = catalog_of(info).models
        if name not in models:
            hint = suggestion(name, models) or "`internvideo list models` lists them"
            raise ValueError(f"no model '{shown(name)}'; {hint}")
        return name


def catalog_of(info: ValidationInfo) -> Catalog:
    """Return the catalog from the validation context."""
    if not isinstance(info.context, Catalog):
        raise TypeError("a recipe is built by internvideo.recipe.build_recipe")
    return info.context


class EvaluationRecipe(Settings):
    """A model and its test-time preprocessing, without training settings.

    It has a `stage`, which defines models and data, or a `task` that is evaluated with weights of other stages.
    """

    version: int = VERSION
    about: str = ""
    stage: str = ""
    task: str = ""
    model: ModelSettings
    # Built by `_settings_of_the_stage` and `_data_of_the_stage`, also from an empty mapping: the stage has their types.
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

    # One validator a field: pydantic 2.12.0 tells no `info.field_name` where a default is validated.
    @field_validator("settings", mode="before")
    @classmethod
    def _settings_of_the_stage(cls, value: object, info: ValidationInfo) -> object:
        spec, task = cls._spec_and_task(info)
        if spec is None and task is None:
            return value
        return cls._built(value, Settings if spec is None else spec.settings, info)

    @field_validator("data", mode="before")
    @classmethod
    def _data_of_the_stage(cls, value: object, info: ValidationInfo) -> object:
        spec, task = cls._spec_and_task(info)
        kind = task if spec is None else spec.data
        return value if kind is None else cls._built(value, kind, info)

    @staticmethod
    def _spec_and_task(info: ValidationInfo) -> tuple[StageSpec | None, type[DataSettings] | None]:
        """Return what the catalog has under the recipe's stage and under its task."""
        catalog = catalog_of(info)
        return catalog.stages.get(info.data.get("stage", "")), catalog.tasks.get(info.data.get("task", ""))

    @staticmethod
    def _built(value: object, kind: type[BaseModel], info: ValidationInfo) -> object:
        if isinstance(value, kind):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"must be settings of the stage, {', '.join(kind.model_fields)}, found {value!r}")
        return kind.model_validate({} if value is None else value, context=info.context)

    @property
    def catalog(self) -> Catalog:
        """The catalog of names it was read with."""
        return self._catalog

    def data_as(self, kind: type[Some]) -> Some:
        """Return `data` with its type checked. Raises RecipeError for a stage with another type of data."""
        return self._checked(self.data, kind)

    def settings_as(self, kind: type[Some]) -> Some:
        """Return `settings` with its type checked. Raises RecipeError for a stage with other settings."""
        return self._checked(self.settings, kind)

    def _checked(self, value: BaseModel, kind: type[Some]) -> Some:
        if isinstance(value, kind):
            return value
        stages = self._catalog.stages.values()
        fitting = [spec.name for spec in stages if issubclass(spec.settings, kind) or issubclass(spec.data, kind)]
        found = f"the weights or the recipe are of the {'stage' if self.stage else 'task'} '{self.stage or self.task}'"
        raise RecipeError("stage", found, ", ".join(fitting))

    def resolved(self) -> dict[str, Any]:
        """Return all settings as plain values, in their saved form."""
        return self.model_dump(mode="json", exclude={"task" if self.stage else "stage"})


class Recipe(EvaluationRecipe):
    """All settings of a training run: on one kind of machine the same recipe and data give the same weights."""

    stage: str
    init: dict[str, Path] = Field(
        default_factory=dict, description="weights to start from: {weights: FILE}, interaction: {masked:, multimodal:}"
    )
    init_head: HeadInit = Field(
        "exact",
        description="the head of init.weights: the same classes, its rows matched by class name, or a random one",
    )
    init_class_map: Path | None = Field(None, description="with init_head: match_names, maps classes to the file's")
    base_weight: float = Field(
        0.0, ge=0.0, le=1.0, description="weight-space ensemble: weight of the initial weights in the result"
    )
    data: SerializeAsAny[DataSettings]
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    loop: LoopSettings = LoopSettings()

    @property
    def spec(self) -> StageSpec:
        """The stage."""
        return self.catalog.stages[self.stage]

    def for_evaluation(self, overrides: Mapping[str, Any]) -> EvaluationRecipe:
        """Return the recipe for evaluation, without training data and their reading.

        Args:
            overrides: settings of the built model, including the number of classes.
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
    *("train", "split", "extra_manifests"),
    *("image_manifest", "image_shards", "shard_index", "image_batch_size"),
)
"""Settings below `data` that name training data."""


@dataclass(frozen=True)
class Job:
    """A recipe with the objects built from it.

    Attributes:
        fingerprint: of the training rows and their classes.
        context: further data needed to use the model, saved with its weights as JSON: provenance of a detector's
            features, the vocabulary of instructions.
        head: source of the classification head, if the recipe names one.
        facts: fingerprints of other training data; a run resumes only if they are unchanged.
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
        return self.stage.get_submodule("model")
