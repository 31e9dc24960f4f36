"""Print to the terminal, with control characters of untrusted names, labels and captions escaped."""

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
"""Logger of everything except results: notes are warnings, progress is info; other programs may redirect it."""
_JSON = "INTERNVIDEO_JSON"
_LEVEL = "INTERNVIDEO_LOG_LEVEL"
NO_BARS = "TQDM_DISABLE"
"""Environment variable of tqdm that disables bars, in a process and its workers."""


class _StandardError(logging.Handler):
    """Print log records on stderr, unless the root logger has a handler that does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        standard = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        if not any(getattr(handler, "stream", self) in standard for handler in logging.getLogger().handlers):
            say(self.format(record), err=True)


LOGGER.addHandler(_StandardError())
LOGGER.setLevel(os.environ.get(_LEVEL, "INFO"))


def say(text: str, *, err: bool = False) -> None:
    """Print a line of text; to stderr if `err`, or if stdout is reserved for results as JSON."""
    typer.echo(shown(text), err=err or results_as_json())


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Set which messages are printed and whether progress bars are drawn, for this process and its workers."""
    if quiet:
        os.environ[NO_BARS] = "1"
    os.environ[_LEVEL] = "ERROR" if quiet else "DEBUG" if verbose else "INFO"
    LOGGER.setLevel(os.environ[_LEVEL])


def bars_disabled(progress: bool | None = None) -> bool:
    """Return `not progress`; if that is None, whether bars are disabled by --quiet or the absence of a terminal."""
    return bool(os.environ.get(NO_BARS)) or not sys.stderr.isatty() if progress is None else not progress


def results_as_json(enable: bool | None = None) -> bool:
    """Return whether results are printed as JSON lines; `enable` sets it for this process and its workers."""
    if enable is not None:
        os.environ[_JSON] = "1" if enable else ""
    return bool(os.environ.get(_JSON))


def say_json(record: Mapping[str, object]) -> None:
    """Print a result as one line of JSON."""
    typer.echo(shown(json.dumps(record, ensure_ascii=False, default=str)))


def tell(record: Mapping[str, object], *lines: str) -> None:
    """Print a result: `record` as a line of JSON if results are printed as JSON, otherwise `lines`."""
    if results_as_json():
        say_json(record)
        return
    for line in lines:
        say(line)


def print_rows(rows: Mapping[str, str]) -> None:
    """Print names and descriptions, one line each; wrapped to the width of the terminal, if it is one."""
    if results_as_json():
        for name, about in rows.items():
            say_json({"name": name, "about": about})
        return
    indent = max(map(len, rows), default=0) + 2
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for name, about in rows.items():
        lines = textwrap.wrap(about, max(width - indent, 30), break_on_hyphens=False) if width else [about]
        say(f"{name:{indent}}" + f"\n{'':{indent}}".join(lines or [""]))


class Screen(Console):
    """Rich's console, for tables and markup; escapes text and chooses the stream as `say` does."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"stderr": results_as_json(), **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """Render a text with its markup; the console calls it for every string that it prints."""
        return super().render_str(shown(text), **settings)
