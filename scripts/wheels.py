"""Check that the package and each of its extras resolve to wheels alone, for every Python and system it names.

python scripts/wheels.py [EXTRA ...]     needs `uv`; downloads metadata only; exits 1 where a combination lacks a wheel

The result of the last run stands in docs/platforms.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.14")
"""Oldest and newest."""
SYSTEMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux arm64": "aarch64-manylinux_2_28",
    "macOS 14 arm64": "aarch64-apple-darwin",
    "Windows x86-64": "x86_64-pc-windows-msvc",
}
"""Name -> uv's name of the platform."""


def lacking(extra: str, python: str, system: str) -> str:
    """Return why an extra ("" for the package alone) cannot be installed from wheels, "" where it can."""
    command = ["uv", "pip", "compile", "--quiet", "--only-binary", ":all:", "--python-version", python]
    command += ["--python-platform", SYSTEMS[system], *(["--extra", extra] if extra else []), "pyproject.toml"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    )
    causes = [line.strip() for line in done.stderr.splitlines() if "no " in line and "wheels" in line]
    return "" if done.returncode == 0 else (causes or [done.stderr.strip() or f"exit status {done.returncode}"])[0]


def main() -> int:
    """Print one line per combination, and how many lack wheels."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = sys.argv[1:] or ["", *(name for name in project["optional-dependencies"] if name not in ("all", "dev"))]
    tried = list(product(extras, PYTHONS, SYSTEMS))
    told = []
    with ThreadPoolExecutor(8) as pool:  # they wait for the index, not for a processor
        for (extra, python, system), why in zip(tried, pool.map(lambda one: lacking(*one), tried), strict=True):
            told.append(why)
            print(f"{extra or 'the package'}, Python {python}, {system}: {why or 'wheels'}", flush=True)
    print(f"{len(tried)} combinations of {len(extras)} sets, {len(tried) - told.count('')} without wheels")
    return int(any(told))


if __name__ == "__main__":
    sys.exit(main())
