"""How a model is tested."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

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
        boxes: anticipation, state_change: boxes of an object detector in place of the annotated ones.
        proposals: refinement: the segments to refine, as a detector's detections.json.
        features: grounding: of the queries' videos, where they are not those of the recipe.
        class_scores: localisation, refinement: scores of whole videos, that give class-agnostic segments their classes.
        restrict: recognition: choose among the manifest's classes only, of a model that knows more.
        captions: retrieval: "first", "all", "joined"; None for "joined" where the recipe learns that, else "first".
        bank: retrieval: a manifest whose training captions are the bank of query-bank normalisation.
        frames: retrieval: numbers of frames to try instead of the recipe's; the best one is kept.
        also: retrieval, zero_shot, multiple_choice: weights of more models, whose similarities are averaged with those
            of the first.
        beams, nucleus, seed: captioning: beginnings kept; or words drawn from this share of the likeliest, from a seed.
        class_map: with `restrict`, a file that says which class is which of the model's (datasets/class_names.py).

    Raises:
        RecipeError: a value out of range, or two that do not fit together.
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
    boxes: Path | None = None
    restrict: bool = False
    class_map: Path | None = None
    proposals: Path | None = None
    features: Path | None = None
    captions: Literal["first", "all", "joined"] | None = None
    bank: Path | None = None
    frames: tuple[int, ...] = ()
    also: tuple[Path, ...] = ()
    beams: int = 1
    nucleus: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.views is not None and self.views < 1:
            raise RecipeError("views", str(self.views), "1 or more")
        if self.crops not in (1, 3):
            raise RecipeError("crops", str(self.crops), "1 or 3")
        if self.captions not in (None, "first", "all", "joined"):
            raise RecipeError("captions", str(self.captions), "first, all or joined")
        if any(count < 1 for count in self.frames):
            raise RecipeError("frames", ",".join(map(str, self.frames)), "numbers from 1 on")
        if self.class_map is not None and not self.restrict:
            raise RecipeError("class_map", str(self.class_map), "with restrict", "add --restrict")

    def given(self) -> dict[str, object]:
        """The settings that are not as by default, but for those of every task."""
        changed = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return {name: value for name, value in changed.items() if name not in OF_EVERY_TASK}


OF_EVERY_TASK = ("batch_size", "workers", "device")


def options(names: Iterable[str]) -> str:
    """Settings as they are named on the command line."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
