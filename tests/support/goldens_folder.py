"""Where the stored reference tensors and results are; a missing folder is a failure, never a skip."""

from __future__ import annotations

import os
from pathlib import Path

GOLDENS = Path(os.environ.get("INTERNVIDEO_GOLDENS", Path(__file__).parents[1] / "goldens"))
if not GOLDENS.is_dir():
    raise FileNotFoundError(f"INTERNVIDEO_GOLDENS: no folder {GOLDENS}; copy the reference goldens there")

SAMPLES = Path(__file__).parents[1] / "goldens"
"""The repository's own copy, for tests that know its values; parity tests read GOLDENS, whatever lies there."""
