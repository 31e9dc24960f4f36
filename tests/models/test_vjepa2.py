"""V-JEPA 2: a random model of transformers, loaded from its folder, has equal tokens; the protocol works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from internvideo import load
from internvideo.errors import WeightsError
from internvideo.models.external.vjepa2 import VJEPA2Config

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # theirs is untyped
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs is untyped

SMALL: dict[str, Any] = {
    "crop_size": 32, "frames_per_clip": 8, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "mlp_ratio": 2.0, "pred_hidden_size": 48, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 4,
}  # fmt: skip


def saved(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    theirs = transformers.VJEPA2Model(transformers.VJEPA2Config(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize(
    "change",
    [{}, {"num_attention_heads": 6}, {"qkv_bias": False}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1},
     {"tubelet_size": 4}, {"patch_size": 8}, {"crop_size": 64}],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_tokens_are_equal_in_double_precision(change: dict[str, Any], tmp_path: Path) -> None:
    theirs = saved(tmp_path, **change).double()
    ours = load(tmp_path, device="cpu")
    assert ours.name == "vjepa2-l"
    size = theirs.config.crop_size
    video = torch.randn(2, 3, 8, size, size, generator=torch.Generator().manual_seed(1)).double()
    wanted = theirs.encoder(pixel_values_videos=video.transpose(1, 2)).last_hidden_state
    found = ours.module.double().tokens(video)
    assert (found - wanted).abs().max() < 1e-7  # our angles are float32
    again = load(ours.save_pretrained(tmp_path / "own"), device="cpu")
    assert torch.equal(again.module.double().tokens(video), found)


@torch.no_grad()
def test_the_encoder_of_a_classifier_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(**SMALL, num_pooler_layers=1)
    theirs = transformers.VJEPA2ForVideoClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, video = load(tmp_path, device="cpu"), torch.randn(2, 3, 8, 32, 32)
    wanted = theirs.vjepa2(pixel_values_videos=video.transpose(1, 2), skip_predictor=True).last_hidden_state
    assert (ours.module.tokens(video) - wanted).abs().max() < 1e-4
    assert "tensors of layers that the model does not have" in ours.metadata["left_out"]


def test_it_embeds_like_every_encoder(tmp_path: Path) -> None:
    saved(tmp_path)
    model = load(tmp_path, device="cpu")
    frames = torch.randint(0, 255, (9, 40, 50, 3), dtype=torch.uint8)
    assert model.encode_video([frames.numpy()]).shape == (1, 96)
    assert model.preprocessing.resize == 36
    assert "left_out" in model.metadata


def test_a_config_at_odds_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 96', '"hidden_size": 64'))
    with pytest.raises(WeightsError, match="hidden_size 64"):
        load(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="rotations over three axes need 6"):
        VJEPA2Config(width=64, heads=16)
