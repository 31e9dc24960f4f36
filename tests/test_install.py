"""What gets installed: everything that is imported is asked for by name; make takes torch from where it is told."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def imports(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.split(".")[0]


def asked_for(*extras: str) -> set[str]:
    """Packages, those that come with another included (`tests/test_extras.py` reads that they do)."""
    declared = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in declared[extra])]
    own = [line for line in lines if line.startswith("internvideo[")]
    inside = {name for line in own for name in asked_for(*line[len("internvideo[") : -1].split(","))}
    return inside | {"rich", "tqdm"} | {re.split(r"[\[<>=!~ ;]", line)[0].lower() for line in lines}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("src", ("all",)),
        ("tests", ("dev",)),
        ("examples", ("export",)),
    ],
)
def test_what_is_imported_is_asked_for_by_name(folder: str, extras: tuple[str, ...]) -> None:
    homes, own = (
        packages_distributions(),
        {path.stem for rooms in ("tests/**", "benchmarks", "scripts") for path in ROOT.glob(f"{rooms}/*")},
    )
    needed = set(imports(ROOT / folder)) - sys.stdlib_module_names - own - {"internvideo"}
    missing = {name for name in needed if not {home.lower() for home in homes.get(name, [name])} & asked_for(*extras)}
    assert missing == set()


def installing(*arguments: str) -> list[str]:
    """The pip lines that make would run in a fresh clone."""
    line = ["make", "-n", "-C", str(ROOT), "VENV=/no/such/folder", "demo", *arguments]
    told = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout
    return [line for line in told.splitlines() if "pip install" in line]


def test_make_takes_torch_from_the_index_it_is_told_and_first() -> None:
    plain, told = installing(), installing(f"TORCH_INDEX={CPU_INDEX}")
    (torch,) = (line for line in told if line not in plain)
    assert re.search(rf"-c constraints.txt --index-url {CPU_INDEX} torch$", torch)
    assert [line for line in told if line != torch] == plain
    assert told.index(torch) < next(number for number, line in enumerate(told) if "-e" in line.split())
    assert not any("index" in line for line in plain)
    assert f"TORCH_INDEX={CPU_INDEX}" in (ROOT / "README.md").read_text()
