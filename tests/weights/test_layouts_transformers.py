"""VideoMAE and CLIP as the transformers package writes them: small random models give the same outputs as theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)

from internvideo.errors import WeightsError
from internvideo.models.clip import CLIPModel as OurCLIPModel
from internvideo.models.uniformerv2 import UniFormerV2, UniFormerV2Config
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEPretrain
from internvideo.weights.clip_import import from_clip
from internvideo.weights.layouts import load_layout, require_layout

SIZE = {"image_size": 32, "frames": 4}
HEADS = {"heads": 2, "decoder_heads": 1}
TOLERANCE = 1e-9
"""Both in double precision."""


def drawn(model: nn.Module) -> Any:
    """Every parameter moved away from where it starts, zeros and ones most of all, and the original's epsilon."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and not isinstance(model, CLIPModel):
            module.eps = 1e-6
    return model.double().eval()


def videomae(kind: type, **settings: object) -> Any:
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=256, decoder_hidden_size=64, decoder_num_attention_heads=1, decoder_num_hidden_layers=2,
        decoder_intermediate_size=128, num_labels=7, **settings,
    )  # fmt: skip
    return drawn(kind(config))


def image_text() -> Any:
    torch.manual_seed(0)
    tower = {"intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128}
    words = {"vocab_size": 60, "max_position_embeddings": 9, "bos_token_id": 58, "eos_token_id": 2, "pad_token_id": 0}
    picture = {"image_size": 32, "patch_size": 16}
    return drawn(CLIPModel(CLIPConfig(text_config=tower | words, vision_config=tower | picture, projection_dim=24)))


def clip_of(frames: int = 4) -> Tensor:
    return torch.randn(2, 3, frames, 32, 32, generator=torch.Generator().manual_seed(1)).double()


def load(state: dict[str, Tensor], overrides: Any = None, **options: Any) -> Any:
    layout = require_layout(state)
    heads = {"heads": 2, "text": {"heads": 2}} if "CLIP" in layout.name else HEADS
    return load_layout(layout, state, "file", overrides={**heads, **(overrides or {})}, **options).double().eval()


def older(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys of the files on the hub: they are older than the names that the package gives today."""
    renamed = {}
    for key, value in state.items():
        name = key.replace("attention.query.bias", "attention.q_bias").replace(
            "attention.value.bias", "attention.v_bias"
        )
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("names", [dict, older], ids=["today's keys", "older keys"])
@pytest.mark.parametrize("mean", [True, False], ids=["mean pooling", "first token"])
@torch.no_grad()
def test_classifier(mean: bool, names: Any) -> None:
    theirs = videomae(VideoMAEForVideoClassification, use_mean_pooling=mean)
    state = names(theirs.state_dict())
    assert any("q_bias" in key for key in state) is (names is older)
    layout = require_layout(state)
    assert (layout.name, layout.model) == ("transformers VideoMAE classifier", "videomae-s-classifier")
    ours = load(state, **SIZE)
    assert isinstance(ours, VideoMAEClassifier)
    video = clip_of()
    logits = theirs(video.transpose(1, 2)).logits
    assert (ours(video) - logits).abs().max() < TOLERANCE
    assert ours.config.pooling == ("mean" if mean else "first")


@pytest.mark.parametrize("names", [dict, older], ids=["today's keys", "older keys"])
@torch.no_grad()
def test_pretraining(names: Any) -> None:
    theirs = videomae(VideoMAEForPreTraining, use_mean_pooling=False)
    ours = load(names(theirs.state_dict()), **SIZE)
    assert isinstance(ours, VideoMAEPretrain)
    video, mask = clip_of(), torch.tensor([1, 0, 1, 1, 0, 1, 1, 0]).bool().expand(2, -1)
    expected = theirs(video.transpose(1, 2), bool_masked_pos=mask).logits
    assert (ours(video, mask) - expected).abs().max() < TOLERANCE
    made = load(names(theirs.state_dict()), **SIZE, num_classes=3)
    assert made(video).shape == (2, 3)


@torch.no_grad()
def test_encoder_alone() -> None:
    theirs = videomae(VideoMAEModel, use_mean_pooling=False)
    ours = load(theirs.state_dict(), **SIZE)
    video = clip_of()
    assert (ours(video) - theirs(video.transpose(1, 2)).last_hidden_state[:, 0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("names", [dict, older], ids=["today's keys", "older keys"])
@torch.no_grad()
def test_query_and_value_biases_arrive(names: Any) -> None:
    """A release of the package loaded them as zeros without a word."""
    theirs = videomae(VideoMAEForVideoClassification)
    state = names(theirs.state_dict())
    ours, video = load(state, **SIZE), clip_of()
    for i in range(2):
        attention = theirs.videomae.encoder.layer[i].attention.attention
        assert torch.equal(ours.blocks[i].attn.q_bias, attention.query.bias)
        assert torch.equal(ours.blocks[i].attn.v_bias, attention.value.bias)
        assert ours.blocks[i].attn.q_bias.abs().min() > 0
    right = ours(video)
    for name in ("q_bias", "v_bias"):  # with zeros in their place the answer is another one: this test would notice
        wrong = {
            key: torch.zeros_like(v) if key.endswith(f"attn.{name}") else v for key, v in ours.state_dict().items()
        }
        twin = load(state, **SIZE)
        twin.load_state_dict(wrong)
        assert (twin(video) - right).abs().max() > 1e-2, name


def test_a_file_that_lost_its_biases_is_refused() -> None:
    state = videomae(VideoMAEForVideoClassification).state_dict()
    biases = [key for key in state if key.endswith(("query.bias", "value.bias"))]
    zeros = state | {key: torch.zeros_like(state[key]) for key in biases}
    with pytest.raises(WeightsError, match="all query and value biases are zero"):
        load(zeros, **SIZE)
    without = {key: value for key, value in state.items() if key not in biases}
    with pytest.raises(WeightsError, match=r"4 missing \(blocks.0.attn.q_bias"):
        load(without, **SIZE)
    assert load(without, **SIZE, overrides={"qkv_bias": False}).blocks[0].attn.q_bias is None
    torch.manual_seed(0)
    fresh = VideoMAEForVideoClassification(VideoMAEConfig(hidden_size=64, num_attention_heads=1, intermediate_size=64))
    load(fresh.state_dict(), {"heads": 1})  # as drawn: all biases are zero, none was lost


def test_faults_are_named() -> None:
    state = videomae(VideoMAEForPreTraining, use_mean_pooling=False).state_dict()
    value = "videomae.encoder.layer.1.attention.attention.value.weight"
    with pytest.raises(WeightsError, match=r"missing.*blocks\.1\.attn\.qkv\.weight.*unused.*layer\.1.*query"):
        load({key: tensor for key, tensor in state.items() if key != value}, **SIZE)
    with pytest.raises(WeightsError, match=r"qkv\.weight.*unused"):
        load(state | {value: torch.randn(127, 128)}, **SIZE)
    with pytest.raises(WeightsError, match=r"1 unused \(classifier2.weight\)"):
        load(state | {"classifier2.weight": torch.zeros(2)}, **SIZE)
    with pytest.raises(WeightsError, match=r"unused \(videomae.encoder.layer.0.attention.attention.q_bias\)"):
        load(state | {"videomae.encoder.layer.0.attention.attention.q_bias": torch.ones(128)}, **SIZE)


@torch.no_grad()
def test_clip() -> None:
    theirs = image_text()
    state = dict(theirs.state_dict()) | {"text_model.embeddings.position_ids": torch.arange(9)[None]}
    layout = require_layout(state)
    assert layout.name == "transformers CLIP"
    ours = load(state)
    assert isinstance(ours, OurCLIPModel)
    image, ids = clip_of(1), torch.tensor([[58, 5, 59, 0], [58, 59, 0, 0], [58, 7, 8, 59]])
    expected = theirs(input_ids=ids, pixel_values=image[:, :, 0])
    scores = ours.similarity(ours.encode_video(image), ours.encode_text(ids))
    assert (scores - expected.logits_per_image).abs().max() < TOLERANCE
    seen = nn.functional.normalize(ours.encode_video(image), dim=-1)
    assert (seen - expected.image_embeds).abs().max() < TOLERANCE


def test_a_multimodal_encoder_starts_from_it_too() -> None:
    state = image_text().state_dict()
    config = UniFormerV2Config(
        image_size=32, patch_size=16, width=128, depth=2, heads=2, global_layers=(0, 1), num_classes=3
    )
    model = UniFormerV2(config)
    from_clip(model, state)
    clip = load(state)
    assert torch.equal(model.blocks[1].attn.qkv.weight, clip.visual.blocks[1].attn.qkv.weight)
