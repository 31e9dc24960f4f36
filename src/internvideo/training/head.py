"""Initialize the classification head of a fine-tuning: all rows of a file's head, matching rows, or a random head.

Kinetics-710 -> 400, 600, 700 keeps the rows of the matching classes (run_class_finetuning.py), so three epochs at a
small learning rate suffice there. Classes that differ from the file's need an explicit `init_head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from internvideo.datasets.class_names import ClassMatch, are_indices, match_classes
from internvideo.errors import RecipeError, WeightsError
from internvideo.training.recipe import Recipe

HINT = "set init_head: match_names to keep its rows of these classes, init_head: random for a new one"


class HeadInitializer:
    """Select the rows of a file's head that initialize the head of a model with `classes`.

    Args:
        recipe: with `init`, `init_head`, `init_class_map`. classes: class names of the training rows, in order.

    Raises:
        RecipeError: contradictory settings.
    """

    def __init__(self, recipe: Recipe, classes: Sequence[str]) -> None:
        self.kind, self.class_map, self.classes = recipe.init_head, recipe.init_class_map, tuple(classes)
        self.has_weights = "weights" in recipe.init
        self.match: ClassMatch | None = None
        if self.class_map is not None and self.kind != "match_names":
            raise RecipeError("init_class_map", str(self.class_map), "with init_head: match_names")
        if self.kind != "exact" and recipe.init and not self.has_weights:
            raise RecipeError("init_head", self.kind, "exact, unless init.weights is given")

    def __call__(self, known: tuple[str, ...], path: Path) -> Sequence[int] | None:
        """Return the rows to take of the head of `path` with classes `known`, in order; None for a random head.

        Raises:
            WeightsError: other classes, and `init_head` is exact. ManifestError: see `match_classes`.
        """
        if self.kind == "random":
            return None
        if self.kind == "match_names":
            self.match = match_classes(self.classes, known, where="init_head: match_names", class_map=self.class_map)
            return self.match.rows
        if len(known) != len(self.classes):
            raise WeightsError(
                path, f"a head of {len(known)} classes", f"{len(self.classes)}, those of data.train", HINT
            )
        numbered = are_indices(known) or are_indices(self.classes)
        different = next((pair for pair in zip(known, self.classes, strict=True) if pair[0] != pair[1]), None)
        if different is not None and not numbered:
            found = f"class '{different[0]}' of the head has the index of '{different[1]}' in data.train"
            raise WeightsError(path, found, "the same classes in the same order", HINT)
        return range(len(known))

    def summary(self, recipe: Recipe) -> tuple[str, ...]:
        """Describe the initialization in one line; () if the head is the file's or there is no file.

        Raises:
            WeightsError: match_names with a file that has no head.
        """
        if self.kind == "exact":
            return ()
        if not self.has_weights:
            return (f"{self.kind} (nothing yet: give init.weights, training waits for it)",)
        if self.kind == "random":
            return (f"random, {len(self.classes)} classes",)
        if self.match is None:
            found, weights = "has no classification head", recipe.init["weights"]
            raise WeightsError(weights, found, "weights of a classifier", "init_head: exact")
        return (self.match.description,)


def check_start(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe needs the head of other weights but `init.weights` is missing."""
    if recipe.init_head != "exact" and "weights" not in recipe.init:
        raise RecipeError("init.weights", "is missing", "weights of an earlier stage", "give init.weights=FILE")
