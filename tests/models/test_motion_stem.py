"""Stems beside the patches and the head that keeps places: options of small encoders, the identity where new."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
from small_videomae import TINY, clip
from test_uniformerv2 import SMALL, clip_model, clips
from test_uniformerv2 import make as jittered

from internvideo.errors import WeightsError
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEPretrain
from internvideo.objectives.masking import tube_mask
from internvideo.weights.clip_import import from_clip
from internvideo.weights.state import load_pretrained, load_weights_part


def test_a_motion_stem_starts_as_the_identity_and_draws_nothing() -> None:
    torch.manual_seed(5)
    plain, after = UniFormerV2(SMALL).eval(), torch.rand(1)
    torch.manual_seed(5)
    motion = UniFormerV2(replace(SMALL, motion_stem=True)).eval()
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(plain(clips()), motion(clips()))
    assert set(motion.state_dict()) - set(plain.state_dict()) == {"stem.motion"}
    assert motion.get_layer_id("stem.motion") == 0


def test_a_convolution_stem_starts_as_the_identity() -> None:
    video = clips()
    plain, model = UniFormerV2(SMALL).eval(), UniFormerV2(replace(SMALL, convolution_stem=3)).eval()
    load_weights_part(model, plain.state_dict())
    assert torch.equal(plain(video), model(video))
    names = set(model.state_dict()) - set(plain.state_dict())
    assert names
    assert all(name.startswith("stem.convolutions.") for name in names)
    assert {model.get_layer_id(name) for name in names} == {0}
    assert names <= {*from_clip(model, clip_model(SMALL).state_dict()).newly_initialized}


def test_a_convolution_stem_sees_every_frame_alone_and_across_patches() -> None:
    model = jittered(replace(SMALL, convolution_stem=3))
    stem = model.stem.convolutions
    assert stem is not None
    video, patch = clips(), SMALL.patch_size
    side = SMALL.image_size // patch
    with torch.no_grad():
        before = stem(video)
        assert before.shape == (len(video) * video.shape[2], 1 + side**2, SMALL.width)
        torch.testing.assert_close(stem(video[:1, :, 1:2]), before[1:2])
        video[0, :, 0, patch - 1, patch - 1] += 30  # the last pixel of the first patch
        changed = (stem(video) - before).abs().amax(dim=2) > 1e-6
    assert not changed[1:].any()
    assert changed[0, [0, 1, 2, 1 + side]].all()  # the class token, its patch, and both beside it


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"patch_size": 6, "image_size": 12}, "multiple of 4"),
        ({"temporal_downsample": True}, "temporal_downsample"),
        ({"convolution_stem": -1}, "-1 channels"),
    ],
)
def test_what_a_convolution_stem_cannot_do_is_told(settings: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        UniFormerV2(replace(SMALL, **{"convolution_stem": 3, **settings}))


@pytest.mark.parametrize("downsample", [False, True])
def test_a_motion_stem_sees_what_moves_and_pictures_get_nothing_from_it(downsample: bool) -> None:
    model = jittered(replace(SMALL, motion_stem=True, temporal_downsample=downsample))
    stem = model.stem
    still = clips(frames=1).expand(-1, -1, 4, -1, -1)
    moving = still + 0.3 * clips()
    with torch.no_grad():
        seen = {name: stem.embed_patches(video) for name, video in (("still", still), ("moving", moving))}
        assert stem.motion is not None
        stem.motion.zero_()
        torch.testing.assert_close(seen["still"], stem.embed_patches(still))
        assert (seen["moving"] - stem.embed_patches(moving)).abs().max() > 0.05


def test_weights_without_a_motion_stem_fill_a_model_that_has_one() -> None:
    """CLIP's, and those of earlier runs: the stem stays at zero and the answers stay what they were."""
    wanted = replace(SMALL, motion_stem=True)
    clip, video = clip_model(SMALL), clips()
    for start in ("clip", "run"):
        torch.manual_seed(3)
        plain = UniFormerV2(SMALL).eval()
        torch.manual_seed(3)
        model = UniFormerV2(wanted).eval()
        if start == "clip":
            from_clip(plain, clip.state_dict())
            assert "stem.motion" in from_clip(model, clip.state_dict()).newly_initialized
        else:
            plain = jittered(SMALL)
            load_weights_part(model, plain.state_dict())
        assert torch.equal(plain(video), model(video))
    with pytest.raises(WeightsError, match="unused"):
        load_weights_part(UniFormerV2(SMALL), model.state_dict())


def test_a_motion_stem_starts_as_the_identity_and_tells_nothing_hidden() -> None:
    """Under tube masking the prediction does not depend on hidden pixels, with the stem as without."""
    models = []
    for motion in (False, True):
        torch.manual_seed(1)
        models.append(VideoMAEPretrain(dataclasses.replace(TINY, motion_stem=motion)).eval())
    plain, model = models
    video, hidden = clip(), tube_mask(2, TINY.grid, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(plain(video, hidden), model(video, hidden))
    assert set(model.state_dict()) - set(plain.state_dict()) == {"encoder.patch_embed.motion"}
    with torch.no_grad():
        assert model.encoder.patch_embed.motion is not None
        model.encoder.patch_embed.motion.normal_()
        pixel_mask = hidden.view(2, *TINY.grid).repeat_interleave(2, 1)
        changed = pixel_mask.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, None]
        said = model(video, hidden)
        assert not torch.equal(said, plain(video, hidden))
        torch.testing.assert_close(model(torch.where(changed, torch.randn_like(video), video), hidden), said)


def test_pretraining_fills_a_classifiers_motion_stem() -> None:
    wanted = dataclasses.replace(TINY, motion_stem=True)
    source, model = VideoMAEPretrain(wanted), VideoMAEClassifier(wanted)
    with torch.no_grad():
        assert source.encoder.patch_embed.motion is not None
        source.encoder.patch_embed.motion.normal_()
    load_pretrained(model, source.state_dict())
    assert torch.equal(model.patch_embed.motion, source.encoder.patch_embed.motion)
    load_pretrained(model, VideoMAEPretrain(TINY).state_dict())  # earlier weights have none
    assert model.get_layer_id("patch_embed.motion") == 0


def test_a_head_that_keeps_places_tells_where_something_was() -> None:
    model = VideoMAEClassifier(dataclasses.replace(TINY, spatial_head=True)).eval()
    places = TINY.grid[1] * TINY.grid[2]
    assert model.head_layer.in_features == model.embed_dim == places * TINY.width
    tokens = torch.randn(2, TINY.num_tokens, TINY.width)
    pooled = model.pool(tokens)
    assert pooled.shape == (2, places * TINY.width)
    moved = tokens.view(2, TINY.grid[0], places, -1).roll(1, dims=2).flatten(1, 2)
    torch.testing.assert_close(model.pool(moved), pooled.view(2, places, -1).roll(1, dims=1).flatten(1))
    video = clip()
    with torch.no_grad():
        torch.testing.assert_close(model(video), model.head(model.pool(model.tokens(video))))
    load_pretrained(model, VideoMAEPretrain(TINY).state_dict())
    with pytest.raises(ValueError, match="settings of the classifier only"):
        VideoMAEPretrain(dataclasses.replace(TINY, spatial_head=True))
    with pytest.raises(ValueError, match="spatial_head"):
        dataclasses.replace(TINY, spatial_head=True, pooling="first")
