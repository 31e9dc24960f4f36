"""Clip transforms: stored preprocessing, the image library as oracle, and what all frames share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS
from hypothesis import given, settings
from hypothesis import strategies as st
from image_oracle import by_library, noisy_clip
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from internvideo.data.resize import (
    ResizeBackend,
    _opencv_taps,
    _pil_taps,
    channels_first,
    crop_starts,
    resize,
    resize_fast,
    scaled_size,
)
from internvideo.data.sampling import dense_windows
from internvideo.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipTransform,
    EvalTransform,
    TrainTransform,
    corner_box,
    direction_classes,
    multi_scale_box,
    random_resized_box,
)

INFO = json.loads((GOLDENS / "models/preprocess.json").read_text())
STORED = load_file(GOLDENS / "models/preprocess.safetensors")
CLIP_STATS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_STATS = IMAGENET_MEAN, IMAGENET_STD
ONE_STATS = (0.45,) * 3, (0.225,) * 3
POLICY = "rand-m7-n4-mstd0.5-inc1"


def normalized(view: Tensor, stats: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in stats)
    return (view.float() / 255 - mean) / std


def multimodal(name: str) -> Tensor:
    clip = STORED["video" + name.removeprefix("mm_out")]
    return normalized(EvalTransform(INFO["crop"], INFO["resize_to"]).crop_clip(clip)[0], CLIP_STATS)


def multimodal_big(name: str) -> Tensor:
    return EvalTransform(224, 256).crop_clip(STORED["video_big"])[0]


def masked_validation(name: str) -> Tensor:
    clip = STORED["video" + name.removeprefix("mae_val_out")]
    transform = EvalTransform(INFO["crop"], INFO["resize_to"], resize_backend="opencv")
    return normalized(transform.crop_clip(clip)[0], IMAGENET_STATS)


def masked_dense(name: str) -> Tensor:
    view, crop = map(int, name.removeprefix("mae_test_dense_").split("_"))
    start = dense_windows(len(STORED["video_long"]), 4, 2)[view]
    views = EvalTransform(32, num_crops=3, resize_backend="opencv").crop_clip(STORED["video_long"][start : start + 4])
    return normalized(views[crop], IMAGENET_STATS)


def masked_sparse(name: str) -> Tensor:
    view, crop = map(int, name.removeprefix("mae_test_sparse_").split("_"))
    views = EvalTransform(32, num_crops=3, resize_backend="opencv").crop_clip(STORED["video_long"][:8][view::2])
    return normalized(views[crop], IMAGENET_STATS)


def uniformer(name: str) -> Tensor:
    clip, crop = map(int, name.removeprefix("ufv2_out").split("_"))
    views = EvalTransform(INFO["crop"], num_crops=3, resize_backend="torch").crop_clip(STORED[f"video{clip}"])
    return normalized(views[crop], ONE_STATS)


PREPROCESSING: dict[str, Callable[[str], Tensor]] = {
    "mm_out": multimodal,
    "mm_big_crop_u8": multimodal_big,
    "mae_val_out": masked_validation,
    "mae_test_dense": masked_dense,
    "mae_test_sparse": masked_sparse,
    "ufv2_out": uniformer,
}
RESULTS = sorted(name for name in STORED if not name.startswith("video"))


@pytest.mark.parity
def test_stored_preprocessing_is_understood() -> None:
    assert set(INFO["tensors"]) == {"video", *PREPROCESSING}
    assert set(INFO["shapes"]) == set(STORED)
    assert len(RESULTS) >= 6


@pytest.mark.parity
@pytest.mark.parametrize("name", RESULTS)
def test_stored_preprocessing(name: str) -> None:
    kind = next((kind for kind in PREPROCESSING if name.startswith(kind)), None)
    assert kind is not None, f"a kind of stored result that no test knows: {name}"
    got, wanted = PREPROCESSING[kind](name), STORED[name]
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    away = (got.float() - wanted.float()).abs()
    largest, mean = {"ufv2_out": (1e-5, 1e-5), "mm_big_crop_u8": (1.0, 0.05)}.get(kind, (0.02, 0.001))
    assert away.max() <= largest
    assert away.mean() <= mean


# ------------------------------------------------------------------------------------------- the library as oracle


@pytest.mark.parametrize(("height", "width", "size"), [(48, 85, (36, 64)), (48, 85, (72, 128)), (60, 60, (35, 35))])
def test_evaluation_resizers_equal_the_library(height: int, width: int, size: tuple[int, int]) -> None:
    clip = noisy_clip(2, height, width)
    for resize_backend, filtered in (("pil", Image.Resampling.BILINEAR), ("pil_bicubic", Image.Resampling.BICUBIC)):
        wanted = by_library(clip, lambda image, way=filtered: image.resize((size[1], size[0]), way))
        assert torch.equal(resize(channels_first(clip), size, resize_backend), wanted)
    wanted = by_library(clip, lambda image: image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    away = (resize_fast(channels_first(clip), size).int() - wanted.int()).abs()
    assert away.max() <= 2


def test_opencv_style_is_bilinear_between_four_neighbours() -> None:
    clip = noisy_clip(2, 40, 50)
    plain = resize(channels_first(clip), (23, 71), "torch")
    away = (resize(channels_first(clip), (23, 71), "opencv").float() - plain).abs()
    assert away.max() < 1.01
    assert (resize_fast(channels_first(clip), (23, 71)).float() - plain).abs().max() > 5


@pytest.mark.parametrize("reach", [1, 5, 40, 300])  # how many sources there are to an output
@pytest.mark.parametrize("resize_backend", ["pil", "pil_bicubic", "opencv"])
def test_fixed_point_sums_are_exact_however_many_there_are(reach: int, resize_backend: ResizeBackend) -> None:
    size = (9, 13)
    clip = torch.from_numpy(np.random.default_rng(reach).choice([0, 1, 254, 255], (1, 9 * reach + 3, 26, 3)))
    clip = clip.to(torch.uint8)
    exact = clip[0].permute(2, 0, 1).numpy().astype(np.int64)  # (3, H, W), integers throughout
    for length, axis in ((26, 2), (9 * reach + 3, 1)):
        moved = np.moveaxis(exact, axis, 0)
        taps = (
            _opencv_taps(length, size[axis - 1])
            if resize_backend == "opencv"
            else _pil_taps(length, size[axis - 1], resize_backend)
        )
        terms = [moved[place] * weight[:, None, None] for place, weight in zip(*taps, strict=True)]
        if resize_backend != "opencv":
            total = np.clip(sum(terms) + (1 << 21) >> 22, 0, 255)
        else:
            total = sum(terms) >> 4 if axis == 2 else (sum(term >> 16 for term in terms) + 2) >> 2
        exact = np.moveaxis(total, 0, axis)
    assert np.array_equal(resize(channels_first(clip), size, resize_backend)[0].numpy(), exact)


@pytest.mark.parametrize("resize_backend", ["pil", "pil_bicubic", "opencv", "torch"])
def test_a_part_of_a_resized_picture_is_that_part(resize_backend: ResizeBackend) -> None:
    frames = channels_first(noisy_clip(2, 60, 90))
    for size in ((40, 70), (100, 95), (60, 90)):
        whole = resize(frames, size, resize_backend)
        for top, left, high, wide in ((0, 0, 40, 40), (3, 17, 20, 50), (39, 69, 1, 1)):
            part = resize(frames, size, resize_backend, (top, left, high, wide))
            assert torch.equal(part, whole[..., top : top + high, left : left + wide])


# ------------------------------------------------------------------------------------------------- same for all frames


def still(height: int, width: int, frames: int = 4, seed: int = 0) -> Tensor:
    return noisy_clip(1, height, width, seed).expand(frames, -1, -1, -1).contiguous()


TRAIN = st.builds(
    TrainTransform,
    size=st.integers(8, 24),
    crop=st.sampled_from(["multi_scale", "corner", "random_resized", "random", "center"]),
    flip=st.booleans(),
    rand_augment=st.sampled_from([None, POLICY, "rand-m9-n2-mstd0.5-inc1"]),
    keep_aspect=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(TRAIN, st.integers(8, 50), st.integers(8, 50), st.integers(0, 9999))
def test_training_treats_all_frames_alike(transform: TrainTransform, height: int, width: int, seed: int) -> None:
    clip = still(height, width, seed=seed)
    before = clip.clone()
    view = transform(clip, np.random.RandomState(seed))
    assert view.shape == (3, 4, transform.size, transform.size)
    assert view.dtype == torch.uint8
    assert torch.equal(view, view[:, :1].expand_as(view))
    assert torch.equal(view, transform(clip, np.random.RandomState(seed)))
    assert torch.equal(clip, before)


def test_randomness_comes_from_the_generator_alone() -> None:
    transform = TrainTransform(16, "random_resized", flip=True, rand_augment=POLICY, erasing=1.0)
    clip = noisy_clip(4, 40, 50)
    np.random.seed(1)
    torch.manual_seed(1)
    first = transform(clip, np.random.RandomState(5))
    np.random.seed(2)
    torch.manual_seed(2)
    assert torch.equal(first, transform(clip, np.random.RandomState(5)))
    assert not torch.equal(first, transform(clip, np.random.RandomState(6)))


def test_erasing_takes_the_same_box_of_all_frames() -> None:
    clip = torch.full((5, 40, 40, 3), 7, dtype=torch.uint8)
    plain, erasing = (TrainTransform(40, "center", resize=40, erasing=probability) for probability in (0.0, 1.0))
    erased = erasing(clip, np.random.RandomState(0)).transpose(0, 1)
    changed = (erased != 7).any(1)
    rows, columns = changed.any(0).any(1).nonzero(), changed.any(0).any(0).nonzero()
    box = changed[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.float().mean() > 0.95
    assert box.sum() == changed.sum()
    assert 0.01 < changed.float().mean() < 0.4
    assert (clip == 7).all()
    assert not torch.equal(erased[0], erased[1])
    assert (plain(clip, np.random.RandomState(0)) == 7).all()


def test_flip_mirrors_half_of_the_clips_and_only_when_asked() -> None:
    clip = still(20, 20)
    plain = TrainTransform(20, "center", resize=20)
    flipping = TrainTransform(20, "center", resize=20, flip=True)
    straight = channels_first(clip).transpose(0, 1)
    mirrored = 0
    for seed in range(40):
        assert torch.equal(plain(clip, np.random.RandomState(seed)), straight)
        view = flipping(clip, np.random.RandomState(seed))
        assert torch.equal(view, straight) or torch.equal(view, straight.flip(-1))
        mirrored += not torch.equal(view, straight)
    assert 8 < mirrored < 32


def test_label_sets_with_directions_are_recognised() -> None:
    names = [
        "moving left to right",
        "turning_clockwise",
        "Turn Anti-Clockwise",
        "bright light",
        "leftover",
        "rightwards",
    ]
    assert direction_classes(names) == (names[0], names[1], names[2], names[5])


@settings(deadline=None, max_examples=200)
@given(st.integers(4, 300), st.integers(4, 300), st.integers(4, 64), st.integers(0, 9999))
def test_crop_boxes_lie_in_the_frame(height: int, width: int, size: int, seed: int) -> None:
    rng = np.random.RandomState(seed)
    for top, left, high, wide in (
        multi_scale_box(height, width, size, rng),
        corner_box(height, width, rng),
        random_resized_box(height, width, (0.08, 1.0), (0.75, 4 / 3), rng),
    ):
        assert 0 <= top <= top + high <= height
        assert 0 <= left <= left + wide <= width
        assert high >= 1
        assert wide >= 1


def test_multi_scale_uses_13_places_and_neighbouring_scales() -> None:
    rng = np.random.RandomState(0)
    boxes = {multi_scale_box(256, 340, 224, rng) for _ in range(4000)}
    sides = {(high, wide) for _, _, high, wide in boxes}
    scales = [256, 224, 192, 168]
    assert sides == {(h, w) for i, h in enumerate(scales) for j, w in enumerate(scales) if abs(i - j) < 2}
    assert len([box for box in boxes if box[2:] == (192, 192)]) == 13


def test_corner_crops_are_squares_of_two_sizes_at_five_places() -> None:
    """OpenGVLab/InternVideo, Open-Set-Action-Recognition/configs/recognition/mae/finetune_ucf101_mae_edlnokl.py."""
    rng = np.random.RandomState(0)
    boxes = {corner_box(256, 340, rng) for _ in range(1000)}
    assert {box[2:] for box in boxes} == {(256, 256), (204, 204)}
    assert {box[:2] for box in boxes if box[2] == 256} == {(0, 0), (0, 84), (0, 42)}
    assert {box[:2] for box in boxes if box[2] == 204} == {(0, 0), (0, 136), (52, 0), (52, 136), (26, 68)}
    clip = torch.arange(32, dtype=torch.uint8).mul(8)[None, :, None, None].expand(2, 32, 48, 3).contiguous()
    rows = {TrainTransform(28, "corner")(clip, rng)[0, 0, :, 0].sum().item() for _ in range(100)}
    assert len(rows) == 4, "whole, top, bottom and middle of the frame scaled to 32"


def test_random_resized_covers_its_range() -> None:
    rng = np.random.RandomState(0)
    boxes = [random_resized_box(200, 300, (0.08, 1.0), (0.75, 4 / 3), rng) for _ in range(500)]
    areas = np.asarray([high * wide / 60000 for _, _, high, wide in boxes])
    ratios = np.asarray([wide / high for _, _, high, wide in boxes])
    assert 0.07 < areas.min() < 0.1
    assert 0.8 < areas.max() <= 1
    assert 0.73 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.36
    assert random_resized_box(10, 1000, (0.9, 1.0), (0.75, 4 / 3), rng) == (0, 493, 10, 13)


# --------------------------------------------------------------------------------------------------------- evaluation


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["pil", "pil_bicubic", "opencv", "torch"]),
    st.sampled_from([1, 3]),
    st.integers(0, 6),
    st.booleans(),
    st.integers(3, 60),
    st.integers(3, 60),
)
def test_views_have_their_size(
    resize_backend: Any, crops: int, more: int, keep_aspect: bool, height: int, width: int
) -> None:
    transform = EvalTransform(12, 12 + more, crops, resize_backend, keep_aspect)
    views = transform.crop_clip(noisy_clip(2, height, width))
    assert len(views) == crops
    for view in views:
        assert view.shape == (3, 2, 12, 12)
        assert view.dtype == (torch.float32 if resize_backend == "torch" else torch.uint8)
        assert view.is_contiguous()
    one: ClipTransform = transform
    assert torch.equal(one(noisy_clip(2, height, width), np.random.RandomState(0)), views[crops // 2])


def test_three_crops_cover_the_longer_side() -> None:
    ramp = torch.arange(60, dtype=torch.uint8).view(1, 1, 60, 1).expand(1, 20, 60, 3).contiguous()
    left, middle, right = EvalTransform(20, num_crops=3).crop_clip(ramp)
    assert (left[0, 0, 0, 0], middle[0, 0, 0, 0], right[0, 0, 0, -1]) == (0, 20, 59)
    top, _, bottom = EvalTransform(20, num_crops=3).crop_clip(ramp.transpose(1, 2).contiguous())
    assert torch.equal(top, left.transpose(-1, -2))
    assert torch.equal(bottom, right.transpose(-1, -2))


def test_sizes_and_places_round_as_released() -> None:
    assert scaled_size(240, 427, 256, "pil") == (256, 455)
    assert scaled_size(427, 240, 256, "opencv") == (455, 256)
    assert scaled_size(30, 30, 8, "torch") == (8, 8)
    assert crop_starts(255, 224, 1) == (16,)
    assert crop_starts(257, 224, 1) == (16,)
    assert crop_starts(257, 224, 1, "torch") == (17,)
    assert crop_starts(257, 224, 3, "torch") == (0, 17, 33)
    with pytest.raises(ValueError, match="does not fit"):
        crop_starts(10, 11, 3)


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "build",
    [
        lambda: TrainTransform(0),
        lambda: TrainTransform(8, erasing=1.5),
        lambda: TrainTransform(8, "random", resize=7),
        lambda: EvalTransform(8, 7),
        lambda: EvalTransform(8, num_crops=2),
        lambda: EvalTransform(8).crop_clip(torch.zeros(2, 3, 9, 9, dtype=torch.uint8)),
        lambda: EvalTransform(8).crop_clip(torch.zeros(0, 9, 9, 3, dtype=torch.uint8)),
        lambda: EvalTransform(8).crop_clip(torch.zeros(2, 9, 9, 3)),
    ],
)
def test_wrong_settings_and_inputs_are_errors(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        build()
