"""The clips that most tests of the loader read; no test changes them."""

from __future__ import annotations

import pytest
from grey_clips import grey_clips

from internvideo.data.manifest import Manifest


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return grey_clips(tmp_path_factory.mktemp("clips"))
