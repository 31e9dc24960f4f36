"""Initialize the classification head for fine-tuning: all rows of the pretrained head, matching rows, or random.

From Kinetics-710 to Kinetics-400, -600 or -700 the rows of the matching classes are taken (run_class_finetuning.py), so
three epochs at a small learning rate suffice. If the classes differ, the recipe must set `init_head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from internvideo.datasets.class_names import ClassMatch, are_indices, match_classes
from internvideo.errors import RecipeError, WeightsError
from internvideo.training.recipe import Recipe

HINT = "set init_head: match_names to take the rows of the classes with equal names, or init_head: random"


class HeadInitializer:
    """Select the rows of a pretrained head that initialize the head of a model with `classes`.

    Args:
        recipe: its `init`, `init_head` and `init_class_map` are used. classes: names of the model's classes, in order.

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

    def __call__(self, file_classes: tuple[str, ...], path: Path) -> Sequence[int] | None:
        """Return, for each class of the model, the row of the head in the weights file; None for a random head.

        Args:
            file_classes: class names of the head in the weights file `path`, in order.

        Raises:
            WeightsError: `init_head` is exact, but the classes differ. ManifestError: see `match_classes`.
        """
        if self.kind == "random":
            return None
        if self.kind == "match_names":
            self.match = match_classes(
                self.classes, file_classes, where="init_head: match_names", class_map=self.class_map
            )
            return self.match.rows
        if len(file_classes) != len(self.classes):
            raise WeightsError(
                path, f"a head of {len(file_classes)} classes", f"{len(self.classes)}, those of data.train", HINT
            )
        unnamed = are_indices(file_classes) or are_indices(self.classes)
        different = next((pair for pair in zip(file_classes, self.classes, strict=True) if pair[0] != pair[1]), None)
        if different is not None and not unnamed:
            found = f"class '{different[0]}' of the head has the index of '{different[1]}' in data.train"
            raise WeightsError(path, found, "the same classes in the same order", HINT)
        return range(len(file_classes))

    def summary(self, recipe: Recipe) -> tuple[str, ...]:
        """Describe the initialization in one log line; () for `exact`.

        Raises:
            WeightsError: match_names, but the weights have no head.
        """
        if self.kind == "exact":
            return ()
        if not self.has_weights:
            return (f"{self.kind}: training needs init.weights, which is not set yet",)
        if self.kind == "random":
            return (f"random, {len(self.classes)} classes",)
        if self.match is None:
            found, weights = "has no classification head", recipe.init["weights"]
            raise WeightsError(weights, found, "weights of a classifier", "init_head: exact")
        return (self.match.description,)


def check_init_head(recipe: Recipe) -> None:
    """Raise RecipeError if `init_head` is set without `init.weights`."""
    if recipe.init_head != "exact" and "weights" not in recipe.init:
        raise RecipeError("init.weights", "is missing", "weights of an earlier stage", "give init.weights=FILE")
