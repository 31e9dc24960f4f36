"""The classification head that a fine-tuning starts with: the old one, its rows of the new classes, or a new one.

Kinetics-710 -> 400, 600, 700 keeps the rows of the classes that are kept (run_class_finetuning.py), which is why three
epochs at a tiny rate are enough there. Nothing is done unasked: other classes than the file's need `init_head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from internvideo.datasets.class_names import ClassMatch, match_classes, only_count
from internvideo.errors import RecipeError, WeightsError
from internvideo.training.recipe import Recipe

DO = "set init_head: match_names to keep its rows of these classes, init_head: random to draw a new one"


class HeadInitializer:
    """Which rows of a file's head a model of `classes` starts with, asked once for each file with a head.

    Args:
        recipe: `init`, `init_head`, `init_class_map`. classes: of the training rows, in their order.

    Raises:
        RecipeError: settings that do not fit together.
    """

    def __init__(self, recipe: Recipe, classes: Sequence[str]) -> None:
        self.kind, self.class_map, self.classes = recipe.init_head, recipe.init_class_map, tuple(classes)
        self.given = "weights" in recipe.init
        self.asked = 0
        self.match: ClassMatch | None = None
        if self.class_map is not None and self.kind != "match_names":
            raise RecipeError("init_class_map", str(self.class_map), "with init_head: match_names")
        if self.kind != "exact" and recipe.init and not self.given:
            raise RecipeError("init_head", self.kind, "exact, where init does not give weights")

    def __call__(self, known: tuple[str, ...], path: Path) -> Sequence[int] | None:
        """Rows to take of the head of `path`, whose classes are `known`, in order; None for none.

        Raises:
            WeightsError: other classes, and the recipe does not say what is to be done. ManifestError: see
                `match_classes`.
        """
        self.asked += 1
        if self.kind == "random":
            return None
        if self.kind == "match_names":
            self.match = match_classes(self.classes, known, where="init_head: match_names", class_map=self.class_map)
            return self.match.rows
        if len(known) != len(self.classes):
            raise WeightsError(path, f"a head of {len(known)} classes", f"{len(self.classes)}, those of data.train", DO)
        numbers = only_count(known) or only_count(self.classes)
        other = next((pair for pair in zip(known, self.classes, strict=True) if pair[0] != pair[1]), None)
        if other is not None and not numbers:
            found = f"the head's class '{other[0]}' stands where data.train has '{other[1]}'"
            raise WeightsError(path, found, "the same classes in the same order", DO)
        return range(len(known))

    def told(self, recipe: Recipe) -> tuple[str, ...]:
        """What was done, one line for a person, none where the head is the file's or there is no file.

        Raises:
            WeightsError: names were to be taken of a file without a head.
        """
        if self.kind == "exact":
            return ()
        if not self.given:
            return (f"{self.kind} (nothing yet: give init.weights, training waits for it)",)
        if self.kind == "random":
            return (f"random, {len(self.classes)} classes",)
        if self.match is None:
            raise WeightsError(
                recipe.init["weights"], "holds no classification head", "weights of a classifier", "init_head: exact"
            )
        return (self.match.about,)


def check_start(recipe: Recipe) -> None:
    """A recipe whose head is that of other weights cannot train without them. Raises RecipeError."""
    if recipe.init_head != "exact" and "weights" not in recipe.init:
        raise RecipeError("init.weights", "is missing", "weights of an earlier stage", "give init.weights=FILE")
