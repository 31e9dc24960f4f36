"""The notebooks of docs/notebooks run, cell by cell, in an empty folder."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code"), "saved with outputs"
    told, names = io.StringIO(), dict[str, Any](__name__="__main__")
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(told):
        for number, text in enumerate(code):
            exec(compile(text, f"{path.name}, code cell {number}", "exec"), names)
    last = told.getvalue().splitlines()[-1]
    assert ".mp4" in last, last


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"embed_and_find", "own_classes"}
