"""The multimodal model: identity with CLIP, both losses in one pass, captions, answering networks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from goldens_folder import GOLDENS
from safetensors.torch import load_file
from shapes import shapes_only
from torch import Tensor
from torch.nn.functional import cosine_similarity

from internvideo.errors import WeightsError
from internvideo.model_table import create_model
from internvideo.models.caption_decoder import CaptionDecoder, CaptionDecoderConfig, rotate
from internvideo.models.clip import CLIPConfig, CLIPModel, TextConfig, TextTower, at_end_of_text
from internvideo.models.heads import PairScoringMultipleChoice, VideoQuestionAnswering, ZeroShotMultipleChoice
from internvideo.models.multimodal_sizes import MULTIMODAL_MODELS
from internvideo.models.uniformerv2 import UniFormerV2Config
from internvideo.models.viclip import ViCLIP, ViCLIPConfig
from internvideo.models.video_language import VideoLanguage, VideoLanguageConfig
from internvideo.objectives.captioning import caption_loss
from internvideo.objectives.contrastive import symmetric_contrastive
from internvideo.weights.clip_import import from_clip
from internvideo.weights.state import load_reference

Model = TypeVar("Model", bound=torch.nn.Module)
START, END, WORDS = 18, 19, 20
VISION = UniFormerV2Config(
    image_size=32, patch_size=16, frames=4, width=24, depth=2, heads=2, global_layers=(0, 1), num_classes=0
)
TEXT = TextConfig(width=16, heads=2, layers=2, vocab_size=WORDS, context_length=8)
CAPTION = CaptionDecoderConfig(width=16, heads=2, vision_width=24, layers=2, vocab_size=WORDS, num_queries=5)
CONFIG = VideoLanguageConfig(VISION, TEXT, joint_width=12, caption=CAPTION)


def make(config: VideoLanguageConfig = CONFIG, *, jitter: float = 0.1) -> VideoLanguage:
    torch.manual_seed(0)
    return shaken(VideoLanguage(config), jitter)


def shaken(model: Model, jitter: float) -> Model:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * jitter)
    return model.eval()


def clip_model() -> CLIPModel:
    torch.manual_seed(2)
    return shaken(CLIPModel(CLIPConfig(32, 16, 24, 2, 2, replace(TEXT, mask_embedding=False), 12)), 0.1)


def clips(batch: int = 3, frames: int = 4) -> Tensor:
    return torch.randn(batch, 3, frames, 32, 32, generator=torch.Generator().manual_seed(1))


TOKENS = torch.tensor([[18, 3, 4, 19, 0, 0, 0, 0], [18, 5, 19, 0, 0, 0, 0, 0], [18, 7, 8, 9, 1, 2, 3, 19]])


# --- identity with CLIP ---


def of_mean_token(clip: CLIPModel, video: torch.Tensor) -> torch.Tensor:
    """CLIP's vector of the mean of the frames' class tokens."""
    return clip.visual.norm(clip.visual.class_tokens(video).mean(dim=1)) @ clip.visual.projection


@pytest.mark.parametrize("frames", [1, 4])
def test_initialized_from_clip_it_is_clip(frames: int) -> None:
    """Equal to ln_post(mean over frames of CLIP's class tokens) @ proj up to the layer norm's epsilon."""
    clip = clip_model()
    torch.manual_seed(5)
    model = VideoLanguage(CONFIG).eval()
    report = from_clip(model, clip.state_dict())
    video = clips(frames=frames)
    ours, theirs = model.encode_video(video), of_mean_token(clip, video)
    # The feature is halved before the norm, which undoes it but for its epsilon.
    assert cosine_similarity(ours, theirs).min().item() > 0.999999
    assert torch.allclose(ours, theirs, atol=2e-4)
    assert torch.equal(model.encode_text(TOKENS), clip.encode_text(TOKENS))
    assert model.logit_scale == clip.logit_scale
    assert report.dropped == ()
    assert {name.split(".")[0] for name in report.newly_initialized} == {"visual", "text", "caption_decoder"}
    assert "text.mask_embedding" in report.newly_initialized


def test_without_the_epsilon_the_identity_is_exact() -> None:
    clip = clip_model().double()
    model = VideoLanguage(CONFIG).double().eval()
    from_clip(model, clip.state_dict())
    model.visual_norm.eps = clip.visual.norm.eps / 4  # the variance of half the feature is a quarter
    video = clips().double()
    assert torch.allclose(model.encode_video(video), of_mean_token(clip, video), atol=1e-12)


def test_viclip_starts_as_clip_on_one_frame() -> None:
    clip = clip_model()
    config = ViCLIPConfig(32, 16, 24, 2, 2, 12, replace(TEXT, mask_embedding=False, context_length=6), frames=4)
    model = ViCLIP(config).eval()
    report = from_clip(model, clip.state_dict())
    assert torch.allclose(model.encode_video(clips(frames=1)), clip.encode_video(clips(frames=1)), atol=1e-6)
    assert set(report.newly_initialized) == {"visual.time_embedding", "temperature"}
    assert torch.allclose(model.encode_text(TOKENS[:2, :6]), clip.encode_text(TOKENS[:2]), atol=1e-6)


# --- the model ---


def test_one_pass_gives_both_losses_and_teaches_everything() -> None:
    model = make().train()
    output = model(clips(), TOKENS)
    assert output.caption_logits is not None
    assert output.caption_logits.shape == (3, 7, WORDS)
    loss = symmetric_contrastive(output.video, output.text, model.scale) + caption_loss(output.caption_logits, TOKENS)
    loss.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert silent == {"text.mask_embedding"}


def test_one_pass_equals_the_parts() -> None:
    model, video = make(), clips()
    output = model(video, TOKENS)
    assert torch.equal(output.video, model.encode_video(video))
    assert torch.equal(output.text, model.encode_text(TOKENS))
    assert output.caption_logits is not None
    assert torch.equal(output.caption_logits, model.caption_logits(video, TOKENS))
    assert model(video, TOKENS, max_captioned_clips=0).caption_logits is None


def test_similarity_is_scaled_cosine() -> None:
    model = make()
    video, text = model.encode_video(clips()), model.encode_text(TOKENS)
    expected = model.scale * cosine_similarity(video[:, None], text[None], dim=2)
    assert torch.allclose(model.similarity(video, text), expected, atol=1e-5)


def test_logit_scale_is_held_in_its_range() -> None:
    model = make()
    for value, held in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(held)


def test_words_after_the_end_do_not_matter() -> None:
    tower = shaken(TextTower(TEXT, 12), 0.1)
    other = TOKENS.clone()
    other[:2, 5:] = 6
    assert torch.equal(tower(TOKENS), tower(other))
    assert torch.allclose(tower(TOKENS[:2, :4]), tower(TOKENS[:2]), atol=1e-6), "shorter padding is the same text"


def test_the_first_largest_id_is_the_end() -> None:
    tokens = torch.arange(8.0).view(1, 8, 1)
    assert at_end_of_text(tokens, torch.tensor([[1, 9, 2, 9, 0, 0, 0, 0]])).item() == 1
    assert at_end_of_text(tokens[:, :7], TOKENS[2:]).item() == 6, "no further than the last position"


def test_hidden_words_change_the_text_alone_where_hidden() -> None:
    tower = shaken(TextTower(TEXT, 12), 0.1)
    hidden = torch.zeros_like(TOKENS, dtype=torch.bool)
    hidden[0, 1] = True
    plain, masked = tower(TOKENS), tower(TOKENS, hidden)
    assert not torch.allclose(plain[0], masked[0])
    assert torch.equal(plain[1:], masked[1:])
    with pytest.raises(ValueError, match="mask embedding"):
        TextTower(replace(TEXT, mask_embedding=False), 12)(TOKENS, hidden)
    with pytest.raises(ValueError, match="at most 8"):
        tower(torch.zeros(1, 9, dtype=torch.long))


def test_caption_logits_do_not_see_later_words_but_see_the_video() -> None:
    model, video = make(), clips()
    base = model.caption_logits(video, TOKENS)
    other = TOKENS.clone()
    other[:, 4] = 11
    changed = model.caption_logits(video, other)
    assert torch.allclose(base[:, :4], changed[:, :4], atol=1e-6)
    assert not torch.allclose(base[:, 4:], changed[:, 4:], atol=1e-3)
    assert not torch.allclose(base, model.caption_logits(video.flip(0), TOKENS), atol=1e-3)


def test_rotary_positions_are_relative() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    rows = rotate(query.expand(1, 1, 6, 4))[0, 0]
    columns = rotate(key.expand(1, 1, 6, 4))[0, 0]
    scores = rows @ columns.t()
    assert torch.allclose(scores.diagonal(), (query @ key).expand(6))
    assert torch.allclose(scores.diagonal(2), scores[0, 2].expand(4))
    half = rotate(query.expand(1, 1, 77, 4).bfloat16())[0, 0]
    assert torch.allclose(half.double(), rotate(query.expand(1, 1, 77, 4))[0, 0], atol=0.02), "angles stay precise"


def test_decoders_constant_buffers_are_checked() -> None:
    info = GOLDENS / "models" / "caption_decoder.weights.safetensors"
    state = {k: v.float() for k, v in load_file(info).items()}
    arguments = json.loads((GOLDENS / "models" / "caption_decoder.json").read_text())["constructor"]
    model = CaptionDecoder(
        CaptionDecoderConfig(
            arguments["transformer_width"],
            arguments["transformer_heads"],
            arguments["vision_width"],
            arguments["n_layers"],
            arguments["vocab_size"],
            arguments["num_visual_queries"],
        )
    )
    load_reference(model, state)
    for key, told in (
        ("multimodal_layers.0.0.fn.norm.beta", "not zero"),
        ("multimodal_layers.1.0.fn.rotary_emb.inv_freq", "frequencies"),
    ):
        with pytest.raises(WeightsError, match=told):
            load_reference(model, {**state, key: state[key] + 1})


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes 3"):
        replace(CONFIG, vision=replace(VISION, num_classes=3))
    with pytest.raises(ValueError, match="widths"):
        replace(CONFIG, caption=replace(CAPTION, width=8))
    plain = make(replace(CONFIG, caption=None))
    with pytest.raises(ValueError, match="no caption decoder"):
        plain.caption_logits(clips(), TOKENS)
    with pytest.raises(ValueError, match="no caption decoder"):
        plain.generate(clips(), start=START, end=END)
    with pytest.raises(ValueError, match="2 to 8"):
        make().generate(clips(), start=START, end=END, max_length=9)


def test_layer_ids_and_decay() -> None:
    model = make()
    ids = {name: model.get_layer_id(name) for name, _ in model.named_parameters()}
    assert ids["visual.stem.conv.weight"] == 0
    assert ids["visual.blocks.1.norm1.weight"] == 2
    assert {ids[n] for n in ("visual.query", "text.blocks.0.norm1.weight", "logit_scale")} == {model.max_layer_id}
    exempt = {n for n, p in model.named_parameters() if model.no_weight_decay(n, p)}
    assert {"visual.query", "logit_scale", "text.token_embedding.weight", "visual.stem.positional_embedding"} <= exempt
    assert not {"visual_projection", "text.projection", "visual.blocks.0.mlp.fc1.weight"} & exempt


@pytest.mark.parametrize(("name", "vision"), [("viclip-b16", 86.199), ("viclip-l14", 303.974)])
def test_viclip_parameter_counts(name: str, vision: float) -> None:
    entry = MULTIMODAL_MODELS[name]
    with shapes_only():
        model = entry.build(entry.config)
    assert sum(p.numel() for p in model.visual.parameters()) / 1e6 == pytest.approx(vision, abs=0.0011)


@pytest.mark.parametrize(
    ("width", "vision", "layers", "millions"),
    [(768, 1024, 4, 106.953), (768, 1024, 6, 140.380), (512, 768, 4, 56.257), (512, 768, 6, 71.201)],
)
def test_caption_decoder_parameter_counts(width: int, vision: int, layers: int, millions: float) -> None:
    with shapes_only():
        model = CaptionDecoder(CaptionDecoderConfig(width, width // 64, vision, layers))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.0011)


def test_viclip_keeps_a_share_of_the_patches_in_training() -> None:
    config = ViCLIPConfig(32, 16, 24, 2, 2, 12, TEXT, frames=4, token_keep_rate=0.25)
    model = shaken(ViCLIP(config), 0.1)
    assert model.visual.tokens(clips()).shape == (3, 1 + 16, 24)
    model.train()
    assert model.visual.tokens(clips()).shape == (3, 1 + 4, 24)
    assert model.visual.tokens(clips(frames=2)).shape == (3, 1 + 2, 24)
    with pytest.raises(ValueError, match="temporal positions"):
        model.encode_video(clips(frames=5))


def test_bfloat16_autocast_runs_every_part() -> None:
    model = make().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(clips(), TOKENS)
        loss = symmetric_contrastive(output.video, output.text, model.scale)
        assert output.caption_logits is not None
        loss = loss + caption_loss(output.caption_logits, TOKENS)
    loss.backward()
    exact = model(clips(), TOKENS)
    assert loss.dtype == torch.float32
    assert torch.allclose(output.text.float(), exact.text, atol=0.1)


@pytest.mark.parametrize("name", sorted(MULTIMODAL_MODELS))
def test_every_named_model_runs_at_the_sample_size(name: str) -> None:
    vision = {"image_size": 64, "patch_size": 16, "width": 32, "depth": 4, "heads": 2, "frames": 4}
    tower = {**vision, "global_layers": [2, 3], "num_classes": 0}
    text = {"width": 16, "heads": 2, "layers": 2, "vocabulary": WORDS, "context": 8}
    caption = {"width": 16, "heads": 2, "vision_width": 32, "layers": 2, "vocabulary": WORDS, "queries": 4}
    video = torch.randn(2, 3, 4, 64, 64)
    if name.startswith("interaction"):
        masked = {**vision, "frames": 8, "width": 48, "num_classes": 3}
        model = create_model(name, {"masked": masked, "multimodal": {**tower, "num_classes": 3}})
        assert model(torch.randn(2, 3, 8, 64, 64), video).fused.shape == (2, 3)
    elif name.startswith("uniformerv2"):
        assert create_model(name, {**tower, "num_classes": 3})(video).shape == (2, 3)
    elif name.startswith("viclip"):
        model = create_model(name, {**vision, "joint_width": 12, "text": text})
        assert model.similarity(*model(video, TOKENS[:2])).shape == (2, 2)
    elif name.startswith("clip"):
        image = {key: value for key, value in vision.items() if key != "frames"}
        model = create_model(name, {**image, "joint_width": 12, "text": text})
        assert model.similarity(*model(video, TOKENS[:2])).shape == (2, 2)
    elif name.startswith("caption-decoder"):
        assert create_model(name, caption)(torch.randn(2, 9, 32), torch.randn(2, 7, 16)).shape == (2, 7, WORDS)
    elif name.endswith("vqa"):
        towers = {"vision": tower, "text": text, "caption": caption}
        assert create_model(name, {"model": towers, "answers": 5})(video, TOKENS[:2]).shape == (2, 5)
    elif name.endswith("choice"):
        model = create_model(name, {"vision": tower, "text": text, "caption": caption})
        assert model(video, TOKENS[:2, None].expand(2, 3, -1)).shape == (2, 3)
    else:
        settings: dict[str, object] = {"vision": tower, "text": text, "joint_width": 12}
        if name.endswith("caption"):
            settings["caption"] = caption
        output = create_model(name, settings)(video, TOKENS[:2])
        assert output.video.shape == output.text.shape == (2, 12)
        assert (output.caption_logits is not None) is name.endswith("caption")


# --- captions ---


def teach_captions(model: VideoLanguage, video: Tensor, tokens: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss = caption_loss(model.caption_logits(video, tokens), tokens)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_captions_are_written_as_learned() -> None:
    model, video = make(jitter=0.0), clips()
    teach_captions(model, video, TOKENS)
    assert torch.equal(model.generate(video, start=START, end=END), TOKENS)
    assert torch.equal(model.generate(video, start=START, end=END, num_beams=3), TOKENS)
    cut = model.generate(video, start=START, end=END, max_length=4)
    assert cut.tolist() == [[18, 3, 4, 19], [18, 5, 19, 0], [18, 7, 8, 19]]


# --- answering networks ---


def test_question_answering_network() -> None:
    model = shaken(VideoQuestionAnswering(CONFIG, 7), 0.1)
    assert model.model.visual_projection is None
    assert model.model.text.projection is None
    assert model(clips(), TOKENS).shape == (3, 7)
    assert not torch.allclose(model(clips(), TOKENS)[0], model(clips(), TOKENS.roll(1, 0))[0], atol=1e-4)
    model.train()
    model(clips(), TOKENS).square().sum().backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert silent == {"model.text.mask_embedding", "model.logit_scale"}
    assert model.get_layer_id("model.visual.blocks.0.norm1.bias") == 1
    assert model.get_layer_id("head.1.weight") == model.max_layer_id
    with pytest.raises(ValueError, match="caption decoder"):
        VideoQuestionAnswering(replace(CONFIG, caption=None), 7)


def test_multiple_choice_networks_score_each_choice_by_itself() -> None:
    choices = TOKENS[None].repeat(2, 1, 1)
    for model in (shaken(PairScoringMultipleChoice(CONFIG), 0.1), shaken(ZeroShotMultipleChoice(CONFIG), 0.1)):
        scores = model(clips(2), choices)
        assert scores.shape == (2, 3)
        assert torch.allclose(model(clips(2), choices.flip(1)), scores.flip(1), atol=1e-5)
        assert torch.allclose(model(clips(2)[1:], choices[1:]), scores[1:], atol=1e-5)


def test_every_frame_of_the_image_text_model_weighs_alike() -> None:
    """ArrowLuo/CLIP4Clip, modules/modeling.py, _loose_similarity (meanP): every frame's vector is normalized first."""
    model = clip_model()
    model.visual.projection.data *= torch.linspace(0.2, 3.0, 12)
    video, mask = clips(2), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    with torch.no_grad():
        frames = model.visual(video)
        unit = torch.nn.functional.normalize(frames, dim=-1)
        expected = torch.stack([unit[0].mean(dim=0), unit[1, :2].mean(dim=0)])
        found = model.encode_video(video, mask)
        torch.testing.assert_close(*(torch.nn.functional.normalize(one, dim=-1) for one in (found, expected)))
        lengths = (frames.norm(dim=-1) * mask).sum(1) / mask.sum(1)  # their mean comes back: an image keeps its vector
        torch.testing.assert_close(found.norm(dim=-1), expected.norm(dim=-1) * lengths)
        torch.testing.assert_close(model.encode_video(video[:, :, :1]), frames[:, 0])
        plain = CLIPModel(replace(model.config, normalize_frames=False)).eval()
        plain.load_state_dict(model.state_dict())
        torch.testing.assert_close(plain.encode_video(video), frames.mean(dim=1))
        assert not torch.allclose(plain.encode_video(video), model.encode_video(video), atol=0.05)
