"""Jobs that learn what will be done to objects in boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from internvideo import distributed
from internvideo.errors import ManifestError, RecipeError
from internvideo.pretraining.build import clip_form, training_rows
from internvideo.recipe import STAGES, Recipe
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.anticipation.objects import class_list, learned, object_frames, of_frame, read_detections
from internvideo.tasks.spatiotemporal.data import ClipForm, KeyFrame, KeyFrameLoader
from internvideo.training.build import Job, draw_model, start_model


def prepare(recipe: Recipe, *, skipped: Path | None) -> Job:
    """Key frames, loader, model and stage; the classes of the job are the verbs.

    Raises:
        RecipeError, ManifestError, VideoError, WeightsError: what does not fit together.
    """
    data = recipe.data
    manifest = training_rows(recipe)
    verbs = class_list(manifest.root / "verbs.txt", "the verbs, one a line")
    found = None if data.key_frames.candidates is None else read_detections(data.key_frames.candidates)
    frames = [
        learned(frame, None if found is None else of_frame(frame, found), background=len(verbs))
        for frame in object_frames(manifest)
    ]
    guess = guessed(frames, len(verbs), manifest.source)
    model = draw_model(recipe, len(verbs))
    if not isinstance(model, Anticipator):
        raise TypeError(f"the stage anticipation trains a {type(model).__name__}")
    if data.augment.flip:
        raise RecipeError("data.augment.flip", "true, but verbs may know left from right", "false")
    if data.sampling.frames != model.config.frames:
        raise RecipeError(
            "data.sampling.frames", str(data.sampling.frames), f"{model.config.frames}, those of the model"
        )
    head = start_model(model, recipe, verbs)
    stage = STAGES[recipe.stage].stage(model, recipe.settings, distributed.divisor)
    loader = KeyFrameLoader(
        manifest,
        contact_form(recipe),
        data.loader,
        skipped=skipped,
        frames=[frame for frame in frames if len(frame.boxes)],
    )
    context = {"nouns": manifest.classes, "guess": guess}
    return Job(recipe, stage, loader, verbs, manifest.fingerprint, context, head)


def contact_form(recipe: Recipe) -> ClipForm:
    """How the clip before a key frame is cut."""
    form = clip_form(recipe, 0)
    return ClipForm(form.frames, form.stride, form.transform, form.classes, before=True)


def guessed(frames: list[KeyFrame], verbs: int, source: Path) -> list[float]:
    """The commonest verb in training and the mean time to contact: a guess without looking.

    Raises:
        ManifestError: no object with verb and time, or another verb.
    """
    targets = np.concatenate([frame.targets for frame in frames if frame.targets is not None])
    targets = targets[np.isfinite(targets).all(axis=1)]
    if not len(targets) or targets[:, 0].max() >= verbs or targets.min() < 0:
        found = f"{len(targets)} objects with verb and time to contact"
        raise ManifestError(source, found, f"verbs 0 to {verbs - 1}, times from 0")
    return [float(np.bincount(targets[:, 0].astype(np.int64)).argmax()), float(targets[:, 1].mean())]
