"""`convert --set`: settings that tensors do not tell travel with the file."""

from __future__ import annotations

import json
from pathlib import Path

import published_keys as keys
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from internvideo.cli.main import app
from internvideo.errors import RecipeError, WeightsError
from internvideo.inference.loading import load
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.weights.convert import convert


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return keys.numbers(keys.videomae_classifier(48, 1, 96, 3))


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_heads_given_once_are_known_to_every_reader(
    tmp_path: Path, state: dict[str, torch.Tensor], ending: str
) -> None:
    source, output = tmp_path / f"odd{ending}", tmp_path / "told.safetensors"
    torch.save(state, source) if ending == ".pth" else save_file(state, source)
    arguments = ["convert", str(source), "-o", str(output), "--set", "heads=3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    model = load(output, device="cpu")
    assert isinstance(model.module, VideoMAEClassifier)
    assert model.module.config.heads == 3
    assert json.loads(output.with_suffix(".json").read_text())["tensors"] == len(state)
    model = load(output, device="cpu", overrides={"heads": 4})  # what a caller says stands above the file
    assert isinstance(model.module, VideoMAEClassifier)
    assert model.module.config.heads == 4


def test_without_them_the_way_is_told(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match="convert --set heads="):
        load(tmp_path / "odd.safetensors", device="cpu")
    with pytest.raises(WeightsError, match="would be replaced"):
        convert(tmp_path / "odd.safetensors", overrides={"heads": 3})
    with pytest.raises(WeightsError, match="nothing to convert"):
        convert(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("text", ["[3]", "{", "null"])
def test_damaged_settings_are_one_line(tmp_path: Path, state: dict[str, torch.Tensor], text: str) -> None:
    save_file(state, tmp_path / "odd.safetensors", {"overrides": text})
    with pytest.raises(WeightsError, match="settings of the model by name"):
        load(tmp_path / "odd.safetensors", device="cpu")


def test_unknown_settings_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "odd.safetensors", {"overrides": '{"heads": 3, "haeds": 4}'})
    with pytest.raises(RecipeError, match="haeds"):
        load(tmp_path / "odd.safetensors", device="cpu")
