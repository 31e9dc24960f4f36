"""Build training jobs of future hand prediction."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from internvideo import distributed
from internvideo.data.loader import Loader
from internvideo.data.settings import FrameAugment, SampledData
from internvideo.data.transforms import EvalTransform, TrainTransform
from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.future_hands.data import OUTPUTS, HandLoader, HandSettings, HandTargets, make_rows_and_targets
from internvideo.tasks.future_hands.stage import HandsSettings, HandsStage
from internvideo.training.clip_job import check_clips, read_training_rows
from internvideo.training.model_setup import init_model, load_init_weights
from internvideo.training.recipe import Job, Recipe, StageSpec


class HandData(SampledData):
    """Data settings: clips of whole frames before a contact."""

    augment: FrameAugment = FrameAugment()
    hands: HandSettings = Field(default_factory=HandSettings)


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe; its classes are the names of the outputs.

    Raises RecipeError, ManifestError, VideoError, WeightsError.
    """
    data, settings = recipe.data_as(HandData), recipe.settings_as(HandsSettings)
    rows, targets = make_rows_and_targets(read_training_rows(recipe), data.hands)
    model = init_model(recipe, len(OUTPUTS), ClipClassifier)
    check_clips(recipe, model)
    head_init_lines = load_init_weights(model, recipe, OUTPUTS)
    stage = HandsStage(model, settings, distributed.divisor)
    clips = Loader(rows, data.sampling.build(), whole_frame_transforms(data.augment)[0], data.loader, skipped=skipped)
    loader = HandLoader(clips, targets, hflip=data.augment.flip, seed=data.loader.seed)
    return Job(recipe, stage, loader, OUTPUTS, rows.fingerprint, {"mean": mean_positions(targets)}, head_init_lines)


def whole_frame_transforms(augment: FrameAugment) -> tuple[TrainTransform, EvalTransform]:
    """Return the training and test transforms: the whole frame is resized to a square, so that no hand is cropped."""
    size = augment.size
    train = TrainTransform(size, "center", erasing=augment.erasing, resize=size, keep_aspect=False)
    return train, EvalTransform(size, resize=size, keep_aspect=False)


def mean_positions(targets: HandTargets) -> list[float]:
    """Return the mean of each output over the training rows, as fractions of the frame: the prior baseline."""
    visible = (targets.positions != 0).any(axis=-1, keepdims=True)
    fractions = targets.positions / targets.size[:, None, None]
    mean = (fractions * visible).sum(axis=0) / visible.sum(axis=0).clip(min=1)
    return [float(value) for value in mean.reshape(-1)]


STAGE = StageSpec(
    name="future_hands",
    about="predict the positions of both hands from the clip before the contact (Ego4D)",
    settings=HandsSettings,
    data=HandData,
    stage=HandsStage,
    models=(ClipClassifier,),
    build=build,
    classifier_paths=("",),
)
