"""UniFormerV2: sizes, identity with CLIP, what feeds where, decay groups, stochastic depth."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from shapes import shapes_only
from torch import Tensor, nn

from internvideo.errors import WeightsError
from internvideo.models.block import DropPath
from internvideo.models.clip import CLIPConfig, CLIPModel, TextConfig
from internvideo.models.multimodal_sizes import MULTIMODAL_MODELS
from internvideo.models.uniformerv2 import UniFormerV2, UniFormerV2Config
from internvideo.weights.clip_import import from_clip
from internvideo.weights.state import load_reference

SMALL = UniFormerV2Config(
    image_size=32,
    patch_size=16,
    frames=4,
    width=24,
    depth=3,
    heads=2,
    global_layers=(1, 2),
    num_classes=5,
)
SAMPLE = replace(SMALL, image_size=64, patch_size=8, width=128, depth=4, heads=4, global_layers=(2, 3))


def make(config: UniFormerV2Config = SMALL, *, jitter: float = 0.1) -> UniFormerV2:
    torch.manual_seed(0)
    model = UniFormerV2(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * jitter)
    return model


def clips(config: UniFormerV2Config = SMALL, batch: int = 2, frames: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, frames, config.image_size, config.image_size, generator=generator)


def clip_model(config: UniFormerV2Config = SMALL) -> CLIPModel:
    torch.manual_seed(2)
    text = TextConfig(width=16, heads=2, layers=1, vocab_size=30, context_length=7, mask_embedding=False)
    model = CLIPModel(
        CLIPConfig(config.image_size, config.patch_size, config.width, config.depth, config.heads, text, 12)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", [n for n, entry in MULTIMODAL_MODELS.items() if entry.million_parameters])
def test_parameter_count_of_a_named_size(name: str) -> None:
    entry = MULTIMODAL_MODELS[name]
    with shapes_only():
        model = entry.build(entry.config)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(entry.million_parameters, abs=0.0011)


def test_sample_size_runs_and_learns() -> None:
    model = make(SAMPLE).train()
    model(clips(SAMPLE)).square().mean().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert silent == set()


def test_features_equal_clips_frame_average() -> None:
    """At initialization from CLIP the feature is half the mean class token of CLIP's last layer."""
    clip = clip_model()
    torch.manual_seed(3)
    model = UniFormerV2(SMALL).eval()
    from_clip(model, clip.state_dict())
    video = clips()
    expected = 0.5 * clip.visual.class_tokens(video).mean(dim=1)
    assert torch.allclose(model.features(video), expected, atol=1e-6)
    assert torch.equal(model.stages(video).query, torch.zeros(2, 1, 24))


def test_local_blocks_and_three_frame_kernel_start_as_clip() -> None:
    """Local blocks start as the identity, and the inflated kernel reads the middle frame of its three."""
    clip = clip_model()
    model = UniFormerV2(replace(SMALL, local_blocks=2, temporal_downsample=True)).eval()
    from_clip(model, clip.state_dict())
    video = clips()
    expected = 0.5 * clip.visual.class_tokens(video[:, :, ::2]).mean(dim=1)
    assert torch.allclose(model.features(video), expected, atol=1e-6)


def test_any_number_of_frames_runs() -> None:
    model = make()
    assert model(clips(frames=1)).shape == model(clips(frames=7)).shape == (2, 5)
    assert make(replace(SMALL, temporal_downsample=True, local_blocks=1)).stages(clips(frames=6)).all_tokens.shape == (
        2,
        3,
        5,
        24,
    )


def test_stages_hold_the_layers_outputs_and_the_query_does_not_feed_back() -> None:
    model = make()
    video = clips()
    staged = model.stages(video)
    assert [tuple(tokens.shape) for tokens in staged.tokens] == [(2, 4 * 5, 24)] * 2
    assert torch.equal(staged.tokens[-1], staged.all_tokens.flatten(1, 2))
    assert torch.equal(staged.class_mean, staged.all_tokens[:, :, 0].mean(1))
    with torch.no_grad():
        model.query.add_(1.0)
        for parameter in model.global_blocks.parameters():
            parameter.mul_(2.0)
    moved = model.stages(video)
    assert torch.equal(staged.all_tokens, moved.all_tokens)
    assert not torch.allclose(staged.query, moved.query)


def test_order_of_frames_matters_only_with_temporal_parts() -> None:
    """The position term of the global blocks is the only part that sees order without local blocks."""
    model, video = make(), clips()
    assert not torch.allclose(model(video), model(video.flip(2)), atol=1e-5)
    with torch.no_grad():
        for block in model.global_blocks:
            block.position.weight[:, :, ::2] = 0.0  # type: ignore[union-attr, index]  # a GlobalBlock
    assert torch.allclose(model(video), model(video.flip(2)), atol=1e-5)


def test_frozen_variant_is_the_query_alone() -> None:
    model = make(replace(SMALL, balance=False))
    staged = model.stages(clips())
    assert model.balance is None
    assert torch.equal(model.features(clips()), staged.query.flatten(1))


def test_pixels_are_normalised_to_the_published_range() -> None:
    video = torch.full((1, 3, 1, 2, 2), 255, dtype=torch.uint8)
    assert torch.allclose(make().normalize(video), torch.tensor((1 - 0.45) / 0.225), atol=1e-6)


def test_drop_path_rates_and_dimension() -> None:
    model = UniFormerV2(replace(SMALL, backbone_drop_path=0.2, drop_path=0.4, local_blocks=1))
    backbone = [block.drop_path for block in model.blocks]
    assert [drop.rate for drop in backbone] == pytest.approx([0.0, 0.1, 0.2])  # type: ignore[union-attr]  # DropPath
    stages = [block.block.drop_path for block in model.global_blocks]  # type: ignore[union-attr]  # GlobalBlock
    assert [drop.rate for drop in stages] == pytest.approx([0.0, 0.4])  # type: ignore[union-attr]  # DropPath
    positions = DropPath(0.5, 1).train()
    torch.manual_seed(0)
    out = positions(torch.ones(3, 200, 2))
    assert torch.equal(out[0], out[1]), "a dropped position is dropped for the whole batch"
    assert set(out.unique().tolist()) == {0.0, 2.0}


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients, statistics = [], []
    for checkpointing in (False, True):
        model = make(replace(SMALL, local_blocks=2, head_dropout=0.0, mlp_dropout=0.0)).train()
        model.checkpointing = checkpointing
        model(clips()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        statistics.append(dict(model.named_buffers()))
    for plain, saved in zip(*gradients, strict=True):
        assert plain is not None
        assert saved is not None
        assert torch.allclose(plain, saved, rtol=1e-5, atol=1e-6)
    assert statistics[1]["local1.0.norm.num_batches_tracked"] == 1
    assert all(torch.equal(value, statistics[1][name]) for name, value in statistics[0].items())


def test_layer_ids_and_decay() -> None:
    model = make(replace(SMALL, local_blocks=2))
    ids = {name: model.get_layer_id(name) for name, _ in model.named_parameters()}
    assert model.max_layer_id == 4
    assert ids["stem.conv.weight"] == ids["stem.positional_embedding"] == 0
    assert ids["blocks.0.attn.qkv.weight"] == ids["local1.0.norm.weight"] == 1
    assert ids["blocks.2.norm1.weight"] == 3
    assert {ids[n] for n in ("query", "balance", "global_blocks.0.position.bias", "proj.linear.weight")} == {4}
    exempt = {n for n, p in model.named_parameters() if model.no_weight_decay(n, p)}
    assert {"balance", "stem.class_embedding", "local1.0.norm.weight", "blocks.0.attn.qkv.bias"} <= exempt
    assert not {"query", "stem.positional_embedding", "global_blocks.0.position.weight"} & exempt


def test_initial_widths_of_a_scratch_model() -> None:
    torch.manual_seed(0)
    model = UniFormerV2(SAMPLE)
    block = model.blocks[0]
    assert block.attn.qkv.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)  # type: ignore[union-attr, arg-type]  # Block
    assert block.mlp.fc2.weight.std().item() == pytest.approx(128**-0.5 / math.sqrt(8), rel=0.05)  # type: ignore[union-attr, arg-type]  # Block
    assert not any(bool(p.any()) for n, p in model.named_parameters() if n.endswith(("attn.proj.bias", "balance")))


def test_settings_that_do_not_fit_are_refused() -> None:
    for wrong in ({"global_layers": (2, 1)}, {"global_layers": ()}, {"global_layers": (1, 3)}, {"local_blocks": 3}):
        with pytest.raises(ValueError, match=r"global layers|local_blocks 3"):
            replace(SMALL, **wrong)  # type: ignore[arg-type]  # the mistakes under test
    with pytest.raises(ValueError, match="expected a video"):
        make()(torch.zeros(1, 3, 4, 16, 16))
    with pytest.raises(ValueError, match="multiple"):
        UniFormerV2(replace(SMALL, image_size=30))


# --- CLIP import ---


def public_layout(clip: CLIPModel) -> dict[str, Tensor]:
    """The state dict as CLIP's own checkpoints name it."""
    pairs = [
        ("visual.stem.conv.weight", "visual.conv1.weight"),
        ("visual.stem.norm.", "visual.ln_pre."),
        ("visual.stem.", "visual."),
        ("visual.blocks.", "visual.transformer.resblocks."),
        ("visual.norm.", "visual.ln_post."),
        ("visual.projection", "visual.proj"),
        ("text.blocks.", "transformer.resblocks."),
        ("text.norm.", "ln_final."),
        ("text.projection", "text_projection"),
        ("text.", ""),
    ]
    leaves = [
        (".attn.qkv.weight", ".attn.in_proj_weight"),
        (".attn.qkv.bias", ".attn.in_proj_bias"),
        (".attn.proj.", ".attn.out_proj."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
        (".norm1.", ".ln_1."),
        (".norm2.", ".ln_2."),
    ]
    public = {}
    for name, value in clip.state_dict().items():
        key = name
        for ours, theirs in pairs:
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
                break
        for ours, theirs in leaves:
            key = key.replace(ours, theirs)
        public[key] = value.squeeze(2) if key == "visual.conv1.weight" else value
    return public | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(7)}


def test_public_clip_layout_loads_like_ours() -> None:
    clip = clip_model()
    public = public_layout(clip)
    assert public["visual.conv1.weight"].dim() == 4
    first, second, fresh = (UniFormerV2(SMALL).eval() for _ in range(3))
    report = from_clip(first, public)
    from_clip(second, clip.state_dict())
    assert torch.equal(first.features(clips()), second.features(clips()))
    assert {"query", "balance", "proj.linear.weight"} <= set(report.newly_initialized)
    assert "visual.projection" in report.dropped
    assert set(report.filled) | set(report.newly_initialized) == set(first.state_dict())
    twin = CLIPModel(clip.config).eval()
    load_reference(twin, public)
    assert torch.equal(twin.encode_video(clips()), clip.encode_video(clips()))
    assert not torch.equal(fresh.features(clips()), first.features(clips()))


def test_clip_import_is_strict() -> None:
    state = public_layout(clip_model())
    model = UniFormerV2(SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lacking = {k: v for k, v in state.items() if k != "visual.ln_pre.bias"}
    for wrong, told in (
        (lacking, r"missing stem\.norm\.bias"),
        ({**state, "visual.surprise": torch.zeros(1)}, "unknown tensor visual.surprise"),
        ({**state, "visual.transformer.resblocks.3.ln_1.bias": torch.zeros(24)}, "the model has no"),
        ({**state, "visual.positional_embedding": torch.zeros(11, 24)}, "positional_embedding"),
        ({**state, "visual.class_embedding": torch.full((24,), math.nan)}, "finite"),
    ):
        with pytest.raises(WeightsError, match=told):
            from_clip(model, wrong)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="does not start from CLIP"):
        from_clip(nn.Linear(1, 1), state)
