"""How a model is tested."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from internvideo.errors import RecipeError


@dataclass(frozen=True)
class EvaluationSettings:
    """How videos become clips in testing.

    Attributes:
        views: temporal views per video; None for the recipe's `data.sampling.views`, or one where it has none.
        crops: 1 or 3 places per view. batch_size, workers: of the loader. device: where the model runs.
        unknown: open-set recognition: a manifest of unknown classes, beside the rows that say so themselves.
        train: open-set recognition: what the model learned from, where that is not where its recipe says.
        persons: spatio_temporal: boxes of a person detector in place of the annotated ones.
        proposals: refinement: the segments to refine, as a detector's detections.json.
        class_scores: localisation, refinement: scores of whole videos, that give class-agnostic segments their classes.
        restrict: recognition: choose among the manifest's classes only, of a model that knows more.
        class_map: with `restrict`, a file that says which class is which of the model's (data/class_names.py).

    Raises:
        RecipeError: no view, or another number of crops.
    """

    views: int | None = None
    crops: int = 1
    batch_size: int = 16
    workers: int = 0
    device: str = "auto"
    unknown: Path | None = None
    train: Path | None = None
    class_scores: Path | None = None
    persons: Path | None = None
    restrict: bool = False
    class_map: Path | None = None
    proposals: Path | None = None

    def __post_init__(self) -> None:
        if self.views is not None and self.views < 1:
            raise RecipeError("views", str(self.views), "1 or more")
        if self.crops not in (1, 3):
            raise RecipeError("crops", str(self.crops), "1 or 3")
        if self.class_map is not None and not self.restrict:
            raise RecipeError("class_map", str(self.class_map), "with restrict", "add --restrict")
