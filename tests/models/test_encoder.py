"""VideoEncoder: what models tell of the clips that they take, and a backbone that nobody knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from shapes import shapes_only
from torch import Tensor, nn

from internvideo.errors import RecipeError
from internvideo.features.feature_layers import create_feature_extractor
from internvideo.inference.families import video_encoder
from internvideo.inference.video_model import VideoModel
from internvideo.model_table import MODELS, create_model
from internvideo.models.embeddings import Normalize
from internvideo.models.encoder import ClipClassifier, ClipNeeds, check_clip
from internvideo.models.entry import ModelEntry
from internvideo.weights.initialize import class_layer


def on_meta(name: str) -> nn.Module:
    with shapes_only():
        return create_model(name)


@pytest.mark.parametrize(
    ("name", "part", "frames"),
    [
        ("videomae-s-pretrain", "", "16, model.overrides.frames"),
        ("videomae-s-classifier", "", "16, model.overrides.frames"),
        ("uniformerv2-b16", "", None),
        ("internvideo-mm-b16", ".vision", None),
        ("internvideo-mm-b16-vqa", ".model.vision", None),
        ("internvideo-mm-b16-choice", ".vision", None),
        ("viclip-b16", "", "up to 8, model.overrides.frames"),
        ("clip-b16", "", None),
        ("interaction-b", ".masked", "16, model.overrides.masked.frames"),
        ("action-detector-s", None, "16, model.overrides.frames"),
        ("anticipator-s", None, "16, model.overrides.frames"),
    ],
)
def test_clips_of_another_size_are_refused_by_the_keys_of_the_recipe(
    name: str, part: str | None, frames: str | None
) -> None:
    """`part` None: frames of any side; `frames` None: any number of them."""
    model = on_meta(name)
    check_clip(model, frames=8 if name.startswith("viclip") else 16, size=224)
    if part is None:
        check_clip(model, frames=16, size=64)
    else:
        with pytest.raises(RecipeError, match=rf"data\.augment\.size.*64.*224, model\.overrides{part}\.image_size"):
            check_clip(model, frames=4, size=64)
    if frames is None:
        check_clip(model, frames=4, size=224)
    else:
        with pytest.raises(RecipeError, match=r"data\.sampling\.frames.*the model gets 20 frames") as error:
            check_clip(model, frames=20, size=224)
        assert frames in str(error.value)


def test_the_step_between_frames_is_counted_where_the_model_sees_every_nth_frame() -> None:
    check_clip(on_meta("videomae-s-classifier"), frames=32, size=224, temporal_stride=2)
    check_clip(on_meta("interaction-b"), frames=16, size=224, temporal_stride=2)  # of the multimodal encoder alone


def test_a_network_that_never_sees_the_video_takes_any_clip() -> None:
    with shapes_only():
        check_clip(create_model("internvideo-mm-b16-vqa", {"video": False}), frames=1, size=8)


@dataclass(frozen=True)
class ToyConfig:
    width: int = 6
    frames: int = 4
    num_classes: int = 3


class Toy(ClipClassifier):
    """Mean color of each frame, mapped."""

    config: ToyConfig
    class_layer = ("head", 0)

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.normalize = Normalize((0.5,) * 3, (0.5,) * 3)
        self.blocks = nn.ModuleList([nn.Linear(3, config.width), nn.Linear(config.width, config.width)])
        self.head = nn.Linear(config.width, config.num_classes)

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        return (ClipNeeds(frames=self.config.frames),)

    @property
    def test_clips(self) -> dict[str, Any]:
        return {"frames": self.config.frames, "size": 8}

    @property
    def head_layer(self) -> nn.Linear:
        return self.head

    def tokens(self, video: Tensor) -> Tensor:
        x = video.mean(dim=(3, 4)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x

    def features(self, video: Tensor) -> Tensor:
        return self.tokens(video).mean(dim=1)

    def forward(self, video: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(video))
        return logits


def test_a_backbone_is_one_class_and_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "toy", ModelEntry(Toy, ToyConfig(), None, "a toy"))
    module = create_model("toy", {"num_classes": 5})
    assert class_layer(module) == ("head", 0)
    model = VideoModel("toy", module)
    clips = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    assert model.capabilities == {"video", "classify"}
    assert (model.embed_dim, len(model.class_names), model.preprocessing.frames) == (6, 5, 4)
    assert model.encode_clips(clips).shape == (2, 6)
    assert model.tokens(clips).shape == (2, 4, 6)
    with torch.no_grad():
        expected = module(module.normalize(clips))  # type: ignore[operator]
    torch.testing.assert_close(model.logits(clips), expected)
    torch.testing.assert_close(create_feature_extractor(model, "-1")(clips), model.encode_clips(clips))
    assert model.config["overrides"] == {"num_classes": 5}
    with pytest.raises(RecipeError, match=r"the tokens of toy are not laid out by frame"):
        create_feature_extractor(model, "1", 2)
    with pytest.raises(RecipeError, match=r"the model gets 5 frames.*4, model\.overrides\.frames"):
        check_clip(module, frames=5, size=8)


def test_a_fault_in_what_a_model_tells_is_no_pass() -> None:
    toy = Toy(ToyConfig())
    del toy.config
    with pytest.raises(AttributeError):
        check_clip(toy, frames=1, size=8)
    check_clip(nn.Linear(2, 2), frames=1, size=8)  # sees no clips


def test_a_part_that_sees_no_video_is_told() -> None:
    with pytest.raises(RecipeError, match="a Linear does not encode videos by itself"):
        video_encoder(nn.Linear(2, 2), "toy")
