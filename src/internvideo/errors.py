"""Errors that the user can fix, each a one-line message: where, what was found, what was expected, and a hint.

The command line prints the line and exits with code 2; in Python they are ordinary exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_LENGTH = 500
"""Maximum length of a message in characters; in longer messages the longest fields are shortened."""
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""Return a text escaped for terminals and files: no control sequences, valid UTF-8.

    Control characters (except line feeds and tabs), bidirectional marks and lone surrogates (to which Python decodes
    bytes of file names that are not UTF-8) become \uXXXX, which JSON reads back as the same text.
    """
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'NAME'?" with the known name closest to `name`; "" if none is close."""
    import difflib  # here, because only error messages need it

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def _shorten(texts: list[str], max_length: int) -> list[str]:
    """Cut the middle of the longest texts, so that all texts together have at most `max_length` characters."""
    remaining, limit = max_length, max_length
    for index, length in enumerate(sorted(map(len, texts))):
        limit = remaining // (len(texts) - index)
        if length > limit:
            break
        remaining -= length
    else:
        return texts
    head = (limit - 3) * 2 // 3
    return [text if len(text) <= limit else f"{text[:head]}...{text[head + 3 - limit :]}" for text in texts]


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
        where_, found_, expected_, hint_ = _shorten(texts, MAX_LENGTH - len(": ; expected: ; "))
        clauses = [f"{where_}: {found_}", f"expected: {expected_}" if expected_ else "", hint_]
        super().__init__("; ".join(filter(None, clauses)))

    def __reduce__(self) -> tuple[type[InternVideoError], tuple[str, str, str, str]]:
        """Pickle through the constructor, so that data loader workers can send the error on."""
        return type(self), (self.where, self.found, self.expected, self.hint)


def unwritable(where: object, error: OSError, hint: str = "free space, then resume") -> RunError:
    """Return the RunError for a failed write."""
    return RunError(where, f"cannot be written: {error.strerror or error}", "", hint)


class RecipeError(InternVideoError):
    """A setting, recipe, model, stage or task that does not exist, or a setting that does not fit the others."""


class ManifestError(InternVideoError):
    """An invalid manifest or annotation file, with line and field."""


class VideoError(InternVideoError):
    """A video that cannot be read, with the reason and the time in the file."""


class TextError(InternVideoError):
    """A text that is empty or longer than the context length."""


class WeightsError(InternVideoError):
    """A checkpoint that does not match the model: missing, unused, mis-shaped or non-finite tensors."""


class RunError(InternVideoError):
    """A run that cannot start or continue: a folder of another run, a full disk, a lost process."""
