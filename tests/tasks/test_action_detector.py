"""The action detector: frames of any size, positions resized to them, boxes, initial weights, the stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from internvideo.data.batch import RegionBatch
from internvideo.errors import WeightsError
from internvideo.models.embeddings import resize_table
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, VideoMAEPretrain
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector, select_encoder_weights
from internvideo.tasks.spatio_temporal_localization.regions import region_loss
from internvideo.tasks.spatio_temporal_localization.stage import RegionSettings, RegionStage
from internvideo.weights.initialize import initialize
from internvideo.weights.state import save_model

CONFIG = VideoMAEConfig(
    image_size=32, patch_size=8, frames=4, width=16, depth=2, heads=2, num_classes=3, decoder_width=8, decoder_depth=1,
    decoder_heads=2,
)  # fmt: skip


def detector() -> ActionDetector:
    torch.manual_seed(0)
    return ActionDetector(CONFIG).eval()


def test_tokens_of_another_frame_size_have_resized_positions() -> None:
    model = detector()
    video = torch.randn(2, 3, 4, 45, 70)
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    tokens = model.grid_tokens(video)
    assert tokens.shape == (2, 2, 5, 8, 16)
    table = resize_table(model.pos_embed[0], (2, 4, 4), (2, 5, 8))
    expected = model.patch_embed(video[..., :40, :64].contiguous()) + table
    torch.testing.assert_close(seen[0], expected)
    with torch.no_grad():
        over = video.clone()
        over[..., 40:, :] = 9  # beyond the last whole patch
        torch.testing.assert_close(model.grid_tokens(over), tokens)


def test_its_own_size_keeps_the_table_of_pretraining() -> None:
    model = detector()
    video = torch.randn(1, 3, 4, 32, 32)
    classifier = VideoMAEClassifier(CONFIG)
    torch.testing.assert_close(model.pos_embed, classifier.pos_embed)
    assert model.grid_tokens(video).shape == (1, 2, 4, 4, 16)


def test_a_box_sees_its_own_clip() -> None:
    model = detector()
    video = torch.randn(2, 3, 4, 32, 32)
    boxes = torch.tensor([[0.0, 0, 16, 16], [16.0, 16, 32, 32]])
    both = model(video, torch.tensor([1, 0]), boxes)
    assert both.shape == (2, 3)
    torch.testing.assert_close(both[:1], model(video[1:], torch.tensor([0]), boxes[:1]))
    assert (both[0] - model(video[:1], torch.tensor([0]), boxes[:1])[0]).abs().max() > 1e-4


@pytest.mark.parametrize("shape", [(1, 3, 3, 32, 32), (1, 3, 4, 7, 32)])
def test_another_form_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a video"):
        detector().tokens(torch.zeros(shape))


@pytest.mark.parametrize("kind", [VideoMAEClassifier, VideoMAEPretrain])
def test_it_starts_from_an_earlier_stage(kind: type[VideoMAEClassifier], tmp_path: Path) -> None:
    source = kind(replace(CONFIG, num_classes=5))
    save_model(tmp_path / "w.safetensors", source, {})
    model = detector()
    before = model.head.projection.weight.clone()
    initialize(model, {"weights": tmp_path / "w.safetensors"})
    for name, value in select_encoder_weights(source.state_dict()).items():
        if not name.startswith(("decoder", "mask_token")):
            assert torch.equal(model.state_dict()[name], value), name
    assert torch.equal(model.head.projection.weight, before)
    save_model(tmp_path / "own.safetensors", model, {})
    other = ActionDetector(CONFIG)
    initialize(other, {"weights": tmp_path / "own.safetensors"})
    assert torch.equal(other.head.projection.weight, before)
    with pytest.raises(WeightsError):
        initialize(ActionDetector(replace(CONFIG, depth=3)), {"weights": tmp_path / "w.safetensors"})


def test_layers_for_the_decay() -> None:
    model = detector()
    assert model.get_layer_id("patch_embed.proj.weight") == 0
    assert model.get_layer_id("blocks.1.norm1.weight") == 2
    assert model.get_layer_id("norm.weight") == model.get_layer_id("head.projection.bias") == model.max_layer_id == 3


def region_batch(boxes: int) -> RegionBatch:
    torch.manual_seed(1)
    video = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    corners = torch.tensor([[2.0, 2, 20, 28]]).repeat(boxes, 1)
    targets = torch.tensor([[1.0, 0, 1]]).repeat(boxes, 1)
    return RegionBatch(video, ("a", "b"), clip_index=torch.arange(boxes) % 2, boxes=corners, targets=targets)


def test_the_stage_moves_boxes_in_training_alone() -> None:
    model, batch = detector(), region_batch(3)
    stage = RegionStage(model, RegionSettings())
    plain = region_loss(model(model.normalize(batch.video), batch.clip_index, batch.boxes), batch.targets)
    generator = torch.Generator().manual_seed(0)
    assert stage.eval()(batch, generator)["loss"] == plain
    assert stage.train()(batch, generator)["loss"] != plain
    assert RegionStage(model, RegionSettings(jitter=False)).train()(batch, generator)["loss"] == plain


def test_a_batch_without_boxes_changes_nothing() -> None:
    stage = RegionStage(detector(), RegionSettings()).train()
    loss = stage(region_batch(0), torch.Generator())["loss"]
    torch.autograd.backward(loss)
    assert loss == 0
