"""Preprocessing: the published rule of each family, a recipe's own, and what does not fit."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import small_apps
import torch
from small_apps import random_model
from small_world import small_recipe

from internvideo.data.preprocessing import Preprocessing
from internvideo.data.resize import resize
from internvideo.data.sampling import dense_span, linspace_frames, segment_middle, sparse_test
from internvideo.errors import RecipeError
from internvideo.inference.families import overrides_of, published_preprocessing, video_encoder
from internvideo.model_table import MODELS, create_model
from internvideo.recipe import build_recipe

RNG = np.random.RandomState(0)


def frames(count: int, height: int = 48, width: int = 70) -> Any:
    return RNG.randint(0, 256, (count, height, width, 3)).astype(np.uint8)


def first(chosen: Any) -> torch.Tensor:
    return torch.from_numpy(chosen).permute(0, 3, 1, 2)


def test_the_multimodal_model_takes_the_demo_s_clips() -> None:
    """Linspace, short side S * 256 / 224, PIL bilinear, center crop with banker's rounding."""
    rule = random_model("multimodal").preprocessing
    video = frames(30)
    scaled = resize(first(video[linspace_frames(30, 4)]), (37, int(37 * 70 / 48)), "pil")
    top, left = round((37 - 32) / 2), round((53 - 32) / 2)
    assert torch.equal(rule.from_frames(video), scaled[..., top : top + 32, left : left + 32].transpose(0, 1))
    assert rule.from_frames(video).dtype == torch.uint8


SMALLEST = [name for name in MODELS if re.search(r"-(s|b|b16|b32)(-|$)", name)]
"""Of every kind the smallest size."""


@pytest.mark.parametrize("name", [*SMALLEST, "uniformerv2-l14-336", "internvideo-mm-l14"])
def test_every_named_model_has_its_clips(name: str) -> None:
    with torch.device("meta"):
        module = create_model(name)
    if name.startswith(("caption-decoder", "anticipator")):
        with pytest.raises(RecipeError, match="does not encode videos by itself"):
            video_encoder(module, name)
        return
    rule = published_preprocessing(video_encoder(module, name))
    masked = name.startswith(("videomae", "interaction", "action-detector"))
    assert rule.frames == (16 if masked or name.endswith("ssv2") else 8)
    assert rule.size == (336 if name.endswith("336") else 224)
    if name.startswith("internvideo-mm"):
        assert (rule.resize, rule.resize_backend, rule.sampler) == (256, "pil", "linspace")
    assert video_encoder(module, name).embed_dim > 0
    overrides = overrides_of(name, module)
    if not name.endswith(("vqa", "choice")):  # these leave out projections and predictor
        assert overrides == {}
        return
    with torch.device("meta"):
        again = create_model(name, overrides)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}


def test_uniformerv2_takes_sparse_float_clips() -> None:
    """UniFormerV2 configs: torch's bilinear without antialiasing, not rounded; center at the upper half pixel."""
    rule = random_model("supervised_multimodal").preprocessing
    video = frames(30)
    scaled = torch.nn.functional.interpolate(
        first(video[sparse_test(30, 4, 0, 1)]).float(), (32, int(70 / 48 * 32)), mode="bilinear", align_corners=False
    )
    clip = rule.from_frames(video)
    assert clip.dtype == torch.float32
    torch.testing.assert_close(clip, scaled[..., 7:39].transpose(0, 1))


def test_the_masked_encoder_takes_the_centre_by_opencv() -> None:
    """run_class_finetuning.py, validation."""
    rule = random_model("supervised").preprocessing
    video = frames(40)
    scaled = resize(first(video[dense_span(40, 4, 4, None)]), (32, int(32 * 70 / 48)), "opencv")
    assert torch.equal(rule.from_frames(video), scaled[..., 7:39].transpose(0, 1))
    assert random_model("supervised", num_classes=174).preprocessing.sampler == "sparse_two_view"


def test_viclip_squashes() -> None:
    """viclip.py."""
    rule = random_model("viclip").preprocessing
    video = frames(30)
    scaled = resize(first(video[segment_middle(30, 4)]), (32, 32), "pil_bicubic")
    assert torch.equal(rule.from_frames(video), scaled.transpose(0, 1))


def test_a_run_s_recipe_cuts_the_clips() -> None:
    tree = small_recipe(
        "supervised",
        sampling={"kind": "dense", "frames": 8, "stride": 2},
        settings={"temporal_stride": 2},
        loader={"short_side": 40},
    )
    rule = build_recipe(tree).data.preprocessing().for_model(2)
    assert (rule.frames, rule.sampled_frames, rule.temporal_stride, rule.short_side, rule.resize_backend) == (
        4,
        8,
        2,
        40,
        "pil",
    )
    assert rule.indices(40)[0].tolist() == dense_span(40, 8, 2, None)[::2].tolist()
    assert len(rule.indices(40, num_clips=3)) == 3
    whole = build_recipe(tree).data.preprocessing()
    assert whole.indices(40)[0].tolist() == dense_span(40, 8, 2, None).tolist()


def test_single_frames_are_the_middle_ones() -> None:
    recipe = build_recipe(small_recipe("multimodal", loader={"single_frame": True}))
    rule = recipe.data.preprocessing().for_model()
    assert rule.from_frames(frames(9)).shape == (3, 1, 32, 32)
    assert rule.indices(9)[0].tolist() == [4]


def test_no_frame_is_decoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from internvideo.video.reader import Video

    asked: list[list[int]] = []
    read = Video.frames

    def watched(self: Video, indices: Any) -> Any:
        asked.append(list(indices))
        return read(self, indices)

    monkeypatch.setattr(Video, "frames", watched)
    rule = random_model("supervised_multimodal").preprocessing
    views = rule.read(small_apps.clips()[0], num_clips=4)
    assert len(views) == 4
    assert len(asked) == 1  # `frames` decodes a repeated index once


@pytest.mark.parametrize("family", small_apps.FAMILIES)
def test_settings_survive_json(family: str) -> None:
    rule = random_model(family).preprocessing
    assert Preprocessing.from_json(json.loads(json.dumps(rule.to_json()))) == rule


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"sampler": "sprase"}, "sampler"),
        ({"style": "cubic"}, "resize_backend"),
        ({"resize": 8}, "resize 8"),
        ({"sampled": 9, "step": 2}, "give 5 frames"),
        ({"step": 0}, "temporal stride 0"),
        ({"frames": "4"}, "a whole number"),
        ({"frame": 4}, "unknown setting 'frame'"),
        ({"stride": 0, "sampler": "dense"}, "stride"),
        ({"stride": 2}, "linspace.* does not take"),
        ({"stride": "a", "sampler": "dense"}, "does not take"),
        ({"frames": 0}, "frames"),
        ({"size": 0}, "size 0"),
    ],
)
def test_settings_that_do_not_fit_are_told(change: dict[str, Any], found: str) -> None:
    with pytest.raises(RecipeError, match=found) as error:
        Preprocessing.from_json({"frames": 4, "size": 32, **change})
    assert "\n" not in str(error.value)


def test_a_missing_setting_is_told() -> None:
    with pytest.raises(RecipeError, match="frames or size missing"):
        Preprocessing.from_json({"frames": 4})
