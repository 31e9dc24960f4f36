"""The stored values of the classification golden that are no metrics: layer-wise decay and mixed weights."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS

from internvideo.models.video_language import interpolate_weights
from internvideo.training.optimizer import layer_scale

FOLDER = GOLDENS / "tasks" / "classification"
DECAY: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text("utf-8"))["layer_decay"]


def stored() -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "classification.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if name.startswith("wse_")}


OUTPUTS = sorted(name for name in stored() if name.startswith("wse_out_"))


@pytest.mark.parity
@pytest.mark.parametrize("layer", range(len(DECAY["scale_by_layer_id"])))
def test_layer_decay(layer: int) -> None:
    last = DECAY["num_layers"] + 1  # the head and the final norm
    assert len(DECAY["scale_by_layer_id"]) == last + 1
    assert layer_scale(DECAY["decay"], layer, last) == pytest.approx(DECAY["scale_by_layer_id"][layer], abs=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("name", OUTPUTS)
def test_weight_space_ensemble(name: str) -> None:
    match = re.fullmatch(r"wse_out_([\d.]+)/(.+)", name)
    assert match is not None
    tensors = stored()
    clip, tuned = (
        {key.split("/", 1)[1]: value for key, value in tensors.items() if key.startswith(prefix)}
        for prefix in ("wse_clip/", "wse_tuned/")
    )
    mixed = interpolate_weights(clip, tuned, float(match[1]))
    assert set(mixed) == set(tuned)
    torch.testing.assert_close(mixed[match[2]], tensors[name], rtol=0, atol=1e-6)
