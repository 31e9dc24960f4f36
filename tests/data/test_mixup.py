"""Mixup and CutMix: stored targets, and targets that tell what was mixed."""

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

from internvideo.data.mixup import Mixup, soft_targets

MIXES = json.loads((GOLDENS / "tasks/training_schedules/expected.json").read_text())["mixup_target"]


@pytest.mark.parity
@pytest.mark.parametrize("case", MIXES, ids=range(len(MIXES)))
def test_stored_mixed_targets(case: dict[str, Any]) -> None:
    got = soft_targets(torch.tensor(case["labels"]), case["num_classes"], case["smoothing"], case["lam"])
    torch.testing.assert_close(got, torch.tensor(case["target"]), rtol=0, atol=1e-7)


def test_targets_know_which_label_gets_the_share() -> None:
    targets = soft_targets(torch.tensor([0, 1, 2]), 4, 0.0, 0.75)
    assert targets.tolist() == [[0.75, 0, 0.25, 0], [0, 1, 0, 0], [0.25, 0, 0.75, 0]]


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


@pytest.mark.parametrize(
    "build",
    [
        lambda: Mixup(0),
        lambda: Mixup(3, mixup_alpha=-1),
        lambda: Mixup(3, smoothing=1.5),
        lambda: soft_targets(torch.tensor([0, -100]), 3, 0.1),
        lambda: soft_targets(torch.tensor([3]), 3, 0.1),
    ],
)
def test_wrong_settings_and_labels_are_errors(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        build()
