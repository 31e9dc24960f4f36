"""Names of the classes of published heads, in the order in which their checkpoints number them.

Only lists whose order is established: see assets/classes/README.md for their sources and for those that are not here.
"""

from __future__ import annotations

from importlib.resources import files

from internvideo.errors import RecipeError

LISTS = {
    "kinetics400": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "kinetics710": 710,
    "something_v2": 174,
    "ava": 80,
}
"""Name of a list -> how many classes it has."""


def published_classes(name: str) -> tuple[str, ...]:
    """The names of a list of `LISTS`. Raises RecipeError for another one."""
    if name not in LISTS:
        raise RecipeError("class_names", repr(name), f"names, or one of the lists {', '.join(LISTS)}")
    text = files("internvideo.data").joinpath("assets", "classes", f"{name}.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
