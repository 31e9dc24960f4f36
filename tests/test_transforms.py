"""Clip transforms: stored preprocessing and mixing results, the image library as oracle, and what all frames share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from safetensors.torch import load_file
from torch import Tensor

from goldens_folder import GOLDENS
from internvideo.data import rand_augment as ra
from internvideo.data.mixup import Mixup, soft_targets
from internvideo.data.rand_augment import OPERATIONS, RandAugment
from internvideo.data.resize import channels_first, crop_starts, resize, resize_fast, scaled_size
from internvideo.data.sampling import dense_windows
from internvideo.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipTransform,
    EvalTransform,
    TrainTransform,
    direction_classes,
    erase_cube,
    multi_scale_box,
    random_resized_box,
)

INFO = json.loads((GOLDENS / "models/preprocess.json").read_text())
STORED = load_file(GOLDENS / "models/preprocess.safetensors")
MIXES = json.loads((GOLDENS / "tasks/training_schedules/expected.json").read_text())["mixup_target"]
CLIP_STATS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_STATS = IMAGENET_MEAN, IMAGENET_STD
ONE_STATS = (0.45,) * 3, (0.225,) * 3
POLICY = "rand-m7-n4-mstd0.5-inc1"


def normalised(view: Tensor, stats: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in stats)
    return (view.float() / 255 - mean) / std


def multimodal(name: str) -> Tensor:
    clip = STORED["video" + name.removeprefix("mm_out")]
    return normalised(EvalTransform(INFO["crop"], INFO["resize_to"]).views(clip)[0], CLIP_STATS)


def multimodal_big(name: str) -> Tensor:
    return EvalTransform(224, 256).views(STORED["video_big"])[0]


def masked_validation(name: str) -> Tensor:
    clip = STORED["video" + name.removeprefix("mae_val_out")]
    transform = EvalTransform(INFO["crop"], INFO["resize_to"], style="opencv")
    return normalised(transform.views(clip)[0], IMAGENET_STATS)


def masked_dense(name: str) -> Tensor:
    view, crop = map(int, name.removeprefix("mae_test_dense_").split("_"))
    start = dense_windows(len(STORED["video_long"]), 4, 2)[view]
    views = EvalTransform(32, crops=3, style="opencv").views(STORED["video_long"][start : start + 4])
    return normalised(views[crop], IMAGENET_STATS)


def masked_sparse(name: str) -> Tensor:
    view, crop = map(int, name.removeprefix("mae_test_sparse_").split("_"))
    views = EvalTransform(32, crops=3, style="opencv").views(STORED["video_long"][:8][view::2])
    return normalised(views[crop], IMAGENET_STATS)


def uniformer(name: str) -> Tensor:
    clip, crop = map(int, name.removeprefix("ufv2_out").split("_"))
    views = EvalTransform(INFO["crop"], crops=3, style="torch").views(STORED[f"video{clip}"])
    return normalised(views[crop], ONE_STATS)


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


@pytest.mark.parity
@pytest.mark.parametrize("case", MIXES, ids=range(len(MIXES)))
def test_stored_mixed_targets(case: dict[str, Any]) -> None:
    got = soft_targets(torch.tensor(case["labels"]), case["num_classes"], case["smoothing"], case["lam"])
    torch.testing.assert_close(got, torch.tensor(case["target"]), rtol=0, atol=1e-7)


def test_targets_know_which_label_gets_the_share() -> None:
    targets = soft_targets(torch.tensor([0, 1, 2]), 4, 0.0, 0.75)
    assert targets.tolist() == [[0.75, 0, 0.25, 0], [0, 1, 0, 0], [0.25, 0, 0.75, 0]]


# ------------------------------------------------------------------------------------------- the library as oracle


def smooth_clip(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(T, H, W, 3) uint8 of soft blobs that differ from frame to frame."""
    coarse = torch.rand(frames, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return fine.mul_(230).add_(10).byte().permute(0, 2, 3, 1).contiguous()


def noisy_clip(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator, dtype=torch.uint8)


def by_library(clip: Tensor, function: Callable[[Image.Image], Image.Image]) -> Tensor:
    """(T, H, W, 3) through an image function -> (T, 3, H', W')."""
    frames = [np.asarray(function(Image.fromarray(frame.numpy()))) for frame in clip]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("height", "width", "size"), [(48, 85, (36, 64)), (48, 85, (72, 128)), (60, 60, (35, 35))])
def test_evaluation_resizers_equal_the_library(height: int, width: int, size: tuple[int, int]) -> None:
    clip = noisy_clip(2, height, width)
    for style, filtered in (("pil", Image.Resampling.BILINEAR), ("pil_bicubic", Image.Resampling.BICUBIC)):
        wanted = by_library(clip, lambda image, way=filtered: image.resize((size[1], size[0]), way))
        assert torch.equal(resize(channels_first(clip), size, style), wanted)
    wanted = by_library(clip, lambda image: image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    away = (resize_fast(channels_first(clip), size).int() - wanted.int()).abs()
    assert away.max() <= 2


def test_opencv_style_is_bilinear_between_four_neighbours() -> None:
    clip = noisy_clip(2, 40, 50)
    plain = resize(channels_first(clip), (23, 71), "torch")
    away = (resize(channels_first(clip), (23, 71), "opencv").float() - plain).abs()
    assert away.max() < 1.01
    assert (resize_fast(channels_first(clip), (23, 71)).float() - plain).abs().max() > 5


WARP = {"resample": Image.Resampling.BICUBIC, "fillcolor": (128, 128, 128)}


def affine_by_library(clip: Tensor, matrix: tuple[float, ...]) -> Tensor:
    return by_library(clip, lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, **WARP))


def raised(image: Image.Image) -> Image.Image:
    return image.point([min(255, level + 77) if level < 128 else level for level in range(256)] * 3)


POINT_OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Image.Image], Image.Image]]] = {
    "auto_contrast": (ra.auto_contrast, ImageOps.autocontrast),
    "equalize": (ra.equalize, ImageOps.equalize),
    "invert": (ra.invert, ImageOps.invert),
    "posterize": (lambda f: ra.posterize(f, 2), lambda i: ImageOps.posterize(i, 2)),
    "solarize": (lambda f: ra.solarize(f, 77), lambda i: ImageOps.solarize(i, 77)),
    "solarize_add": (lambda f: ra.solarize_add(f, 77), raised),
    "colour": (lambda f: ra.colour(f, 0.37), lambda i: ImageEnhance.Color(i).enhance(0.37)),
    "contrast": (lambda f: ra.contrast(f, 1.63), lambda i: ImageEnhance.Contrast(i).enhance(1.63)),
    "brightness": (lambda f: ra.brightness(f, 1.63), lambda i: ImageEnhance.Brightness(i).enhance(1.63)),
    "sharpness": (lambda f: ra.sharpness(f, 1.63), lambda i: ImageEnhance.Sharpness(i).enhance(1.63)),
}


@pytest.mark.parametrize("name", POINT_OPERATIONS)
@pytest.mark.parametrize("make", [smooth_clip, noisy_clip])
def test_point_operations_equal_the_library(name: str, make: Callable[[int, int, int], Tensor]) -> None:
    ours, theirs = POINT_OPERATIONS[name]
    clip = make(3, 31, 43)
    away = (ours(channels_first(clip)).int() - by_library(clip, theirs).int()).abs()
    assert away.max() <= 1
    assert away.float().mean() < 0.01


def test_geometric_operations_follow_the_library() -> None:
    clip = smooth_clip(2, 60, 80)
    frames = channels_first(clip)
    pairs = {
        "rotate": (ra.rotate(frames, 21.0), by_library(clip, lambda image: image.rotate(21.0, **WARP))),
        "shear_x": (ra.shear_x(frames, 0.21), affine_by_library(clip, (1, 0.21, 0, 0, 1, 0))),
        "shear_y": (ra.shear_y(frames, -0.21), affine_by_library(clip, (1, 0, 0, -0.21, 1, 0))),
        "translate_x": (ra.translate_x(frames, 0.25), affine_by_library(clip, (1, 0, 20, 0, 1, 0))),
        "translate_y": (ra.translate_y(frames, -0.25), affine_by_library(clip, (1, 0, 0, 0, 1, -15))),
    }
    for name, (got, wanted) in pairs.items():
        away = (got.int() - wanted.int()).abs().float()
        assert away[..., 22:38, 30:50].max() <= 2, name
        # Elsewhere only the seam to the grey outside differs by more than rounding.
        assert (away > 2).float().mean() < 0.06, name


@pytest.mark.parametrize("name", OPERATIONS)
def test_flat_and_tiny_frames_survive_every_operation(name: str) -> None:
    for clip in (torch.full((2, 9, 7, 3), 200, dtype=torch.uint8), noisy_clip(1, 1, 2)):
        for level in (0.0, 0.7, 1.0):
            changed = OPERATIONS[name](channels_first(clip), level, -1)
            assert changed.dtype == torch.uint8
            assert changed.shape == channels_first(clip).shape
    flat = torch.full((1, 3, 9, 7), 200, dtype=torch.uint8)
    if name in ("auto_contrast", "equalize", "colour", "contrast", "sharpness"):
        assert torch.equal(OPERATIONS[name](flat, 0.7, 1), flat)


# ------------------------------------------------------------------------------------------------- same for all frames


def still(height: int, width: int, frames: int = 4, seed: int = 0) -> Tensor:
    return noisy_clip(1, height, width, seed).expand(frames, -1, -1, -1).contiguous()


TRAIN = st.builds(
    TrainTransform,
    size=st.integers(8, 24),
    crop=st.sampled_from(["multi_scale", "random_resized", "random", "centre"]),
    flip=st.booleans(),
    rand_augment=st.sampled_from([None, POLICY, "rand-m9-n2-mstd0.5-inc1"]),
    squash=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(TRAIN, st.integers(8, 50), st.integers(8, 50), st.integers(0, 9999))
def test_training_treats_all_frames_alike(transform: TrainTransform, height: int, width: int, seed: int) -> None:
    clip = still(height, width, seed=seed)
    before = clip.clone()
    view = transform(clip, np.random.RandomState(seed))
    assert view.shape == (3, 4, transform.size, transform.size)
    assert view.dtype == torch.uint8
    assert view.is_contiguous()
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
    frames = torch.full((5, 3, 40, 40), 7, dtype=torch.uint8)
    erased = erase_cube(frames, 1.0, np.random.RandomState(0))
    changed = (erased != 7).any(1)
    rows, columns = changed.any(0).any(1).nonzero(), changed.any(0).any(0).nonzero()
    box = changed[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.float().mean() > 0.95
    assert box.sum() == changed.sum()
    assert 0.01 < changed.float().mean() < 0.4
    assert (frames == 7).all()
    assert not torch.equal(erased[0], erased[1])
    assert erase_cube(frames, 0.0, np.random.RandomState(0)) is frames


def test_flip_mirrors_half_of_the_clips_and_only_when_asked() -> None:
    clip = still(20, 20)
    plain = TrainTransform(20, "centre", resize=20)
    flipping = TrainTransform(20, "centre", resize=20, flip=True)
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
def test_views_have_their_size(style: Any, crops: int, more: int, squash: bool, height: int, width: int) -> None:
    transform = EvalTransform(12, 12 + more, crops, style, squash)
    views = transform.views(noisy_clip(2, height, width))
    assert len(views) == crops
    for view in views:
        assert view.shape == (3, 2, 12, 12)
        assert view.dtype == (torch.float32 if style == "torch" else torch.uint8)
        assert view.is_contiguous()
    one: ClipTransform = transform
    assert torch.equal(one(noisy_clip(2, height, width), np.random.RandomState(0)), views[crops // 2])


def test_three_crops_cover_the_longer_side() -> None:
    ramp = torch.arange(60, dtype=torch.uint8).view(1, 1, 60, 1).expand(1, 20, 60, 3).contiguous()
    left, middle, right = EvalTransform(20, crops=3).views(ramp)
    assert (left[0, 0, 0, 0], middle[0, 0, 0, 0], right[0, 0, 0, -1]) == (0, 20, 59)
    top, _, bottom = EvalTransform(20, crops=3).views(ramp.transpose(1, 2).contiguous())
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


# ------------------------------------------------------------------------------------------------ settings and mixing


def test_policy_strings() -> None:
    assert RandAugment.parse(POLICY) == RandAugment(7.0, 4, 0.5, 0.5)
    assert len(OPERATIONS) == 15
    for text in ("rand-m7-n4-mstd0.5", "auto-m7", "rand-m7-q3-inc1", "rand-m7-n4-inc2", "rand-m17-n4-inc1", ""):
        with pytest.raises(ValueError, match="RandAugment"):
            RandAugment.parse(text)


def test_policy_draws_as_configured() -> None:
    rng = np.random.RandomState(0)
    draws = [draw for _ in range(1500) for draw in RandAugment.parse(POLICY).draw(rng)]
    levels = np.asarray([level for _, level, _ in draws])
    names = [name for name, _, _ in draws]
    assert abs(len(draws) / 6000 - 0.5) < 0.03
    assert abs(levels.mean() - 0.7) < 0.01
    assert abs(levels.std() - 0.05) < 0.01
    assert min(names.count(name) for name in OPERATIONS) > 120
    assert abs(np.mean([sign for _, _, sign in draws])) < 0.06


@pytest.mark.parametrize(
    "build",
    [
        lambda: TrainTransform(0),
        lambda: TrainTransform(8, erasing=1.5),
        lambda: TrainTransform(8, "random", resize=7),
        lambda: EvalTransform(8, 7),
        lambda: EvalTransform(8, crops=2),
        lambda: Mixup(0),
        lambda: Mixup(3, mixup_alpha=-1),
        lambda: Mixup(3, smoothing=1.5),
        lambda: RandAugment(magnitude=11),
        lambda: EvalTransform(8).views(torch.zeros(2, 3, 9, 9, dtype=torch.uint8)),
        lambda: EvalTransform(8).views(torch.zeros(0, 9, 9, 3, dtype=torch.uint8)),
        lambda: EvalTransform(8).views(torch.zeros(2, 9, 9, 3)),
        lambda: soft_targets(torch.tensor([0, -100]), 3, 0.1),
        lambda: soft_targets(torch.tensor([3]), 3, 0.1),
    ],
)
def test_wrong_settings_and_inputs_are_errors(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        build()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(0, 9999), st.sampled_from([0.0, 0.8]), st.sampled_from([0.0, 1.0]))
def test_mixing_and_targets_agree(count: int, seed: int, mixup: float, cutmix: float) -> None:
    levels = torch.arange(count, dtype=torch.uint8) * 50
    video = levels.view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 16, 16).contiguous()
    labels = torch.arange(count)
    mixed, targets = Mixup(5, mixup, cutmix, smoothing=0.0)(video, labels, np.random.RandomState(seed))
    assert mixed.dtype == targets.dtype == torch.float32
    assert mixed.shape == video.shape
    assert mixed.is_contiguous()
    # Every clip is flat with the level 50 x label, so the mean level tells the mixture that the target states.
    torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), (targets @ (torch.arange(5.0) * 50)), rtol=0, atol=1e-3)
    torch.testing.assert_close(mixed, mixed[:, :1, :1].expand_as(mixed))
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    assert torch.equal(video[:, 0, 0, 0, 0], levels)
    if mixup == cutmix == 0:
        assert torch.equal(mixed, video.float())


def test_mixing_can_be_left_out() -> None:
    video = torch.randint(0, 256, (4, 3, 2, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    mixed, targets = Mixup(3, probability=0.0)(video, labels, np.random.RandomState(0))
    assert torch.equal(mixed, video.float())
    assert torch.equal(targets, soft_targets(labels, 3, 0.1))
