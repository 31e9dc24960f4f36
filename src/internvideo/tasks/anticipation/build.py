"""Build training jobs of short-term anticipation: the next verb and the time to contact per object box."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from internvideo import distributed
from internvideo.errors import ManifestError, RecipeError
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.anticipation.stage import AnticipationSettings, AnticipationStage
from internvideo.tasks.spatio_temporal_localization.build import KeyFrameData, make_clip_settings
from internvideo.tasks.spatio_temporal_localization.data import KeyFrame, KeyFrameClipSettings, KeyFrameLoader
from internvideo.tasks.spatio_temporal_localization.object_boxes import (
    detections_of,
    object_frames,
    read_class_list,
    read_detections,
    with_training_targets,
)
from internvideo.training.clip_job import check_clips, read_training_rows
from internvideo.training.model_setup import init_model, load_init_weights
from internvideo.training.recipe import Job, Recipe, StageSpec


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job; its classes are the verbs. Raises RecipeError, ManifestError, VideoError, WeightsError."""
    data, settings = recipe.data_as(KeyFrameData), recipe.settings_as(AnticipationSettings)
    manifest = read_training_rows(recipe)
    verbs = read_class_list(manifest.root / "verbs.txt", "the verbs, one per line")
    detections = None if data.key_frames.candidates is None else read_detections(data.key_frames.candidates)
    frames = [
        with_training_targets(
            frame, None if detections is None else detections_of(frame, detections), background=len(verbs)
        )
        for frame in object_frames(manifest)
    ]
    prior = training_prior(frames, len(verbs), manifest.source)
    model = init_model(recipe, len(verbs), Anticipator)
    if data.augment.flip:
        raise RecipeError("data.augment.flip", "true, but verbs may distinguish left from right", "false")
    check_clips(recipe, model)
    head_init_lines = load_init_weights(model, recipe, verbs)
    stage = AnticipationStage(model, settings, distributed.divisor)
    frames_with_boxes = [frame for frame in frames if len(frame.boxes)]
    loader = KeyFrameLoader(
        manifest, contact_clip_settings(data), data.loader, skipped=skipped, frames=frames_with_boxes
    )
    extra_metadata = {"nouns": manifest.classes, "guess": prior}
    return Job(recipe, stage, loader, verbs, manifest.fingerprint, extra_metadata, head_init_lines)


def contact_clip_settings(data: KeyFrameData) -> KeyFrameClipSettings:
    """Return the settings of clips that end at the key frame."""
    return replace(make_clip_settings(data, 0), ends_at_key_frame=True)


def training_prior(frames: list[KeyFrame], num_verbs: int, source: Path) -> list[float]:
    """Compute the prior baseline: [index of the most frequent verb, mean time to contact in seconds].

    Raises:
        ManifestError: no object has a verb and a time, or one is out of range.
    """
    targets = np.concatenate([frame.targets for frame in frames if frame.targets is not None])
    targets = targets[np.isfinite(targets).all(axis=1)]
    if not len(targets) or targets[:, 0].max() >= num_verbs or targets.min() < 0:
        found = f"{len(targets)} objects with verb and time to contact"
        raise ManifestError(source, found, f"verbs 0 to {num_verbs - 1}, times from 0")
    return [float(np.bincount(targets[:, 0].astype(np.int64)).argmax()), float(targets[:, 1].mean())]


STAGE = StageSpec(
    name="anticipation",
    about="predict what will be done to objects in boxes, and when (Ego4D)",
    settings=AnticipationSettings,
    data=KeyFrameData,
    stage=AnticipationStage,
    models=(Anticipator,),
    build=build,
    classifier_paths=("",),
)
