"""Jobs that learn where hands will be."""

from __future__ import annotations

from pathlib import Path

from internvideo import distributed
from internvideo.data.loader import Loader
from internvideo.data.transforms import EvalTransform, TrainTransform
from internvideo.errors import RecipeError
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.pretraining.build import training_rows
from internvideo.recipe import STAGES, AugmentSettings, Recipe
from internvideo.tasks.hands.data import OUTPUTS, HandLoader, HandTargets, observed
from internvideo.training.build import Job, draw_model, start_model


def prepare(recipe: Recipe, *, skipped: Path | None) -> Job:
    """Rows, loader, model and stage; the classes of the job are the names of the outputs.

    Raises:
        RecipeError, ManifestError, VideoError, WeightsError: what does not fit together.
    """
    data = recipe.data
    rows, targets = observed(training_rows(recipe), data.hands)
    model = draw_model(recipe, len(OUTPUTS))
    if not isinstance(model, VideoMAEClassifier | UniFormerV2):
        raise TypeError(f"the stage hands trains a {type(model).__name__}")
    _check(recipe, model)
    head = start_model(model, recipe, OUTPUTS)
    stage = STAGES[recipe.stage].stage(model, recipe.settings, distributed.divisor)
    clips = Loader(
        rows,
        data.sampling.build(),
        whole_frame(data.augment)[0],
        data.loader,
        skipped=skipped,
    )
    loader = HandLoader(clips, targets, mirror=data.augment.flip, seed=data.loader.seed)
    return Job(recipe, stage, loader, OUTPUTS, rows.fingerprint, {"mean": mean_places(targets)}, head)


def whole_frame(augment: AugmentSettings) -> tuple[TrainTransform, EvalTransform]:
    """The transforms of training and testing: the whole frame in a square, so that no hand is cut away."""
    size = augment.size
    train = TrainTransform(size, "centre", erasing=augment.erasing, resize=size, squash=True)
    return train, EvalTransform(size, resize=size, squash=True)


def mean_places(targets: HandTargets) -> list[float]:
    """The mean of each output in training, in parts of the frame: a guess without looking."""
    visible = (targets.positions != 0).any(axis=-1, keepdims=True)
    shares = targets.positions / targets.size[:, None, None]
    total, count = (shares * visible).sum(axis=0), visible.sum(axis=0).clip(min=1)
    return [float(value) for value in (total / count).reshape(-1)]


def _check(recipe: Recipe, model: VideoMAEClassifier | UniFormerV2) -> None:
    data, config = recipe.data, model.config
    if data.augment.size != config.image_size:
        raise RecipeError(
            "data.augment.size", str(data.augment.size), f"{config.image_size}, model.overrides.image_size"
        )
    if isinstance(model, VideoMAEClassifier) and data.sampling.frames != config.frames:
        raise RecipeError("data.sampling.frames", str(data.sampling.frames), f"{config.frames}, model.overrides.frames")
    for name, value, plain in (
        ("crop", data.augment.crop, "centre"),
        ("rand_augment", data.augment.rand_augment, None),
        ("mixup", data.augment.mixup, 0.0),
        ("cutmix", data.augment.cutmix, 0.0),
    ):
        if value != plain:
            raise RecipeError(f"data.augment.{name}", f"{value}, but positions are of the whole frame", str(plain))
