"""Evaluate recognition: scores of a classifier per view, over all its classes or over those of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from internvideo.data.manifest import Manifest
from internvideo.datasets.class_names import match_classes
from internvideo.errors import RecipeError
from internvideo.models.cross_model import CrossModel
from internvideo.models.encoder import ClipClassifier
from internvideo.sample_world.actions import TIME_DIRECTED
from internvideo.sample_world.generate import is_sample_world
from internvideo.tasks.class_rows import map_labels_to_classes
from internvideo.tasks.clip_evaluation import make_clip_inputs, read_split, run_evaluation
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class RecognitionOptions(ClipOptions):
    """Options of recognition evaluation."""

    restrict: Annotated[bool, "Score only the manifest's classes, for a model with more classes."] = False
    class_map: Annotated[Path | None, "With --restrict: file that maps the manifest's classes to the model's."] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_map is not None and not self.restrict:
            raise RecipeError("class_map", str(self.class_map), "with restrict", "add --restrict")


def evaluate(trained: Trained, manifest: Path, output: Path, settings: RecognitionOptions, split: str | None) -> Result:
    """Write recognition.npz and .json; print the metrics. Labels are mapped to the model's classes by name.

    With `settings.restrict`, for a model of more classes (Kinetics-710 evaluated on Kinetics-400), the logits of the
    classes that the manifest lacks are removed before the softmax.

    Raises RecipeError, ManifestError, RunError.
    """
    rows = read_split(manifest, split)
    if not settings.restrict:
        rows = map_labels_to_classes(rows, trained.classes)
    inputs = make_clip_inputs(trained, rows, settings)
    return run_evaluation(recognition.NAME, recognition.score, inputs, output, lambda: predict(trained, rows, settings))


def predict(trained: Trained, manifest: Manifest, settings: RecognitionOptions) -> Predictions:
    """Predict the logits of all views, with `settings.restrict` only those of the manifest's classes."""
    score_clips, extra_protocol = make_scorer(trained), {}
    if settings.restrict:
        where, class_map = manifest.source, settings.class_map
        class_match = match_classes(manifest.classes, trained.classes, where=where, class_map=class_map)
        score_clips = recognition.restrict_classes(score_clips, class_match.rows)
        extra_protocol = {"classes_kept": f"{class_match.description}, before the soft-max"}
    subsets = {}
    if is_sample_world(manifest.source.parent) and set(manifest.classes) & set(TIME_DIRECTED):
        subsets["time_directed"] = lambda row: manifest.classes[row.label] in TIME_DIRECTED
    inputs = make_clip_inputs(trained, manifest, settings)
    return recognition.predict(inputs, score_clips, subsets=subsets, extra_protocol=extra_protocol)


def make_scorer(trained: Trained) -> recognition.Scorer:
    """Return the function uint8 clips -> logits by name, which subsamples the frames for each encoder."""
    stride: int = getattr(trained.recipe.settings, "temporal_stride", 1)
    if isinstance(trained.model, CrossModel):
        return recognition.interaction_scorer(trained.model, stride)
    classify = recognition.classifier_scorer(cast(ClipClassifier, trained.model))
    return lambda video: classify(video[:, :, ::stride])
