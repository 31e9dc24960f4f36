"""VideoMAE: what is embedded, encoded, predicted and initialized."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from shapes import shapes_only
from small_videomae import DEMO, TINY, clip, mask
from torch import Tensor, nn

from internvideo.errors import RecipeError
from internvideo.model_table import MODELS, create_model
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, VideoMAEPretrain
from internvideo.objectives.masking import tube_mask
from internvideo.objectives.reconstruction import pixel_targets, reconstruction_loss


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("videomae")])
def test_parameter_counts_of_the_named_sizes(name: str) -> None:
    entry = MODELS[name]
    with shapes_only():
        model = entry.build(entry.config)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(entry.million_parameters or 1012.681, abs=5.1e-4)


@pytest.mark.parametrize(
    ("name", "overrides", "millions"),
    [
        ("videomae-b-pretrain", {"decoder_depth": 8}, 101.307),
        ("videomae-b-pretrain", {"decoder_depth": 12}, 108.404),
        ("videomae-l-pretrain", {"decoder_depth": 12}, 342.997),
        ("videomae-h-pretrain", {"decoder_depth": 8}, 658.267),
        ("videomae-s-classifier", {"num_classes": 710}, 22.153),
        ("videomae-b-classifier", {"num_classes": 710}, 86.773),
        ("videomae-l-classifier", {"num_classes": 710}, 304.588),
        ("videomae-h-classifier", {"num_classes": 710}, 632.517),
    ],
)
def test_parameter_counts_of_variants(name: str, overrides: dict[str, object], millions: float) -> None:
    with shapes_only():
        model = create_model(name, overrides)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=5.1e-4)


@pytest.mark.parametrize(("size", "millions"), [("s", 21.880), ("b", 86.227), ("l", 303.861), ("h", 631.607)])
def test_parameter_counts_of_the_encoders(size: str, millions: float) -> None:
    with shapes_only():
        model = create_model(f"videomae-{size}-pretrain")
    assert isinstance(model, VideoMAEPretrain)
    assert sum(p.numel() for p in model.encoder.parameters()) / 1e6 == pytest.approx(millions, abs=5.1e-4)


def test_small_sizes_learn() -> None:
    model = VideoMAEPretrain(DEMO)
    video, hidden = clip(DEMO), tube_mask(2, DEMO.grid, 0.9, torch.Generator().manual_seed(0))
    target = pixel_targets(video * model.normalize.std + model.normalize.mean, hidden, DEMO.tubelet, DEMO.patch_size)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = reconstruction_loss(model(video, hidden), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# --- pretraining model -----------------------------------------------------------------------------------------------


class Spy(nn.Module):
    """Counts the rows that a layer is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, []

    def forward(self, *args: Tensor) -> Tensor:
        self.rows.append(args[0].shape[1])
        return self.inner(*args)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def test_only_visible_tokens_are_embedded_and_encoded_and_only_masked_ones_predicted() -> None:
    model = VideoMAEPretrain(TINY)
    model.encoder.patch_embed.proj = embedded = Spy(model.encoder.patch_embed.proj)  # type: ignore[assignment]
    model.encoder.blocks[0] = encoded = Spy(model.encoder.blocks[0])
    model.decoder.head = predicted = Spy(model.decoder.head)  # type: ignore[assignment]
    hidden = mask()
    masked = int(hidden[0].sum())
    out = model(clip(), hidden)
    assert embedded.rows == encoded.rows == [TINY.num_tokens - masked]
    assert predicted.rows == [masked]
    assert out.shape == (2, masked, TINY.values_per_token)


def test_a_masked_pixel_changes_nothing_and_a_visible_one_does() -> None:
    model = VideoMAEPretrain(TINY).eval()
    hidden, video = mask(batch=1), clip(batch=1)
    cubes = hidden.view(1, *TINY.grid).repeat_interleave(2, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)[:, None]
    noise = torch.randn_like(video)
    with torch.no_grad():
        tokens, out = model.encode(video, hidden), model(video, hidden)
        changed = torch.where(cubes, noise, video)
        assert torch.equal(model.encode(changed, hidden), tokens)
        assert torch.equal(model(changed, hidden), out)
        assert not torch.equal(model.encode(torch.where(cubes, video, noise), hidden), tokens)


def test_visible_tokens_come_in_ascending_order_with_their_own_positions() -> None:
    model = VideoMAEPretrain(dataclasses.replace(TINY, depth=1)).eval()
    model.encoder.blocks = nn.ModuleList()
    hidden, video = mask(), clip()
    full = model.encoder.norm(model.encoder.embed(video))
    expected = torch.stack([tokens[~row] for tokens, row in zip(full, hidden, strict=True)])
    torch.testing.assert_close(model.encode(video, hidden), expected)


def test_predictions_follow_the_masked_tokens() -> None:
    """With no decoder layers a prediction is a function of its own position: the order shows."""
    model = VideoMAEPretrain(TINY).eval()
    model.decoder.blocks = nn.ModuleList()
    hidden = mask()
    every = model.decoder.head(model.decoder.norm(model.mask_token + model.decoder.pos_embed))[0]
    expected = torch.stack([every[row] for row in hidden])
    torch.testing.assert_close(model(clip(), hidden), expected)


def test_the_last_layer_may_work_for_the_last_tokens_only() -> None:
    block = VideoMAEPretrain(dataclasses.replace(TINY, layer_scale=0.5)).decoder.blocks[0].double()
    tokens = torch.randn(2, 9, TINY.decoder_width, dtype=torch.float64)
    for last in (9, 4):
        torch.testing.assert_close(block(tokens, num_queries=last), block(tokens)[:, -last:], rtol=0, atol=1e-12)


def test_without_masked_tokens_all_are_predicted() -> None:
    model = VideoMAEPretrain(TINY)
    assert model(clip(), torch.zeros(2, TINY.num_tokens, dtype=torch.bool)).shape == (
        2,
        TINY.num_tokens,
        TINY.values_per_token,
    )


def test_the_count_may_be_given() -> None:
    model = VideoMAEPretrain(TINY).eval()
    hidden, video = mask(), clip()
    kept = TINY.num_tokens - int(hidden[0].sum())
    assert torch.equal(model(video, hidden, num_visible=kept), model(video, hidden))
    with pytest.raises(ValueError, match="every sample must have"):
        model(video, hidden, num_visible=kept + 1)


def test_uneven_masks_and_other_sizes_are_refused() -> None:
    model = VideoMAEPretrain(TINY)
    hidden = mask()
    hidden[0] = ~hidden[0]
    with pytest.raises(ValueError, match="every sample must have"):
        model(clip(), hidden)
    with pytest.raises(ValueError, match="every sample must mask"):
        pixel_targets(clip(), hidden, 2, 4)
    with pytest.raises(ValueError, match="expected a video"):
        model(clip()[:, :, :2], mask())


def test_gradients_are_those_of_finite_differences() -> None:
    small = dataclasses.replace(TINY, image_size=8, width=8, depth=1, decoder_width=8, decoder_depth=1)
    model = VideoMAEPretrain(small).double()
    video, hidden = clip(small, 1).double().requires_grad_(), mask(small, 1, 0.5)

    target = pixel_targets(video, hidden, 2, 4).clone()

    def loss(pixels: Tensor) -> Tensor:
        return reconstruction_loss(model(pixels, hidden), target)

    assert torch.autograd.gradcheck(loss, (video,), atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    model = VideoMAEPretrain(TINY) if kind == "pretrain" else VideoMAEClassifier(TINY)
    video = clip()
    seen = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        assert model.checkpointing is checkpointing
        model.zero_grad()
        out = model(video, mask()) if kind == "pretrain" else model.features(video)
        out.square().sum().backward()
        seen.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*seen, strict=True):
        torch.testing.assert_close(again, plain)


# --- classifier ------------------------------------------------------------------------------------------------------


def test_mean_and_first_token_pooling() -> None:
    tokens = torch.randn(2, TINY.num_tokens, TINY.width)
    mean, first = (VideoMAEClassifier(dataclasses.replace(TINY, pooling=p)) for p in ("mean", "first"))
    torch.testing.assert_close(mean.pool(tokens), F.layer_norm(tokens.mean(1), (TINY.width,), eps=1e-6))
    torch.testing.assert_close(first.pool(tokens), F.layer_norm(tokens, (TINY.width,), eps=1e-6)[:, 0])
    assert not any(name.startswith("norm.") for name in mean.state_dict())
    assert not any(name.startswith("fc_norm.") for name in first.state_dict())


def test_the_classifier_is_its_parts() -> None:
    model = VideoMAEClassifier(TINY).eval()
    video = clip()
    tokens = model.embed(video)
    for block in model.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(model(video), model.head(model.pool(tokens)))
    assert VideoMAEClassifier(dataclasses.replace(TINY, num_classes=0))(video).shape == (2, TINY.width)


def test_head_dropout_and_drop_path_act_in_training_only() -> None:
    model = VideoMAEClassifier(dataclasses.replace(TINY, head_dropout=0.5, drop_path=0.5, init_scale=1.0))
    video = clip()
    assert not torch.equal(model(video), model(video))
    model.eval()
    assert torch.equal(model(video), model(video))
    assert [block.config.drop_path for block in model.blocks] == [0.0, 0.5]


def test_layer_ids_and_weight_decay() -> None:
    model = VideoMAEClassifier(dataclasses.replace(TINY, learnable_positions=True, layer_scale=0.1))
    ids = {name: model.get_layer_id(name) for name, _ in model.named_parameters()}
    assert model.max_layer_id == 3
    assert {ids["pos_embed"], ids["patch_embed.proj.weight"], ids["patch_embed.proj.bias"]} == {0}
    assert (ids["blocks.0.gamma_1"], ids["blocks.1.mlp.fc2.weight"]) == (1, 2)
    assert ids["fc_norm.weight"] == ids["head.bias"] == 3
    decayed = {name for name, value in model.named_parameters() if not model.no_weight_decay(name, value)}
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    pretrain = VideoMAEPretrain(dataclasses.replace(TINY, learnable_positions=True))
    free = {name for name, value in pretrain.named_parameters() if pretrain.no_weight_decay(name, value)}
    assert {"mask_token", "encoder.pos_embed", "encoder.blocks.0.attn.q_bias"} <= free
    assert "encoder_to_decoder.weight" not in free


# --- initialization --------------------------------------------------------------------------------------------------

EVERYTHING = dataclasses.replace(TINY, learnable_positions=True, layer_scale=0.1)


@pytest.mark.parametrize("kind", [VideoMAEPretrain, VideoMAEClassifier])
@pytest.mark.parametrize("config", [EVERYTHING, dataclasses.replace(EVERYTHING, pooling="first")])
def test_initialisation_writes_every_parameter(
    kind: type[VideoMAEPretrain] | type[VideoMAEClassifier], config: VideoMAEConfig
) -> None:
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.reset_parameters()
    assert not [name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())]


def test_pretraining_initialisation() -> None:
    model = VideoMAEPretrain(dataclasses.replace(DEMO, layer_scale=0.1))
    state = dict(model.named_parameters())
    for name, value in state.items():
        if name in ("mask_token", "encoder_to_decoder.weight") or "patch_embed" in name:
            continue
        if "gamma" in name:
            assert torch.equal(value, torch.full_like(value, 0.1)), name
        elif value.dim() == 1:
            expected = torch.ones_like(value) if "norm" in name and "weight" in name else torch.zeros_like(value)
            assert torch.equal(value, expected), name
        else:
            bound = math.sqrt(6 / sum(value.shape))
            assert bound * 0.98 < value.abs().max().item() <= bound, name
            assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    for name, fan_in in (
        ("encoder.patch_embed.proj.weight", DEMO.values_per_token),
        ("encoder_to_decoder.weight", DEMO.width),
    ):
        assert 0.98 / math.sqrt(fan_in) < state[name].abs().max().item() <= 1 / math.sqrt(fan_in), name
    assert state["encoder.patch_embed.proj.bias"].abs().max().item() > 0
    token = VideoMAEPretrain(dataclasses.replace(DEMO, decoder_width=2048)).mask_token
    assert 0.0195 < token.abs().max().item() <= 0.02
    assert token.std().item() == pytest.approx(0.02 * 0.5396, rel=0.05)  # a normal cut at one std


def test_classifier_initialisation() -> None:
    model = VideoMAEClassifier(dataclasses.replace(DEMO, num_classes=400, init_scale=0.001))
    for name, value in model.named_parameters():
        if "patch_embed" in name:
            continue
        if value.dim() == 1:
            expected = torch.ones_like(value) if "norm" in name and "weight" in name else torch.zeros_like(value)
            assert torch.equal(value, expected), name
        else:
            scale = 0.001 if name == "head.weight" else 1.0
            assert value.std().item() == pytest.approx(0.02 * scale, rel=0.05), name
    bound = 1 / math.sqrt(DEMO.values_per_token)
    assert 0.98 * bound < model.patch_embed.proj.weight.abs().max().item() <= bound
    zero = VideoMAEClassifier(dataclasses.replace(DEMO, init_scale=0.0)).head.weight
    assert not bool(zero.any())


# --- settings --------------------------------------------------------------------------------------------------------


def test_the_native_and_the_resized_table_are_two_functions() -> None:
    native, resized = (
        VideoMAEClassifier(dataclasses.replace(TINY, position_table=table)).pos_embed for table in ("native", "resized")
    )
    assert native.shape == resized.shape
    assert not torch.allclose(native, resized, atol=1e-2)


@pytest.mark.parametrize(
    "change",
    [{"image_size": 30}, {"frames": 5}, {"pooling": "max"}, {"position_table": "learned"}, {"heads": 5}],
)
def test_impossible_sizes_are_told_in_one_line(change: dict[str, object]) -> None:
    with pytest.raises(RecipeError) as error:
        create_model("videomae-s-classifier", change)
    assert "\n" not in str(error.value)


def test_unknown_names_and_settings_are_told_with_a_guess() -> None:
    with pytest.raises(RecipeError, match="did you mean 'videomae-s-pretrain'"):
        create_model("videomae-s-pretrian")
    with pytest.raises(RecipeError, match="did you mean 'drop_path'"):
        create_model("videomae-s-classifier", {"drop_pth": 0.1})
    with pytest.raises(RecipeError, match="int, as in 12"):
        create_model("videomae-s-classifier", {"depth": "twelve"})
    with pytest.raises(RecipeError, match="bool, as in True"):
        create_model("videomae-s-classifier", {"qkv_bias": 1})
    with pytest.raises(ValueError, match="resized"):
        VideoMAEPretrain(dataclasses.replace(TINY, position_table="resized"))


def test_overrides_change_the_model() -> None:
    model = create_model(
        "videomae-s-classifier",
        {"image_size": 64, "patch_size": 8, "frames": 8, "width": 128, "depth": 4, "heads": 4, "drop_path": 0},
    )
    assert isinstance(model, VideoMAEClassifier)
    assert model.config.num_tokens == 256
    assert model(model.normalize(torch.zeros(1, 3, 8, 64, 64, dtype=torch.uint8))).shape == (1, 400)


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_gpu() -> None:
    model = VideoMAEPretrain(TINY).cuda()
    video, hidden = clip().cuda(), mask().cuda()
    kept = TINY.num_tokens - int(hidden[0].sum())
    torch.cuda.set_sync_debug_mode("error")
    try:
        target = pixel_targets(
            video * model.normalize.std + model.normalize.mean, hidden, 2, 4, num_masked=TINY.num_tokens - kept
        )
        reconstruction_loss(model(video, hidden, num_visible=kept), target).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
