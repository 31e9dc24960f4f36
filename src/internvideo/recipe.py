"""Recipe: the typed settings of one training run; read from YAML, changed by `key=value`, saved beside the weights.

The tables of what there is are in `tables.py` and `models/factory.py`.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from internvideo import untrusted
from internvideo.data import sampling
from internvideo.data.caption_choice import CaptionChoice
from internvideo.data.loader import LoaderSettings
from internvideo.data.mixup import Mixup
from internvideo.data.rand_augment import RandAugment
from internvideo.data.resize import Style
from internvideo.data.transforms import CropKind, EvalTransform, TrainTransform
from internvideo.errors import RecipeError, WeightsError, shown
from internvideo.model_table import MODELS
from internvideo.recipe_checks import check_needed, check_numbers, check_read
from internvideo.tables import SAMPLERS, STAGES, TASKS
from internvideo.tasks.grounding.data import QuerySettings
from internvideo.tasks.hands.data import HandSettings
from internvideo.tasks.navigation.world.settings import WorldSettings
from internvideo.tasks.question_answering.data import QuestionSettings
from internvideo.tasks.refinement.data import ProposalSettings
from internvideo.tasks.spatiotemporal.data import KeyFrameSettings
from internvideo.tasks.temporal_localization.data import FeatureSettings
from internvideo.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings

__all__ = ["MODELS", "SAMPLERS", "STAGES", "TASKS", "Recipe", "read_recipe", "shipped_recipes"]


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SamplingSettings(Settings):
    """Which frames of a clip are read (data/sampling.py)."""

    kind: str = "sparse"
    frames: int = Field(8, ge=1, le=8192)
    stride: int | None = Field(None, ge=1, description="dense kinds only")
    views: int | None = Field(None, ge=1, le=1000, description="temporal views in testing")

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in SAMPLERS:
            raise ValueError(f"no sampler '{kind}'; allowed: {', '.join(SAMPLERS)}")
        return kind

    def build(self) -> sampling.FrameSampler:
        """The sampler. Raises RecipeError when a setting does not belong to this kind."""
        given = self.model_dump(exclude={"kind"}, exclude_none=True)
        try:
            return SAMPLERS[self.kind](**given)
        except TypeError as error:
            raise RecipeError("data.sampling", f"'{self.kind}' does not take these settings ({error})") from error
        except ValueError as error:
            raise RecipeError("data.sampling", str(error)) from error


class AugmentSettings(Settings):
    """What is done to every training clip, and how a test clip is resized (data/transforms.py)."""

    size: int = Field(224, ge=8, le=8192)
    crop: CropKind = "random_resized"
    minimum_area: float = Field(0.08, gt=0.0, le=1.0, description="random resized crop: smallest part of the frame")
    aspect: tuple[float, float] = Field((0.75, 4 / 3), description="random resized crop: width over height, from, to")
    flip: bool = Field(False, description="leave off where the labels know left from right")
    rand_augment: str | None = Field(None, description="for example rand-m7-n4-mstd0.5-inc1")
    erasing: float = Field(0.0, ge=0.0, le=1.0)
    mixup: float = Field(0.0, ge=0.0, description="alpha; 0 switches it off")
    cutmix: float = Field(0.0, ge=0.0, description="alpha; 0 switches it off")
    mix_probability: float = Field(1.0, ge=0.0, le=1.0, description="of mixing a batch at all")
    mix_switch: float = Field(0.5, ge=0.0, le=1.0, description="share of cutmix where mixup is on as well")
    mix_smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="label smoothing of mixed targets")
    as_tested: bool = Field(False, description="learn from clips as they are tested: resized, centre crop, no more")
    bicubic: bool = Field(False, description="how test clips are resized, as CLIP does; otherwise bilinear")
    test_style: Style | None = Field(None, description="the same by library (data/resize.py): pil, opencv, torch ...")
    test_resize: int | None = Field(None, ge=8, le=8192, description="short side of test clips before the crop")
    squash: bool = Field(False, description="to a square, whatever the aspect: test clips, and before training's crops")

    @field_validator("rand_augment")
    @classmethod
    def _readable(cls, setting: str | None) -> str | None:
        if setting is not None:
            RandAugment.parse(setting)
        return setting

    @field_validator("aspect")
    @classmethod
    def _ordered(cls, aspect: tuple[float, float]) -> tuple[float, float]:
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"from {aspect[0]} to {aspect[1]}, must be positive and rise")
        return aspect

    @field_validator("test_style", "squash")
    @classmethod
    def _fits(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name == "test_style" and value and info.data.get("bicubic"):
            raise ValueError("bicubic is the test_style pil_bicubic: give one of them")
        of_any_aspect = info.data.get("crop") in ("multi_scale", "random_resized") and not info.data.get("as_tested")
        if info.field_name == "squash" and value and of_any_aspect:
            raise ValueError(f"the crop '{info.data['crop']}' takes boxes of any aspect: leave squash out")
        return value

    @property
    def style(self) -> Style:
        """How test clips are resized."""
        return "pil_bicubic" if self.bicubic else self.test_style or "pil"

    def train_transform(self) -> TrainTransform:
        """Augmentation of a training clip."""
        area = (self.minimum_area, 1.0)
        return TrainTransform(
            self.size, self.crop, self.flip, self.rand_augment, self.erasing, area, self.aspect, squash=self.squash
        )

    def eval_transform(self, crops: int = 1) -> EvalTransform:
        """Resize and crop of a test clip."""
        return EvalTransform(self.size, resize=self.test_resize, crops=crops, style=self.style, squash=self.squash)

    def mix(self, classes: int) -> Mixup | None:
        """Mixing of a batch, or None."""
        if self.mixup == 0.0 and self.cutmix == 0.0:
            return None
        return Mixup(
            classes, self.mixup, self.cutmix, self.mix_probability, self.mix_switch, smoothing=self.mix_smoothing
        )


class SourceSettings(Settings):
    """One more manifest to train on, whose videos may be read at a stride of their own (data/mixture.py)."""

    manifest: Path
    split: str | None = Field(None, description="only rows of this split")
    stride: int | None = Field(None, ge=1, description="instead of data.sampling.stride")


class DataSettings(Settings):
    """What is read.

    `train` may be missing in a shipped recipe: give it on the command line, `data.train=PATH`.
    """

    train: Path | None = None
    split: str | None = Field(None, description="only rows of this split")
    also: dict[str, SourceSettings] = Field(default_factory=dict, description="more manifests, by a name of each")
    images: Path | None = Field(
        None, description="multimodal: captioned images or videos; every second batch is then of single frames"
    )
    image_shards: str | None = Field(
        None, description="multimodal: the same from tar shards: a folder, or an address like s3://x/{00000..00099}.tar"
    )
    shard_index: Path | None = Field(None, description="folder that keeps where what lies in the shards")
    image_batch_size: int | None = Field(None, ge=1, description="of the image batches; that of the videos by default")
    captions: CaptionChoice = Field("random", description="which of a video are learned: data/caption_choice.py")
    sampling: SamplingSettings = SamplingSettings()
    augment: AugmentSettings = AugmentSettings()
    features: FeatureSettings = FeatureSettings()
    proposals: ProposalSettings = ProposalSettings()
    key_frames: KeyFrameSettings = KeyFrameSettings()
    hands: HandSettings = HandSettings()
    questions: QuestionSettings = QuestionSettings()
    queries: QuerySettings = QuerySettings()
    world: WorldSettings = WorldSettings()
    loader: LoaderSettings


HeadChoice = Literal["same", "names", "fresh"]


class ModelSettings(Settings):
    """A name of the table MODELS and what is changed in it."""

    name: str
    overrides: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS:
            near = difflib.get_close_matches(name, MODELS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "; `internvideo list models` names them"
            raise ValueError(f"no model '{shown(name)}'{hint}")
        return name


class Recipe(Settings):
    """One training run, complete: on one kind of machine the same recipe and data give the same weights."""

    about: str = ""
    stage: str
    model: ModelSettings
    init: dict[str, Path] = Field(
        default_factory=dict, description="weights to start from: {weights: FILE}, interaction: {masked:, multimodal:}"
    )
    init_head: HeadChoice = Field(
        "same", description="the head of init.weights: the same classes, its rows found by class names, or a fresh one"
    )
    init_class_map: Path | None = Field(None, description="with init_head: names, which class is which of the file's")
    initial_share: float = Field(
        0.0, ge=0.0, le=1.0, description="weight-space ensemble: share of the initial weights in the result"
    )
    # Made by `_of_the_stage`, of nothing as well: which settings these are is known only with the stage.
    settings: Annotated[SerializeAsAny[BaseModel], Field(validate_default=True)] = Field(
        default_factory=dict  # type: ignore[assignment]  # the validator makes a model of it
    )
    data: DataSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    loop: LoopSettings = LoopSettings()

    @field_validator("stage")
    @classmethod
    def _known(cls, stage: str) -> str:
        if stage not in STAGES:
            raise ValueError(f"no stage '{stage}'; allowed: {', '.join(STAGES)}")
        return stage

    @field_validator("settings", mode="before")
    @classmethod
    def _of_the_stage(cls, value: object, info: ValidationInfo) -> object:
        entry = STAGES.get(info.data.get("stage", ""))
        if entry is None or isinstance(value, entry.settings):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(
                f"must be settings of the stage, {', '.join(entry.settings.model_fields)}, found {value!r}"
            )
        return entry.settings.model_validate({} if value is None else value)

    def resolved(self) -> dict[str, Any]:
        """Plain values of every setting, as they are saved."""
        return self.model_dump(mode="json")


def shipped_recipes() -> dict[str, Path]:
    """Name ("sample/masked") -> file, of the recipes that come with the package."""
    inside = Path(str(resources.files("internvideo"))) / "recipes"
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped one by name, and apply `key.key=value` changes.

    Raises:
        RecipeError: no such recipe, not YAML, a key that is unknown, missing or not read, a value that does not fit.
    """
    path = _find(name)
    try:
        tree = untrusted.read_yaml(path)
    except (OSError, ValueError) as error:
        raise RecipeError(path, f"cannot be read as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(path, f"holds {type(tree).__name__}, not settings", "a mapping with stage, model, data ...")
    for override in overrides:
        apply_override(tree, override)
    recipe = build_recipe(tree, where=path)
    usual = DataSettings(loader=recipe.data.loader).model_dump()
    check_read(recipe.data.model_dump(), usual, recipe.stage, recipe.init_head, path)
    check_needed(recipe.model_dump(), {"data": usual, "loop": LoopSettings().model_dump()}, path)
    return recipe


def build_recipe(tree: Mapping[str, Any], where: object = "recipe") -> Recipe:
    """Recipe from plain values. Raises RecipeError naming every wrong key at once."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(where, "; ".join(_explain(item, tree) for item in error.errors())) from error
    check_numbers(tree, recipe.resolved(), where)
    if recipe.loop.accumulate > 1 and not recipe.data.loader.drop_last:
        found = f"'loop.accumulate' is {recipe.loop.accumulate} and 'data.loader.drop_last' false"
        raise RecipeError(where, f"{found}: a smaller last batch would count as much as the others", "one of them")
    return recipe


def recipe_inside(metadata: Mapping[str, str], where: object) -> Recipe:
    """The recipe that weights carry. Raises WeightsError: none; RecipeError as `build_recipe`."""
    return build_recipe(untrusted.json_in(metadata, "recipe", where, WeightsError, "weights of a run"), where=where)


def _find(name: str | Path) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    near = difflib.get_close_matches(str(name), shipped, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "`internvideo list recipes` names the shipped ones"
    raise RecipeError(name, "no such recipe file", "a YAML file or the name of a shipped recipe", hint)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one "key.key=value" (YAML) in nested settings. Raises RecipeError for anything else."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(override, "is not a change of a setting", "key.key=value")
    try:
        value = untrusted.parse_yaml(text)
    except ValueError as error:
        raise RecipeError(override, f"the value is not YAML: {error}") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 (no dot) as text
        with contextlib.suppress(ValueError):
            value = number if math.isfinite(number := float(value)) else value
    *parents, last, node = *key.split("."), tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError(override, f"'{parent}' holds a value, not settings")
        node = child
    node[last] = value


def _explain(item: Any, tree: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        return f"'{place}' is missing"
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):  # of models, of dataclasses
        name, stage = str(item["loc"][-1]), tree.get("stage")
        near = difflib.get_close_matches(name, _siblings(item["loc"], stage), n=1)
        others = [other for other, entry in STAGES.items() if name in entry.settings.model_fields]
        hint = f", did you mean '{near[0]}'?" if near else ""
        if item["loc"][0] == "settings" and others and not hint:
            hint = f" in the stage '{stage}', it is of {', '.join(others)}"
        return f"no setting '{place}'{hint}"
    message = item["msg"].removeprefix("Value error, ")
    return f"'{place}': {message}" + ("" if item["type"] == "value_error" else f", found {item['input']!r}")


def _siblings(location: Sequence[int | str], stage: object) -> list[str]:
    """Names of the settings that stand beside `location` in a recipe of a stage."""
    kind: Any = Recipe
    for part in location[:-1]:
        if part == "settings":
            return list(STAGES[stage].settings.model_fields) if isinstance(stage, str) and stage in STAGES else []
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = get_type_hints(kind).get(str(part)) if is_dataclass(kind) or _is_model(kind) else None
    if is_dataclass(kind):
        return [field.name for field in fields(kind)]
    return list(kind.model_fields) if _is_model(kind) else []


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def choose_device(name: str) -> torch.device:
    """Device of a name: auto (CUDA where there is one), cpu, cuda or cuda:N. Raises RecipeError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name, re.ASCII)
    if match is None:
        raise RecipeError("--device", f"found '{name}'", "auto, cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise RecipeError("--device", "no CUDA device is available here", "cpu")
    if match[1] is not None and int(match[1]) >= torch.cuda.device_count():
        raise RecipeError("--device", f"found '{name}'", f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return torch.device(name)
