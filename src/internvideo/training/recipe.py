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
from internvideo.models.factory import present_settings
from internvideo.objectives.classification import Divisor, at_least_one
from internvideo.training.loop import BatchSource
from internvideo.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings

VERSION = 4
"""Version of the recipe format; `training/earlier_recipes.py` upgrades earlier ones."""

SettingsT = TypeVar("SettingsT", bound=BaseModel)
ModelT = TypeVar("ModelT", bound=nn.Module)
StageSettingsT = TypeVar("StageSettingsT")


class Stage(nn.Module, Generic[ModelT, StageSettingsT]):
    """A training objective with its model: (batch, generator) -> {"loss": scalar, other scalars to log}.

    Args:
        model: the model to train. settings: `settings` of the recipe.
        divisor: maps the number of targets of this process to the divisor of the sum of their losses, so that the sum
            over the processes is the mean over all targets.
    """

    def __init__(self, model: ModelT, settings: StageSettingsT, divisor: Divisor = at_least_one) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.divisor = divisor


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """A training stage: types of its data and settings, and its builder.

    Attributes:
        name: in recipes. about: one line for `internvideo list stages`.
        settings: type of the recipe's `settings`. data: type of its `data`.
        stage: subclass of `Stage`, whose constructor may have more arguments.
        models: model classes that the stage can train.
        build: (recipe, file that lists unreadable videos) -> job. Raises RecipeError, ManifestError, WeightsError.
        classifier_paths: submodules with one output per class ("" for the model itself), by the path of their settings
            in `model.overrides`.
        num_classes_key: setting of these that takes the number of classes of the data.
    """

    name: str
    about: str
    settings: type[BaseModel]
    data: type[DataSettings]
    stage: type[Stage[Any, Any]]
    models: tuple[type[nn.Module], ...]
    build: Callable[[Recipe, Path | None], Job]
    classifier_paths: tuple[str, ...] = ()
    num_classes_key: str = "num_classes"


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

    @field_validator("overrides")
    @classmethod
    def _rename_settings(cls, overrides: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        entry = catalog_of(info).models.get(info.data.get("name", ""))
        return overrides if entry is None else present_settings(entry.config, overrides)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str, info: ValidationInfo) -> str:
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

    It has either a `stage`, whose types of settings and data it uses, or a `task` that evaluates weights of a stage.
    """

    version: int = VERSION
    about: str = ""
    stage: str = ""
    task: str = ""
    model: ModelSettings
    # Parsed by `_parse_settings` and `_parse_data`, also from an empty mapping: their types depend on the stage.
    settings: Annotated[SerializeAsAny[BaseModel], Field(validate_default=True)] = Field(
        default_factory=dict  # type: ignore[assignment]  # the validator parses it
    )
    data: Annotated[SerializeAsAny[DataSettings], Field(validate_default=True)] = Field(
        default_factory=dict  # type: ignore[assignment]  # the validator parses it
    )
    _catalog: Catalog = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Store the catalog of the validation context."""
        self._catalog = context

    @field_validator("version")
    @classmethod
    def _check_version(cls, version: int) -> int:
        if version != VERSION:
            raise ValueError(f"{version}, this internvideo reads recipes up to version {VERSION}: update internvideo")
        return version

    @field_validator("stage")
    @classmethod
    def _check_stage(cls, stage: str, info: ValidationInfo) -> str:
        stages = catalog_of(info).stages
        if stage not in stages:
            raise ValueError(f"no stage '{stage}'; expected: {', '.join(stages)}")
        return stage

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str, info: ValidationInfo) -> str:
        tasks = catalog_of(info).tasks
        if (task or not info.data.get("stage")) and (task not in tasks or info.data.get("stage")):
            raise ValueError(f"'{task}'; expected: {', '.join(tasks)}, without a stage")
        return task

    # One validator per field: pydantic 2.12.0 has no `info.field_name` when it validates a default.
    @field_validator("settings", mode="before")
    @classmethod
    def _parse_settings(cls, value: object, info: ValidationInfo) -> object:
        spec, task = cls._spec_and_task(info)
        if spec is None and task is None:
            return value
        return cls._build(value, Settings if spec is None else spec.settings, info)

    @field_validator("data", mode="before")
    @classmethod
    def _parse_data(cls, value: object, info: ValidationInfo) -> object:
        spec, task = cls._spec_and_task(info)
        kind = task if spec is None else spec.data
        return value if kind is None else cls._build(value, kind, info)

    @staticmethod
    def _spec_and_task(info: ValidationInfo) -> tuple[StageSpec | None, type[DataSettings] | None]:
        """Return what the catalog has under the recipe's stage and under its task."""
        catalog = catalog_of(info)
        return catalog.stages.get(info.data.get("stage", "")), catalog.tasks.get(info.data.get("task", ""))

    @staticmethod
    def _build(value: object, kind: type[BaseModel], info: ValidationInfo) -> object:
        if isinstance(value, kind):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"must be settings of the stage, {', '.join(kind.model_fields)}, found {value!r}")
        return kind.model_validate({} if value is None else value, context=info.context)

    @property
    def catalog(self) -> Catalog:
        """The catalog that the recipe was read with."""
        return self._catalog

    def data_as(self, kind: type[SettingsT]) -> SettingsT:
        """Return `data` with its type checked. Raises RecipeError for a stage with another type of data."""
        return self._cast_settings(self.data, kind)

    def settings_as(self, kind: type[SettingsT]) -> SettingsT:
        """Return `settings` with its type checked. Raises RecipeError for a stage with other settings."""
        return self._cast_settings(self.settings, kind)

    def _cast_settings(self, value: BaseModel, kind: type[SettingsT]) -> SettingsT:
        if isinstance(value, kind):
            return value
        stages = self._catalog.stages.values()
        matching = [spec.name for spec in stages if issubclass(spec.settings, kind) or issubclass(spec.data, kind)]
        found = f"the weights or the recipe are of the {'stage' if self.stage else 'task'} '{self.stage or self.task}'"
        raise RecipeError("stage", found, ", ".join(matching))

    def resolved(self) -> dict[str, Any]:
        """Return all settings, defaults included, as JSON values in the form that is saved."""
        return self.model_dump(mode="json", exclude={"task" if self.stage else "stage"})


class Recipe(EvaluationRecipe):
    """All settings of a training run: on one kind of machine the same recipe and data give the same weights."""

    stage: str
    init: dict[str, Path] = Field(
        default_factory=dict, description="weights to start from: {weights: FILE}, interaction: {masked:, multimodal:}"
    )
    init_head: HeadInit = Field(
        "exact",
        description="exact: take the head of init.weights, whose classes must be the same; match_names: take its rows "
        "of the classes with equal names; random: initialize a new head",
    )
    init_class_map: Path | None = Field(
        None, description="with init_head: match_names, file that maps class names to those of init.weights"
    )
    base_weight: float = Field(
        0.0, ge=0.0, le=1.0, description="weight-space ensemble (WiSE-FT): saves base_weight * initial weights + "
        "(1 - base_weight) * trained weights"
    )  # fmt: skip
    data: SerializeAsAny[DataSettings]
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    loop: LoopSettings = LoopSettings()

    @property
    def spec(self) -> StageSpec:
        """The specification of the recipe's stage."""
        return self.catalog.stages[self.stage]

    def for_evaluation(self, overrides: Mapping[str, Any]) -> EvaluationRecipe:
        """Return the recipe for evaluation, without training manifests and loader settings of training.

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
        extra_metadata: further JSON data that using the model needs, such as the vocabulary of instructions; saved with
            its weights under the key `context`.
        head_init_lines: log lines that describe how the classification head was initialized.
        data_fingerprints: name -> fingerprint of further training data; a run resumes only if they are unchanged.
    """

    recipe: Recipe
    stage: nn.Module
    loader: BatchSource
    classes: tuple[str, ...]
    fingerprint: str
    extra_metadata: Mapping[str, Any] = field(default_factory=dict)
    head_init_lines: tuple[str, ...] = ()
    data_fingerprints: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model that the stage trains."""
        return self.stage.get_submodule("model")
