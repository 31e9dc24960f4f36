"""What is printed: the one place, so that names, labels and captions of others are shown by a terminal, not obeyed."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from internvideo.errors import shown


def say(text: str, *, err: bool = False) -> None:
    """Print a line. err: to stderr."""
    typer.echo(shown(text), err=err)


class Screen(Console):
    """Rich's console, for tables and markup; texts and cells pass as in `say`."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """A text with its markup; every string that the console prints comes this way."""
        return super().render_str(shown(text), **settings)
