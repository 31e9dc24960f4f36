"""Settings of the whole test session."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # several files at once: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if "INTERNVIDEO_TEST_FILES" not in os.environ:  # made once: the workers and the processes of tests inherit it
    os.environ["INTERNVIDEO_TEST_FILES"] = tempfile.mkdtemp(prefix="internvideo-test-")
    atexit.register(shutil.rmtree, os.environ["INTERNVIDEO_TEST_FILES"], ignore_errors=True)

import typer.main

typer.main.get_command = cache(typer.main.get_command)  # the parser of all commands is built once


def pytest_xdist_auto_num_workers() -> int:
    """Of `-n auto`: one more than the cores, since many tests wait for other processes and for sockets."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one timeline in a test, and take it for the others: matplotlib takes a third of a second for each."""
    from internvideo.plots import charts

    monkeypatch.setattr(charts, "timeline", _first_of(charts.timeline))


def _first_of(draw: Callable[..., str]) -> Callable[..., str]:
    drawn: list[str] = []

    def first(*given: object, **named: object) -> str:
        if not drawn:
            drawn.append(draw(*given, **named))
        return drawn[0]

    return first
