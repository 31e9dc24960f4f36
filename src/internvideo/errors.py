"""Errors that the user can fix, each a one-line message: where, what was found, what was expected, and a hint.

The command line prints the line and exits with code 2; in Python they are ordinary exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_LENGTH = 500
"""Maximum length of a message in characters; the longest parts of a longer one are shortened."""
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""Escape a text for terminals and files: no control sequences, valid UTF-8.

    Control characters (except line feeds and tabs), bidirectional marks and lone surrogates (to which Python decodes
    bytes of file names that are not UTF-8) become \uXXXX, which JSON reads back as the same text.
    """
    return _UNSHOWN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'NAME'?" with the known name closest to `name`; "" if none is close."""
    import difflib  # only for mistakes

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def _shortened(parts: list[str], max_length: int) -> list[str]:
    """Cut the middle of the longest parts, so that all parts together have at most `max_length` characters."""
    left, share = max_length, max_length
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
    """An error that the user can fix.

    Args:
        where: the file, setting or argument.
        found: its actual value.
        expected: the values that are accepted, "" if that is obvious.
        hint: what to do, "" if that is obvious.
    """

    def __init__(self, where: object, found: str, expected: str = "", hint: str = "") -> None:
        self.where, self.found, self.expected, self.hint = str(where), found, expected, hint
        texts = [shown(" ".join(text.split())) for text in (self.where, found, expected, hint)]
        start, reason, accepted, advice = _shortened(texts, MAX_LENGTH - len(": ; expected: ; "))
        parts = [f"{start}: {reason}", f"expected: {accepted}" if accepted else "", advice]
        super().__init__("; ".join(part for part in parts if part))

    def __reduce__(self) -> tuple[type[InternVideoError], tuple[str, str, str, str]]:
        """Pickle through the constructor, so that data loader workers can send the error on."""
        return type(self), (self.where, self.found, self.expected, self.hint)


def unwritable(where: object, error: OSError, hint: str = "free space, then resume") -> RunError:
    """Return the RunError of a failed write."""
    return RunError(where, f"cannot be written: {error.strerror or error}", "", hint)


class RecipeError(InternVideoError):
    """A setting, recipe, model, stage or task that does not exist or is not valid here."""


class ManifestError(InternVideoError):
    """An invalid manifest or annotation file, with line and field."""


class VideoError(InternVideoError):
    """A video that cannot be read, with the reason and the time in the file."""


class TextError(InternVideoError):
    """A text that is empty or longer than the context length."""


class WeightsError(InternVideoError):
    """A checkpoint that does not match the model: missing, unused, mis-shaped or non-finite tensors."""


class RunError(InternVideoError):
    """A run folder of another run, a full disk, a run that cannot continue."""
