"""Augmentation on the device: the loader draws, and the moved batch equals the one that the loader would have made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from grey_clips import Letters, same
from safetensors.torch import load_file
from simulated_cuda import CUDA, CudaTensor, simulated_cuda
from small_world import small_recipe

from internvideo.apps.dry_run import describe
from internvideo.data.batch import Batch
from internvideo.data.decoding.decoded_batch import DecodedBatch
from internvideo.data.loader import Loader, LoaderSettings
from internvideo.data.manifest import Manifest
from internvideo.data.mixture import MixedLoader
from internvideo.data.mixup import Mixup
from internvideo.data.rand_augment import OPERATIONS, RandAugment
from internvideo.data.resize import channels_first
from internvideo.data.sampling import FrameSampler, OnePerSecond, Sparse
from internvideo.data.transforms import CropKind, TrainTransform
from internvideo.errors import RecipeError
from internvideo.pipeline import run_recipe
from internvideo.recipe import build_recipe

POLICY = "rand-m7-n4-mstd0.5-inc1"
CPU = torch.device("cpu")
CASES: dict[str, dict[str, Any]] = {
    "masked": {"crop": "multi_scale"},
    "fine-tuning": {"crop": "random_resized", "flip": True, "rand_augment": POLICY, "erasing": 0.7},
    "corner": {"crop": "corner", "flip": True},
    "random": {"crop": "random", "rand_augment": POLICY},
    "center": {"crop": "center", "keep_aspect": False},
}


def batches(manifest: Manifest, case: str, *, on_device: bool, sampler: FrameSampler | None = None, **more: Any) -> Any:
    transform = TrainTransform(24, **CASES[case], on_device=on_device)
    settings = LoaderSettings(batch_size=3, seed=5, repeated_augmentation=2, **more)
    return Loader(manifest, sampler or Sparse(frames=4), transform, settings, tokenizer=Letters())


def on_cpu(decoded: Iterator[Any]) -> list[Batch]:
    found = list(decoded)
    assert all(isinstance(batch, DecodedBatch) for batch in found)
    return [batch.to(CPU) for batch in found]


@pytest.mark.parametrize("case", CASES)
def test_batches_equal_those_of_the_loader(manifest: Manifest, case: str) -> None:
    expected = list(batches(manifest, case, on_device=False).epoch(1))
    assert same(on_cpu(batches(manifest, case, on_device=True).epoch(1)), expected)


def test_workers_and_resuming_change_nothing(manifest: Manifest) -> None:
    expected = list(batches(manifest, "fine-tuning", on_device=False).epoch(2, 1))
    assert same(on_cpu(batches(manifest, "fine-tuning", on_device=True, workers=1, threads=2).epoch(2, 1)), expected)


def test_clips_of_fewer_frames_are_padded(manifest: Manifest) -> None:
    short = manifest.rows[0].model_copy(update={"span": (0.0, 1.0)})
    rows = dataclasses.replace(manifest, rows=(short, *manifest.rows[1:]))
    sampler = OnePerSecond(frames=4)
    expected = list(batches(rows, "center", on_device=False, sampler=sampler).epoch(0))
    found = on_cpu(batches(rows, "center", on_device=True, sampler=sampler).epoch(0))
    assert same(found, expected)
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(cast(torch.Tensor, batch.frame_mask), cast(torch.Tensor, other.frame_mask))


def test_mixing_follows_the_augmentation(manifest: Manifest) -> None:
    mixed = [
        MixedLoader(batches(manifest, "fine-tuning", on_device=on_device), Mixup(3), seed=7)
        for on_device in (False, True)
    ]
    expected = list(mixed[0].epoch(1))
    assert any(batch.labels is not None and batch.labels.amax(1).min() < 0.9 for batch in expected)
    assert same(on_cpu(mixed[1].epoch(1)), expected)


def noise(frames: int = 5, height: int = 24, width: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (frames, height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_on_cuda_are_those_of_the_cpu(name: str) -> None:
    clip = noise()
    for sign in (-1, 1):
        drawn = [(name, 0.7, sign)]
        expected = RandAugment().apply(channels_first(clip), drawn, (3, 5, 16, 20))
        with simulated_cuda() as waits:
            found = RandAugment().apply(channels_first(clip.to(CUDA, non_blocking=True)), drawn, (3, 5, 16, 20))
        assert not waits.found
        assert torch.equal(cast(CudaTensor, found).inner, expected)


@pytest.mark.parametrize("crop", ["random_resized", "corner"])
def test_a_batch_on_cuda_differs_by_the_rounding_of_its_resizing(crop: CropKind) -> None:
    clip = noise()
    for seed in range(4):
        transform = TrainTransform(16, crop, flip=True, erasing=1.0)
        drawn = transform.draw(24, 40, np.random.RandomState(seed))
        assert drawn.erasing is not None
        expected = transform(clip, np.random.RandomState(seed))
        with simulated_cuda() as waits:
            out = torch.zeros(expected.shape, dtype=torch.uint8, device=CUDA)
            transform.apply(clip.to(CUDA, non_blocking=True), drawn, out)
        assert not waits.found
        away = (cast(CudaTensor, out).inner.int() - expected.int()).abs()
        assert away.max() <= (1 if crop == "random_resized" else 2)  # corners are resized twice
        top, left, high, wide = drawn.erasing.box
        assert away[..., top : top + high, left : left + wide].max() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_batches_on_a_gpu_are_near_those_of_the_cpu(manifest: Manifest, case: str) -> None:
    for batch in batches(manifest, case, on_device=True).epoch(1):
        expected = batch.to(CPU).video.int()
        away = (batch.to(torch.device("cuda")).video.cpu().int() - expected).abs()
        assert (away <= 2).float().mean() > 0.98


@pytest.mark.parametrize("stage", ["masked", "supervised", "multimodal"])
def test_training_is_the_same(stage: str, tmp_path: Path) -> None:
    mixing = {"mixup": 0.8} if stage == "supervised" else {}
    weights = []
    for on_device in (False, True):
        augment = {"on_device": on_device, "crop": "random_resized", "rand_augment": POLICY, **mixing}
        tree = small_recipe(stage, augment=augment, schedule={"steps": 2}, loop={"checkpoint_every": 2})
        weights.append(load_file(run_recipe(build_recipe(tree), tmp_path / str(on_device))))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_dry_run_augments_its_batch() -> None:
    recipe = build_recipe(small_recipe("masked", augment={"on_device": True}))
    assert "8 clips a batch of (3, 4, 32, 32)" in describe(recipe, device="cpu")


def test_clips_as_they_are_tested_are_not_drawn() -> None:
    with pytest.raises(RecipeError, match=r"data.augment.*leave on_device out"):
        build_recipe(small_recipe("masked", augment={"on_device": True, "use_eval_transform": True}))
