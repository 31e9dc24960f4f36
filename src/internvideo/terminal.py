"""What is printed: the one place, so that names, labels and captions of others are shown by a terminal, not obeyed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from internvideo.errors import shown

LOGGER = logging.getLogger("internvideo")
"""Of notes that are no results: a program that uses the package sends them where it likes."""
_JSON = "INTERNVIDEO_JSON"


def say(text: str, *, err: bool = False) -> None:
    """Print a line. err: to stderr."""
    typer.echo(shown(text), err=err)


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Set which notes are told and whether progress bars are drawn, for this process and its workers."""
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"
    LOGGER.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)
    if verbose and not LOGGER.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.addHandler(handler)


def results_as_json(wanted: bool | None = None) -> bool:
    """Whether results are printed as JSON, one object a line; `wanted` sets it for this process and its workers."""
    if wanted is not None:
        os.environ[_JSON] = "1" if wanted else ""
    return bool(os.environ.get(_JSON))


def say_json(record: Mapping[str, object]) -> None:
    """Print a result as one line of JSON."""
    say(json.dumps(record, ensure_ascii=False, default=str))


def tell(record: Mapping[str, object], *lines: str) -> None:
    """Print what a command did: lines for people, or the record as JSON where that was asked for."""
    if results_as_json():
        say_json(record)
        return
    for line in lines:
        say(line)


def print_rows(rows: Mapping[str, str], as_json: bool = False) -> None:
    """Print names with what they are: one line each, in a terminal wrapped to its width beside the names."""
    if as_json:
        for name, about in rows.items():
            say_json({"name": name, "about": about})
        return
    indent = max(map(len, rows), default=0) + 2
    wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for name, about in rows.items():
        lines = textwrap.wrap(about, max(wide - indent, 30), break_on_hyphens=False) if wide else [about]
        say(f"{name:{indent}}" + f"\n{'':{indent}}".join(lines or [""]))


class Screen(Console):
    """Rich's console, for tables and markup; texts and cells pass as in `say`."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """A text with its markup; every string that the console prints comes this way."""
        return super().render_str(shown(text), **settings)
