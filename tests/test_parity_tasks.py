"""Nothing that is stored of the tasks is skipped: every folder and file is one that a parity test reads."""

from __future__ import annotations

import pytest
from goldens_folder import GOLDENS, SAMPLES

pytestmark = pytest.mark.parity

OPEN = frozenset(("annotations", "ava_frame_map", "tal_map"))
"""Folders whose tests take whatever cases lie there; `annotations`: tests/test_parity_annotations.py."""
KNOWN = sorted(path.name for path in (SAMPLES / "tasks").iterdir() if path.is_dir())


def test_every_folder_is_read() -> None:
    there = sorted(path.name for path in (GOLDENS / "tasks").iterdir() if path.is_dir())
    assert there == KNOWN


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in OPEN])
def test_every_file_is_read(name: str) -> None:
    there, known = ({path.name for path in (root / "tasks" / name).iterdir()} for root in (GOLDENS, SAMPLES))
    assert there == known
