"""Weight-space ensembles, against the stored reference and their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS

from internvideo.models.video_language import interpolate_weights

STORED = GOLDENS / "tasks" / "classification" / "classification.npz"


def shares() -> list[str]:
    with np.load(STORED) as arrays:
        return sorted({name.split("/")[0].removeprefix("wse_out_") for name in arrays.files if "wse_out_" in name})


@pytest.mark.parity
@pytest.mark.parametrize("share", shares())
def test_stored_weight_space_ensemble(share: str) -> None:
    with np.load(STORED) as arrays:
        states = {
            prefix: {k.removeprefix(prefix): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith(prefix)}
            for prefix in ("wse_clip/", "wse_tuned/", f"wse_out_{share}/")
        }
    mixed = interpolate_weights(states["wse_clip/"], states["wse_tuned/"], float(share))
    expected = states[f"wse_out_{share}/"]
    assert expected
    assert set(mixed) == set(expected)
    assert all(torch.allclose(mixed[k], expected[k], atol=1e-6) for k in expected)


def test_weight_mixing_keeps_what_it_must() -> None:
    a = {"logit_scale": torch.tensor(1.0), "w": torch.zeros(2), "steps": torch.tensor(3)}
    b = {"logit_scale": torch.tensor(4.0), "w": torch.ones(2), "steps": torch.tensor(5), "visual.blocks.12.w": a["w"]}
    mixed = interpolate_weights({**a, "visual.blocks.12.w": b["w"]}, b, 0.25, r"logit_scale|visual\.blocks\.1[2-9]\..*")
    assert {k: v.tolist() for k, v in mixed.items()} == {
        "logit_scale": 4.0,
        "w": [0.75, 0.75],
        "steps": 5,
        "visual.blocks.12.w": [0.0, 0.0],
    }
    assert all(torch.equal(v, b[k]) for k, v in interpolate_weights(a, b, 0.0).items())
    with pytest.raises(ValueError, match="0 to 1"):
        interpolate_weights(a, b, 1.5)
    with pytest.raises(ValueError, match="differ"):
        interpolate_weights({"w": torch.zeros(3)}, b, 0.5)
