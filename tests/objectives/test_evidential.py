"""Evidential losses: every stored term of the published implementation, closed forms, float64 gradients."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS
from torch import Tensor

from internvideo.objectives import evidential as e

FOLDER = GOLDENS / "tasks" / "open_set"
STORED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
CASES = STORED["evidence_loss_cases"]
with np.load(FOLDER / "open_set.npz", allow_pickle=False) as file:
    ARRAYS = {name: torch.from_numpy(file[name]) for name in file.files}
TERMS = (
    "loss_cls",
    "loss_var",
    "loss_kl",
    "loss_avu",
    "uncertainty",
    "evidence_succ",
    "evidence_fail",
    "annealing_coef",
)


def terms(case: dict[str, Any]) -> dict[str, Tensor]:
    found, labels = e.evidence(ARRAYS["edl_logits"], case["evidence"]), ARRAYS["edl_labels"]
    weight = e.annealing(
        torch.as_tensor(case["epoch"]),
        case["total_epoch"],
        case["annealing_method"],
        start=case["annealing_start"],
        step=case["annealing_step"],
    )
    made = e.evidential_loss(found, labels, case["loss_type"])
    if case["with_kldiv"]:
        made["loss_kl"] = weight * e.wrong_evidence(found, labels)
    if case["with_avuloss"]:
        made["loss_avu"] = e.calibration(found, labels, weight, disentangled=case["disentangle"])
    total = torch.stack([value.mean() for value in made.values()]).sum()
    right, wrong = e.mean_evidence(found, labels)
    made |= {"uncertainty": e.opinion(found)[1], "evidence_succ": right[None], "evidence_fail": wrong[None]}
    return made | {"total": total, "annealing_coef": weight.float()}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("number", "name"), [(i, name) for i, case in enumerate(CASES) for name in (*TERMS, "total") if name in case]
)
def test_stored_term(number: int, name: str) -> None:
    value = terms(CASES[number])[name]
    torch.testing.assert_close(value, torch.tensor(CASES[number][name]).view_as(value), rtol=1e-5, atol=2e-6)


@pytest.mark.parity
@pytest.mark.parametrize("number", range(len(CASES)))
def test_no_term_too_many(number: int) -> None:
    assert {name for name in terms(CASES[number]) if name.startswith("loss")} == {
        name for name in CASES[number] if name.startswith("loss_") and name != "loss_type"
    }


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(STORED["debias"]))
def test_debias(name: str) -> None:
    a, b = ARRAYS["hsic_a"], ARRAYS["hsic_b"]
    made = {
        "hsic_biased": lambda: e.hsic(a, b),
        "hsic_unbiased": lambda: e.hsic(a, b, unbiased=True),
        "hsic_unbiased_unnormalised": lambda: e.hsic(a, b, unbiased=True, normalized=False),
        "dirichlet_kl_a_b": lambda: e.dirichlet_kl(a, b),
        "dirichlet_kl_b_uniform": lambda: e.dirichlet_kl(b),
    }[name]()
    torch.testing.assert_close(made, torch.tensor(STORED["debias"][name]), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", ["step", "exp"])
def test_the_weight_rises_to_1_and_stays(kind: Any) -> None:
    weights = [e.annealing(torch.tensor(epoch), 20, kind, step=20).item() for epoch in (0, 10, 20, 21, 200)]
    assert weights[0] <= 0.01
    assert weights[0] < weights[1] < 1.0
    assert weights[2:] == [pytest.approx(1.0)] * 3


def test_no_evidence_is_full_uncertainty() -> None:
    probabilities, uncertainty = e.opinion(torch.zeros(2, 5))
    torch.testing.assert_close(probabilities, torch.full((2, 5), 0.2))
    torch.testing.assert_close(uncertainty, torch.ones(2))
    assert e.dirichlet_kl(torch.ones(3, 4)).abs().max() < 1e-6


def test_independent_features_have_no_dependence() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(400, 3, generator=generator), torch.randn(400, 3, generator=generator)
    apart, same = e.hsic(a, b, unbiased=True), e.hsic(a, a, unbiased=True)
    assert abs(apart) < 0.02 * same


@pytest.mark.parametrize("kind", ["log", "digamma", "mse", "cross_entropy"])
@pytest.mark.parametrize("how", ["exp", "softplus"])
def test_gradients(kind: e.Kind, how: e.Evidence) -> None:
    logits = ARRAYS["edl_logits"].double().mul(0.3).requires_grad_()
    labels = ARRAYS["edl_labels"]

    def whole(x: Tensor) -> Tensor:
        found = e.evidence(x, how)
        parts = [*e.evidential_loss(found, labels, kind).values(), e.wrong_evidence(found, labels)]
        return torch.stack(parts).sum() + e.calibration(found, labels, 0.3).sum()

    assert torch.autograd.gradcheck(whole, (logits,))


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = e.evidential_loss(e.evidence(logits), torch.tensor([1]))["loss_cls"].sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
