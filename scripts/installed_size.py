"""Print how many packages and MiB the dependencies of a pyproject.toml install, without torch and what it brings.

python scripts/installed_size.py pyproject.toml [EXTRA]     reads what is installed in this environment
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def closure(lines: list[str]) -> set[str]:
    """Return the distributions that are installed here of what the requirements need, and what these need."""
    todo, seen = [Requirement(line) for line in lines], set[tuple[str, frozenset[str]]]()
    names = set()
    while todo:
        wanted = todo.pop()
        key = (wanted.name.lower().replace("_", "-"), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = metadata.distribution(key[0])
        except metadata.PackageNotFoundError:
            print(f"not installed here, not counted: {key[0]}", file=sys.stderr)
            continue
        names.add(key[0])
        for need in map(Requirement, found.requires or []):
            extras = wanted.extras or {""}
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(need)
    return names


def lines_of(project: dict[str, Any], extra: str) -> list[str]:
    """Return an extra's requirements, those of extras named in it included."""
    found = []
    for line in project["optional-dependencies"][extra]:
        own = re.match(r"internvideo\[(.*)\]", line)
        found += [inner for name in own[1].split(",") for inner in lines_of(project, name)] if own else [line]
    return found


if __name__ == "__main__":
    project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + (lines_of(project, sys.argv[2]) if len(sys.argv) > 2 else [])
    names = closure(lines) - closure(["torch"])
    size = sum(file.size or 0 for name in names for file in metadata.distribution(name).files or [])
    print(f"{len(project['dependencies'])} direct dependencies, {len(names)} packages, {size / 2**20:.0f} MiB")
