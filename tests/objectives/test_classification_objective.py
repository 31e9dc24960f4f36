"""Cross entropy: closed forms, goldens of the smoothed target, gradients, ignored labels."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from goldens_folder import GOLDENS

from internvideo.data.mixup import soft_targets
from internvideo.objectives.classification import cross_entropy

TARGETS: list[dict[str, Any]] = json.loads((GOLDENS / "tasks/training_schedules/expected.json").read_text())[
    "mixup_target"
]


@pytest.mark.parity
@pytest.mark.parametrize("index", range(len(TARGETS)))
def test_smoothed_targets(index: int) -> None:
    case = TARGETS[index]
    labels, lam = torch.tensor(case["labels"]), case["lam"]
    mixed = soft_targets(labels, case["num_classes"], case["smoothing"], lam)
    assert torch.allclose(mixed, torch.tensor(case["target"]), atol=1e-7)


def test_uniform_logits_give_log_classes() -> None:
    logits = torch.zeros(3, 7)
    assert cross_entropy(logits, torch.tensor([0, 3, 6])).item() == pytest.approx(math.log(7))
    assert cross_entropy(logits, torch.full((3, 7), 1 / 7)).item() == pytest.approx(math.log(7))


def test_smoothing_of_labels_equals_soft_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 4, generator=generator), torch.tensor([0, 1, 2, 3, 1])
    soft = soft_targets(labels, 4, 0.1)
    assert torch.allclose(cross_entropy(logits, labels, 0.1), cross_entropy(logits, soft), atol=1e-6)
    by_hand = -(soft * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()
    assert torch.allclose(cross_entropy(logits, soft), by_hand, atol=1e-6)


def test_ignored_labels_count_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, requires_grad=True)
    some = cross_entropy(logits, torch.tensor([2, -100, 0, -100]), 0.1)
    assert torch.allclose(some, cross_entropy(logits[[0, 2]], torch.tensor([2, 0]), 0.1))
    none = cross_entropy(logits, torch.full((4,), -100))
    none.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
    assert none.item() == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(4, 3))


def test_gradient_is_probability_minus_target() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([[0.2, 0.3, 0.5]] * 4)
    cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
    assert logits.grad is not None
    assert torch.allclose(logits.grad, (logits.detach().softmax(1) - targets) / 4, atol=1e-6)


def test_leading_dimensions_and_half_precision() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2], [4, -100, 3]])
    flat = cross_entropy(logits.reshape(6, 5), labels.reshape(6))
    assert torch.allclose(cross_entropy(logits, labels), flat)
    assert cross_entropy(logits.bfloat16(), labels).dtype == torch.float32


def test_misuse() -> None:
    with pytest.raises(ValueError, match="labels"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="targets"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="already carry"):
        cross_entropy(torch.zeros(2, 3), torch.full((2, 3), 1 / 3), smoothing=0.1)
