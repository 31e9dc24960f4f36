"""The user's mistakes, each told in one line: where, what was found, what is allowed, what to do.

The command line prints the line and exits with code 2; from Python they are ordinary exceptions.
"""

from __future__ import annotations


def as_text(name: object) -> str:
    r"""A name that any terminal and file takes: bytes of a file name that are not UTF-8 are shown as \udcXX.

    JSON reads that back as the same name, so that it still opens the file.
    """
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


class InternVideoError(Exception):
    """A mistake that the user can mend.

    Args:
        where: the file, setting or argument that is wrong.
        found: what stands there.
        allowed: what could stand there ("" when that is obvious).
        do: what to do about it ("" when that is obvious).
    """

    def __init__(self, where: object, found: str, allowed: str = "", do: str = "") -> None:
        self.where, self.found, self.allowed, self.do = str(where), found, allowed, do
        parts = [f"{where}: {found}"]
        if allowed:
            parts.append(f"allowed: {allowed}")
        if do:
            parts.append(do)
        super().__init__(as_text("; ".join(" ".join(part.split()) for part in parts)))

    def __reduce__(self) -> tuple[type[InternVideoError], tuple[str, str, str, str]]:
        """Pickle through the constructor, so that data loader workers can send the error on."""
        return type(self), (self.where, self.found, self.allowed, self.do)


class RecipeError(InternVideoError):
    """A setting, recipe, model, stage or task that does not exist or does not fit."""


class ManifestError(InternVideoError):
    """A manifest or annotation file that cannot be read, with its line and field."""


class VideoError(InternVideoError):
    """A video that cannot be read, with the reason and the time in the file."""


class TextError(InternVideoError):
    """A text that is empty or longer than the context."""


class WeightsError(InternVideoError):
    """A checkpoint that does not fit: missing, unused, mis-shaped or non-finite tensors."""


class RunError(InternVideoError):
    """A run folder that belongs to another run, a full disk, a run that cannot go on."""
