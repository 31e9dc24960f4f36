"""A command, or a program of the documents, in this process: what it said and how it ended."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from internvideo.cli import main as cli

ROOT = Path(__file__).parents[2]


class Told(NamedTuple):
    """What it said, and its exit code."""

    code: int
    out: str
    err: str

    def mistake(self) -> str:
        """The line of a user's mistake."""
        assert self.code == 2, self
        assert self.err.startswith("internvideo: "), self
        assert self.err.count("\n") == 1, self
        return self.err


def command(*words: object, cwd: Path = ROOT) -> Told:
    """`internvideo WORDS`, typed in a folder."""
    return _run(cli.main, ["internvideo", *map(str, words)], cwd)


def program(path: Path, *words: object, cwd: Path) -> Told:
    """`python PATH WORDS`, typed in a folder."""
    return _run(lambda: runpy.run_path(str(path), run_name="__main__"), [str(path), *map(str, words)], cwd)


def _run(call: Callable[[], object], argv: list[str], cwd: Path) -> Told:
    out, err, code = io.StringIO(), io.StringIO(), 0
    streams = (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err))
    with streams[0], streams[1], contextlib.chdir(cwd), mock.patch.object(sys, "argv", argv):
        try:
            call()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Told(code, out.getvalue(), err.getvalue())
