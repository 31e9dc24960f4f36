"""The user's mistakes, each told in one line: where, what was found, what is allowed, what to do.

The command line prints the line and exits with code 2; from Python they are ordinary exceptions.
"""

from __future__ import annotations

import re

LONGEST = 500
"""Characters of a message; what is longer is shortened where it is longest."""
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""A text that a terminal shows and does not obey, and that any file takes.

    Control characters (line feeds and tabs stay), marks that turn the direction of writing and halves of surrogate
    pairs, which bytes of a file name that are not UTF-8 come as, become \uXXXX. JSON reads that back as the same text.
    """
    return _UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _shortened(parts: list[str], most: int) -> list[str]:
    """The parts, the longest ones without their middle, so that together they have `most` characters at the most."""
    left, share = most, most
    for number, length in enumerate(sorted(map(len, parts))):
        share = left // (len(parts) - number)
        if length > share:
            break
        left -= length
    else:
        return parts
    head = (share - 3) * 2 // 3
    return [part if len(part) <= share else f"{part[:head]}...{part[head + 3 - share :]}" for part in parts]


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
        texts = [shown(" ".join(text.split())) for text in (self.where, found, allowed, do)]
        place, reason, could, then = _shortened(texts, LONGEST - len(": ; allowed: ; "))
        parts = [f"{place}: {reason}", f"allowed: {could}" if could else "", then]
        super().__init__("; ".join(part for part in parts if part))

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
