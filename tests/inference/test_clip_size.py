"""`load(frames=, image_size=)` of our own runs and saved folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_apps
import small_world
import torch

from internvideo.errors import RecipeError, WeightsError
from internvideo.inference.loading import load
from internvideo.models.videomae import VideoMAEClassifier, resized_table

CPU = {"device": "cpu"}


def test_fixed_positions_are_those_of_the_training_resized(tmp_path: Path) -> None:
    path = small_apps.trained("supervised")
    own = load(path, **CPU)
    assert isinstance(own.module, VideoMAEClassifier)
    before = own.module.config
    model = load(path, frames=2 * before.frames, image_size=64, **CPU)
    assert isinstance(model.module, VideoMAEClassifier)
    after = model.module.config
    assert (after.frames, after.image_size) == (2 * before.frames, 64)
    clip = (before.image_size, before.frames)
    wanted = resized_table(after.grid, after.width, after.patch_size, after.tubelet, clip)
    torch.testing.assert_close(model.module.pos_embed[0], wanted)
    for key, value in own.module.state_dict().items():
        assert torch.equal(model.module.state_dict()[key], value)
    assert (model.preprocessing.frames, model.preprocessing.size) == (2 * before.frames, 64)
    assert model.class_names == small_world.CLASSES
    assert torch.isfinite(model.encode_video(small_apps.clips(1))).all()
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", **CPU)
    assert torch.equal(again.encode_video(small_apps.clips(2)), model.encode_video(small_apps.clips(2)))
    back = load(tmp_path / "saved", frames=before.frames, image_size=before.image_size, **CPU)
    np.testing.assert_allclose(back.encode_video(small_apps.clips(2)), own.encode_video(small_apps.clips(2)), atol=1e-5)


def test_its_own_size_changes_nothing() -> None:
    for stage in ("supervised", "multimodal"):
        path = small_apps.trained(stage)
        own = load(path, **CPU)
        same = load(path, frames=own.preprocessing.frames, image_size=own.preprocessing.size, **CPU)
        expected = own.encode_video(small_apps.clips(2))
        np.testing.assert_allclose(same.encode_video(small_apps.clips(2)), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["multimodal", "supervised_multimodal", "viclip", "clip"])
def test_learned_positions_are_resized(family: str, tmp_path: Path) -> None:
    small_apps.random_model(family).save_pretrained(tmp_path)
    own, larger = load(tmp_path, **CPU), load(tmp_path, image_size=64, frames=6, num_classes=None, **CPU)
    assert (larger.preprocessing.frames, larger.preprocessing.size) == (6, 64)
    changed = {
        key for key, value in own.module.state_dict().items() if value.shape != larger.module.state_dict()[key].shape
    }
    assert changed
    assert all("embedding" in key for key in changed)
    assert torch.isfinite(larger.encode_video(small_apps.clips(1))).all()


def test_new_classes_and_another_size_at_once() -> None:
    model = load(small_apps.trained("supervised"), image_size=64, num_classes=5, **CPU)
    assert model.class_names == ("0", "1", "2", "3", "4")
    assert model.preprocessing.size == 64


def test_what_cannot_be_resized_is_refused(tmp_path: Path) -> None:
    small_apps.random_model("interaction").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="several encoders"):
        load(tmp_path, frames=16, **CPU)
    with pytest.raises(WeightsError, match="masked pretraining"):
        load(small_apps.trained("masked"), image_size=64, **CPU)
    with pytest.raises(RecipeError, match="multiple of patch_size"):
        load(small_apps.trained("supervised"), image_size=65, **CPU)
