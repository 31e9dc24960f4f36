"""Return the class names of published classification heads, in the order of their outputs.

Only lists whose order is known for certain; assets/classes/README.md has their sources and the missing lists.
"""

from __future__ import annotations

from importlib.resources import files

from internvideo.errors import RecipeError

LISTS = {**{f"kinetics{count}": count for count in (400, 600, 700, 710)}, "something_v2": 174, "ava": 80}
"""Name of a list -> number of classes."""


def published_classes(name: str) -> tuple[str, ...]:
    """Return the names of a list of `LISTS`. Raises RecipeError: there is no such list."""
    if name not in LISTS:
        raise RecipeError("class_names", repr(name), f"names, or one of the lists {', '.join(LISTS)}")
    text = files("internvideo.data").joinpath("assets", "classes", f"{name}.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
