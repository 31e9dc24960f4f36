"""Jobs that learn where hands will be."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from internvideo import distributed
from internvideo.data.loader import Loader
from internvideo.data.settings import FrameAugment, SampledData
from internvideo.data.transforms import EvalTransform, TrainTransform
from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.future_hands.data import OUTPUTS, HandLoader, HandSettings, HandTargets, observed
from internvideo.tasks.future_hands.stage import HandsSettings, HandsStage
from internvideo.training.clip_job import check_clips, training_rows
from internvideo.training.model_setup import init_model, load_init_weights
from internvideo.training.recipe import Job, Recipe, StageSpec


class HandData(SampledData):
    """Clips before a contact, whole frames."""

    augment: FrameAugment = FrameAugment()
    hands: HandSettings = Field(default_factory=HandSettings)


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe; its classes are the names of the outputs.

    Raises:
        RecipeError, ManifestError, VideoError, WeightsError: what does not fit together.
    """
    data, settings = recipe.data_as(HandData), recipe.settings_as(HandsSettings)
    rows, targets = observed(training_rows(recipe), data.hands)
    model = init_model(recipe, len(OUTPUTS), ClipClassifier)
    check_clips(recipe, model)
    head = load_init_weights(model, recipe, OUTPUTS)
    stage = HandsStage(model, settings, distributed.divisor)
    clips = Loader(rows, data.sampling.build(), whole_frame(data.augment)[0], data.loader, skipped=skipped)
    loader = HandLoader(clips, targets, mirror=data.augment.flip, seed=data.loader.seed)
    return Job(recipe, stage, loader, OUTPUTS, rows.fingerprint, {"mean": mean_places(targets)}, head)


def whole_frame(augment: FrameAugment) -> tuple[TrainTransform, EvalTransform]:
    """The transforms of training and testing: the whole frame in a square, so that no hand is cut away."""
    size = augment.size
    train = TrainTransform(size, "center", erasing=augment.erasing, resize=size, keep_aspect=False)
    return train, EvalTransform(size, resize=size, keep_aspect=False)


def mean_places(targets: HandTargets) -> list[float]:
    """The mean of each output in training, in parts of the frame: a guess without looking."""
    visible = (targets.positions != 0).any(axis=-1, keepdims=True)
    shares = targets.positions / targets.size[:, None, None]
    total, count = (shares * visible).sum(axis=0), visible.sum(axis=0).clip(min=1)
    return [float(value) for value in (total / count).reshape(-1)]


STAGE = StageSpec(
    "future_hands",
    "tell where both hands will be, from the clip before (Ego4D)",
    HandsSettings,
    HandData,
    HandsStage,
    (ClipClassifier,),
    build,
    classifiers=("",),
)
