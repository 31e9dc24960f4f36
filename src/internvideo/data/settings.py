"""Settings under `data` of a recipe: sampling, augmentation, and the data of stages that are trained on clips.

Each stage has its own type of data settings, so that a setting which it does not read is an error; types of a single
task are defined in its package.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from internvideo.data.caption_choice import CaptionChoice
from internvideo.data.loader import LoaderSettings
from internvideo.data.mixup import Mixup
from internvideo.data.preprocessing import Preprocessing
from internvideo.data.rand_augment import RandAugment
from internvideo.data.resize import ResizeBackend
from internvideo.data.sampling import SAMPLERS, FrameSampler
from internvideo.data.transforms import CropKind, EvalTransform, TrainTransform
from internvideo.errors import RecipeError


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error; validators are built at the first use."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class SamplingSettings(Settings):
    """Which frames of a clip are read (data/sampling.py)."""

    kind: str = "sparse"
    frames: int = Field(8, ge=1, le=8192)
    stride: int | None = Field(None, ge=1, description="dense kinds only")
    num_clips: int | None = Field(None, ge=1, le=1000, description="clips per video in testing")

    @field_validator("kind")
    @classmethod
    def _check_kind(cls, kind: str) -> str:
        if kind not in SAMPLERS:
            raise ValueError(f"no sampler '{kind}'; expected: {', '.join(SAMPLERS)}")
        return kind

    def build(self) -> FrameSampler:
        """Build the sampler. Raises RecipeError when a setting does not belong to this kind."""
        given = self.model_dump(exclude={"kind"}, exclude_none=True)
        expected = inspect.signature(SAMPLERS[self.kind]).parameters
        if unused := [f"data.sampling.{name}" for name in given if name not in expected]:
            raise RecipeError(", ".join(unused), f"not of data.sampling.kind '{self.kind}'", ", ".join(expected))
        try:
            return SAMPLERS[self.kind](**given)
        except ValueError as error:
            name, _, found = str(error).partition(" = ")  # samplers name the argument first
            raise RecipeError(f"data.sampling.{name}", found) from error


class EvalAugment(Settings):
    """Resizing of a test clip (data/transforms.py)."""

    size: int = Field(224, ge=8, le=8192)
    resize_backend: ResizeBackend = Field("pil", description="of test clips, see data/resize.py")
    test_resize: int | None = Field(None, ge=8, le=8192, description="short side of test clips before the crop")
    keep_aspect: bool = Field(True, description="false: resize to a square, in testing and before training crops")

    def eval_transform(self, num_crops: int = 1) -> EvalTransform:
        """Return the transform of a test clip."""
        return EvalTransform(self.size, self.test_resize, num_crops, self.resize_backend, self.keep_aspect)


class KeyFrameAugment(EvalAugment):
    """Resizing of clips with boxes, which may be mirrored in training."""

    flip: bool = Field(False, description="leave off where the labels know left from right")


class FrameAugment(KeyFrameAugment):
    """Resizing of whole frames, parts of which may be erased in training."""

    erasing: float = Field(0.0, ge=0.0, le=1.0)


class TrainAugment(FrameAugment):
    """Augmentation of a training clip."""

    crop: CropKind = "random_resized"
    minimum_area: float = Field(0.08, gt=0.0, le=1.0, description="random resized crop: smallest part of the frame")
    aspect: tuple[float, float] = Field((0.75, 4 / 3), description="random resized crop: width over height, from, to")
    rand_augment: str | None = Field(None, description="for example rand-m7-n4-mstd0.5-inc1")
    on_device: bool = Field(
        False, description="augment on the device of the model, from the same draws, not in the loader"
    )

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

    @model_validator(mode="after")
    def _aspect_fits(self) -> Self:
        scales = self.crop not in ("multi_scale", "random_resized") or getattr(self, "use_eval_transform", False)
        if not self.keep_aspect and not scales:
            raise ValueError(f"keep_aspect: the crop '{self.crop}' takes boxes of any aspect: leave keep_aspect out")
        if self.on_device and getattr(self, "use_eval_transform", False):
            raise ValueError("on_device: clips as they are tested are resized in the loader: leave on_device out")
        return self

    def train_transform(self) -> TrainTransform | EvalTransform:
        """Return the augmentation of a training clip."""
        return TrainTransform(
            self.size, self.crop, self.flip, self.rand_augment, self.erasing, (self.minimum_area, 1.0), self.aspect,
            keep_aspect=self.keep_aspect, on_device=self.on_device,
        )  # fmt: skip


class ClipAugment(TrainAugment):
    """Augmentation of a training clip, or none."""

    use_eval_transform: bool = Field(
        False, description="learn from clips as they are tested: resized, center crop, no more"
    )

    def train_transform(self) -> TrainTransform | EvalTransform:
        """Return the augmentation of a training clip, or the transform of a test clip."""
        return self.eval_transform() if self.use_eval_transform else super().train_transform()


class MixAugment(ClipAugment):
    """Augmentation of a training clip, and mixing of labeled batches."""

    mixup: float = Field(0.0, ge=0.0, description="alpha; 0 switches it off")
    cutmix: float = Field(0.0, ge=0.0, description="alpha; 0 switches it off")
    mix_probability: float = Field(1.0, ge=0.0, le=1.0, description="of mixing a batch at all")
    mix_switch: float = Field(0.5, ge=0.0, le=1.0, description="share of cutmix where mixup is on as well")
    mix_smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="label smoothing of mixed targets")

    def mix(self, classes: int) -> Mixup | None:
        """Return the mixing of batches, or None."""
        if self.mixup == 0.0 and self.cutmix == 0.0:
            return None
        return Mixup(classes, self.mixup, self.cutmix, self.mix_probability, self.mix_switch, self.mix_smoothing)


class SourceSettings(Settings):
    """An additional training manifest, whose videos may have another stride (data/mixture.py)."""

    manifest: Path
    split: str | None = Field(None, description="only rows of this split")
    stride: int | None = Field(None, ge=1, description="instead of data.sampling.stride")


class DataSettings(Settings):
    """Data settings of all stages.

    `train` may be missing in a shipped recipe: set it on the command line, `data.train=PATH`.
    """

    train: Path | None = None
    split: str | None = Field(None, description="only rows of this split")
    loader: LoaderSettings


class SampledData(DataSettings):
    """Data settings of stages that train on clips of videos."""

    extra_manifests: dict[str, SourceSettings] = Field(
        default_factory=dict, description="more manifests, by a name of each"
    )
    sampling: SamplingSettings = SamplingSettings()
    augment: EvalAugment = EvalAugment()

    def preprocessing(self) -> Preprocessing:
        """Return the test-time preprocessing, shared by loaders, models and saved weights."""
        return Preprocessing(
            frames=1 if self.loader.single_frame else self.sampling.frames,
            size=self.augment.size,
            sampler=self.sampling.kind,
            resize_backend=self.augment.resize_backend,
            keep_aspect=self.augment.keep_aspect,
            resize=self.augment.test_resize,
            stride=self.sampling.stride,
            sampled_frames=self.sampling.frames,
            short_side=self.loader.short_side,
            single_frame=self.loader.single_frame,
        )


class EvaluationClipData(SampledData):
    """Data settings of tasks that evaluate a model of another stage."""

    loader: LoaderSettings = LoaderSettings(batch_size=1)

    @model_validator(mode="before")
    @classmethod
    def _refuse_training_settings(cls, values: object) -> object:
        if isinstance(values, Mapping):
            given = {name for name in ("train", "split", "extra_manifests") if values.get(name)}
            if isinstance(loader := values.get("loader"), Mapping):
                defaults = asdict(LoaderSettings(batch_size=1))
                for name in loader.keys() - {"batch_size", "short_side", "single_frame"}:
                    value = tuple(loader[name]) if isinstance(loader[name], list) else loader[name]
                    given |= {f"loader.{name}"} if value != defaults.get(name) else set()
            if given:
                raise ValueError(f"'{min(given)}' is of training: a recipe for evaluation does not read it")
        return values


class TrainClipData(SampledData):
    """Data settings of stages that train on augmented clips."""

    augment: TrainAugment = TrainAugment()


class ClipData(TrainClipData):
    """Data settings of stages that train on augmented clips or on clips as they are tested."""

    augment: ClipAugment = ClipAugment()


class LabeledClipData(ClipData):
    """Data settings of stages that train on labeled clips: batches may be mixed."""

    augment: MixAugment = MixAugment()


class CaptionedClipData(ClipData):
    """Data settings of stages that train on clips with captions."""

    captions: CaptionChoice = Field("random", description="which of a video are learned: data/caption_choice.py")


HeadInit = Literal["exact", "match_names", "random"]
