"""Files that are written while they are read: what came later is read by the next run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_extract import RULE, movie, small_model

from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import find_items


def test_features_of_a_file_that_grew_meanwhile_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still, grows = movie(tmp_path / "videos" / "still.mp4", 11), movie(tmp_path / "videos" / "grows.mp4", 20, 2)
    items, _ = find_items([still.parent])
    model = small_model()
    whole = model.encode_clips

    def encode(clips: torch.Tensor) -> torch.Tensor:
        with grows.open("ab") as file:
            file.write(b"\0")
        return whole(clips)

    monkeypatch.setattr(model, "encode_clips", encode)
    extract(items, model, tmp_path / "out", ExtractSettings(RULE))
    found = extract(items, small_model(), tmp_path / "out", ExtractSettings(RULE))
    assert (found.read, found.resumed) == (1, 1)
