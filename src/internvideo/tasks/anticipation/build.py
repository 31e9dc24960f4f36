"""Build training jobs of short-term anticipation: the next verb and the time to contact per object box."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from internvideo import distributed
from internvideo.errors import ManifestError, RecipeError
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.anticipation.stage import AnticipationSettings, AnticipationStage
from internvideo.tasks.spatio_temporal_localization.build import KeyFrameData, clip_form
from internvideo.tasks.spatio_temporal_localization.data import ClipForm, KeyFrame, KeyFrameLoader
from internvideo.tasks.spatio_temporal_localization.object_boxes import (
    class_list,
    learned,
    object_frames,
    of_frame,
    read_detections,
)
from internvideo.training.clip_job import check_clips, training_rows
from internvideo.training.model_setup import init_model, load_init_weights
from internvideo.training.recipe import Job, Recipe, StageSpec


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job; its classes are the verbs. Raises RecipeError, ManifestError, VideoError, WeightsError."""
    data, settings = recipe.data_as(KeyFrameData), recipe.settings_as(AnticipationSettings)
    manifest = training_rows(recipe)
    verbs = class_list(manifest.root / "verbs.txt", "the verbs, one per line")
    detections = None if data.key_frames.candidates is None else read_detections(data.key_frames.candidates)
    frames = [
        learned(frame, None if detections is None else of_frame(frame, detections), background=len(verbs))
        for frame in object_frames(manifest)
    ]
    prior = training_prior(frames, len(verbs), manifest.source)
    model = init_model(recipe, len(verbs), Anticipator)
    if data.augment.flip:
        raise RecipeError("data.augment.flip", "true, but verbs may know left from right", "false")
    check_clips(recipe, model)
    head = load_init_weights(model, recipe, verbs)
    stage = AnticipationStage(model, settings, distributed.divisor)
    boxed = [frame for frame in frames if len(frame.boxes)]
    loader = KeyFrameLoader(manifest, contact_form(data), data.loader, skipped=skipped, frames=boxed)
    context = {"nouns": manifest.classes, "guess": prior}
    return Job(recipe, stage, loader, verbs, manifest.fingerprint, context, head)


def contact_form(data: KeyFrameData) -> ClipForm:
    """Return how clips that end at a key frame are cut."""
    return replace(clip_form(data, 0), before=True)


def training_prior(frames: list[KeyFrame], verbs: int, source: Path) -> list[float]:
    """Return the prior baseline of the training frames: most frequent verb (index) and mean time to contact (s).

    Raises:
        ManifestError: no object with verb and time, or a verb or time out of range.
    """
    targets = np.concatenate([frame.targets for frame in frames if frame.targets is not None])
    targets = targets[np.isfinite(targets).all(axis=1)]
    if not len(targets) or targets[:, 0].max() >= verbs or targets.min() < 0:
        found = f"{len(targets)} objects with verb and time to contact"
        raise ManifestError(source, found, f"verbs 0 to {verbs - 1}, times from 0")
    return [float(np.bincount(targets[:, 0].astype(np.int64)).argmax()), float(targets[:, 1].mean())]


STAGE = StageSpec(
    "anticipation",
    "predict what will be done to objects in boxes, and when (Ego4D)",
    AnticipationSettings,
    KeyFrameData,
    AnticipationStage,
    (Anticipator,),
    build,
    classifiers=("",),
)
