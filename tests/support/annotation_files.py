"""Annotation files in the plainest way, without the package."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any


def loaded(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line.strip()]


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in lines(path)]


def table(path: Path, **how: Any) -> list[Any]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, **how))


def cells(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in lines(path)]


def of(folder: Path, *endings: str) -> dict[str, Path]:
    """Split -> file, of files SPLIT + ending or those whose name holds the split."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(endings):
            found[next(split for split in ("train", "val", "test") if split in path.name.lower())] = path
    assert found, f"no file of {folder} ends with {' or '.join(endings)}"
    return found
