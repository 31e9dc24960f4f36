"""Every entry of the catalog from its official annotations to its figures: what sees videos alone, or walks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark_walk import LANGUAGE, WALKED, check, walk
from internvideo.data.catalog import BENCHMARKS


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in WALKED if BENCHMARKS[name].measure.evaluation not in LANGUAGE])
def test_an_entry_is_walked_from_annotations_to_figures(name: str, tmp_path: Path) -> None:
    check(name, walk(name, tmp_path))
