"""SigLIP's image encoder: a random model of transformers, loaded from its folder, has equal patches and vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from internvideo import load
from internvideo.errors import WeightsError

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # theirs is untyped
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs is untyped

SMALL: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEXT = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


def saved(folder: Path, *, whole: bool = False, **changes: Any) -> Any:
    torch.manual_seed(0)
    vision = {**SMALL, **changes}
    theirs: Any = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision))
    if whole:
        text = {**TEXT, "projection_size": 48, "bos_token_id": 1, "eos_token_id": 2}
        theirs = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.eval().save_pretrained(folder)
    return theirs.vision_model if whole else theirs


@pytest.mark.parametrize("whole", [True, False], ids=["SiglipModel", "SiglipVisionModel"])
@pytest.mark.parametrize(
    "change",
    [{}, {"num_attention_heads": 6}, {"hidden_size": 40}, {"hidden_act": "gelu"}, {"layer_norm_eps": 0.1},
     {"image_size": 35}],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_frames_have_equal_outputs_in_double_precision(change: dict[str, Any], whole: bool, tmp_path: Path) -> None:
    theirs = saved(tmp_path, whole=whole, **change).double()
    ours = load(tmp_path, device="cpu")
    assert ours.name == "siglip-b16"
    assert ("left_out" in ours.metadata) == whole
    size = theirs.config.image_size
    video = torch.randn(2, 3, 5, size, size, generator=torch.Generator().manual_seed(1)).double()
    frames = video.transpose(1, 2).flatten(0, 1)
    wanted = theirs(pixel_values=frames)
    module: Any = ours.module.double()
    assert (module.encode_frames(video) - wanted.last_hidden_state).abs().max() < 1e-12
    vectors = wanted.pooler_output.view(2, 5, -1)
    assert (module.features(video[:, :, :1]) - vectors[:, 0]).abs().max() < 1e-12  # of one frame its own
    lengths = vectors.norm(dim=-1, keepdim=True)
    assert (module.features(video) - (vectors / lengths).mean(1) * lengths.mean(1)).abs().max() < 1e-12
    again: Any = load(ours.save_pretrained(tmp_path / "own"), device="cpu").module
    assert torch.equal(again.double().tokens(video), module.tokens(video))


def test_it_embeds_like_every_encoder(tmp_path: Path) -> None:
    saved(tmp_path)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(tmp_path)
    model = load(tmp_path, device="cpu")
    frames = torch.randint(0, 255, (9, 40, 50, 3), dtype=torch.uint8)
    assert model.encode_video([frames.numpy()]).shape == (1, 48)
    read = model.preprocessing
    assert (read.resize, read.keep_aspect, read.resize_backend) == (32, False, "pil")
    assert torch.equal(model.module.normalize.mean.flatten(), torch.full((3,), 0.5))


def test_what_is_not_read_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "config.json"
    told = json.loads(path.read_text())
    for change, text in (
        ({"image_size": 48}, "image_size 48"),
        ({"model_type": "clip"}, "siglip or siglip_vision_model"),
    ):
        path.write_text(json.dumps({**told, **change}))
        with pytest.raises(WeightsError, match=text):
            load(tmp_path, device="cpu")
    aspect = transformers.Siglip2VisionConfig(**{**SMALL, "num_patches": 16})
    transformers.Siglip2VisionModel(aspect).save_pretrained(tmp_path / "naflex")
    with pytest.raises(WeightsError, match=r"'siglip2_vision_model' .* is not read"):
        load(tmp_path / "naflex", device="cpu")
    (tmp_path / "naflex" / "config.json").unlink()
    with pytest.raises(WeightsError, match="NaFlex"):
        load(tmp_path / "naflex", device="cpu")
