"""RandAugment: each operation against the image library, and what the policy draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_oracle import by_library, noisy_clip, smooth_clip
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from internvideo.data import rand_augment as ra
from internvideo.data.rand_augment import OPERATIONS, RandAugment
from internvideo.data.resize import channels_first

POLICY = "rand-m7-n4-mstd0.5-inc1"
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
    "colour": (lambda f: ra.color(f, 0.37), lambda i: ImageEnhance.Color(i).enhance(0.37)),
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


def test_wrong_settings_are_errors() -> None:
    with pytest.raises(ValueError, match=r"0\.\.10"):
        RandAugment(magnitude=11)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(3, 40), st.data())
def test_a_box_is_that_part_of_the_whole_result(seed: int, height: int, width: int, data: st.DataObject) -> None:
    frames = torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (3, 3, height, width)).astype(np.uint8))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    high, wide = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    policy = RandAugment(count=5, probability=0.8)
    drawn = policy.draw(np.random.RandomState(seed))
    whole = frames
    for name, level, sign in drawn:
        whole = OPERATIONS[name](whole, level, sign)
    part = policy.apply(frames, drawn, (top, left, high, wide))
    assert torch.equal(part, whole[..., top : top + high, left : left + wide])
