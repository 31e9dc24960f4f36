"""Recognition: the table of a classifier over views, among all its classes or among those of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from internvideo.data.manifest import Manifest
from internvideo.datasets.class_names import match_classes
from internvideo.errors import RecipeError
from internvideo.models.cross_model import CrossModel
from internvideo.sample_world.actions import TIME_DIRECTED
from internvideo.sample_world.generate import is_sample_world
from internvideo.tasks.class_rows import under_classes
from internvideo.tasks.clip_evaluation import clip_source, finish, split_rows
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class RecognitionOptions(ClipOptions):
    """Options of the evaluation."""

    restrict: Annotated[bool, "Choose among the manifest's classes only, of a model of more."] = False
    class_map: Annotated[Path | None, "With --restrict: file that says which class is which of the model's."] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_map is not None and not self.restrict:
            raise RecipeError("class_map", str(self.class_map), "with restrict", "add --restrict")


def evaluate(trained: Trained, manifest: Path, output: Path, settings: RecognitionOptions, split: str | None) -> Result:
    """Write recognition.npz and .json; print the figures. The classes are found among the model's by name.

    With `settings.restrict` a model of more classes (Kinetics-710 on 400) chooses among the manifest's alone: the
    logits of the others are left out before the soft-max, and the table is that of a model of these classes.

    Raises:
        RecipeError, ManifestError, RunError: what does not fit together.
    """
    rows = split_rows(manifest, split)
    if not settings.restrict:
        rows = under_classes(rows, trained.classes)

    def make() -> Predictions:
        return predict(trained, rows, settings)

    return finish(recognition.NAME, recognition.score, clip_source(trained, rows, settings), output, make)


def predict(trained: Trained, manifest: Manifest, settings: RecognitionOptions) -> Predictions:
    """Scores of a classifier over views, with `settings.restrict` of the manifest's classes alone."""
    scores, told = scorer(trained), {}
    if settings.restrict:
        kept = match_classes(manifest.classes, trained.classes, where=manifest.source, class_map=settings.class_map)
        scores = recognition.restricted(scores, kept.rows)
        told = {"classes_kept": f"{kept.about}, before the soft-max"}
    subsets = {}
    if is_sample_world(manifest.source.parent) and set(manifest.classes) & set(TIME_DIRECTED):
        subsets["time_directed"] = lambda row: manifest.classes[row.label] in TIME_DIRECTED
    inputs = clip_source(trained, manifest, settings)
    return recognition.predict(inputs, scores, subsets=subsets, told=told)


def scorer(trained: Trained) -> recognition.Scorer:
    """uint8 clips -> named logits, each encoder with its own frames."""
    step: int = getattr(trained.recipe.settings, "temporal_stride", 1)
    if isinstance(trained.model, CrossModel):
        return recognition.interaction_scorer(trained.model, step)
    whole = recognition.classifier_scorer(trained.model)
    return lambda video: whole(video[:, :, ::step])
