"""Learning-rate schedules: goldens, closed forms, settings."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from goldens_folder import GOLDENS
from pydantic import ValidationError

from internvideo.training.schedule import Schedule, cosine_including_warmup, cosine_with_warmup
from internvideo.training.settings import ScheduleSettings

EXACT = 1e-12


def golden(path: str) -> dict[str, Any]:
    content = json.loads((GOLDENS / path).read_text())
    assert isinstance(content, dict)
    return content


def mae_values(args: dict[str, Any]) -> list[float]:
    total = args["epochs"] * args["niter_per_ep"]
    warmup = args.get("warmup_steps", -1)
    if warmup <= 0:
        warmup = args.get("warmup_epochs", 0) * args["niter_per_ep"]
    peak, final, start = args["base_value"], args["final_value"], args.get("start_warmup_value", 0)
    return [
        cosine_with_warmup(i, total, peak=peak, final=final, warmup_steps=warmup, start=start) for i in range(total)
    ]


@pytest.mark.parity
@pytest.mark.parametrize("index", range(len(golden("models/mae_schedule.json")["cases"])))
def test_masked_schedule(index: int) -> None:
    case = golden("models/mae_schedule.json")["cases"][index]
    values = mae_values(case["args"])
    assert len(values) == case["n"]
    assert values[: len(case["first"])] == pytest.approx(case["first"], abs=EXACT)
    assert values[:: max(1, len(values) // 20)] == pytest.approx(case["every"], abs=EXACT)
    assert values[-1] == pytest.approx(case["last"], abs=EXACT)


TASKS = golden("tasks/training_schedules/expected.json")


@pytest.mark.parity
@pytest.mark.parametrize("index", range(len(TASKS["cosine_with_warmup"])))
def test_cosine_through_the_settings(index: int) -> None:
    case = TASKS["cosine_with_warmup"][index]
    per_epoch = case["steps_per_epoch"]
    settings = ScheduleSettings(
        epochs=case["epochs"], warmup=case["warmup_epochs"], start_lr=case["start_warmup"], final_lr=case["final"]
    )
    total, warmup = settings.total_steps(per_epoch), settings.warmup_steps(per_epoch)
    schedule = Schedule(settings, peak=case["base"], scale=1.0, total_steps=total, warmup_steps=warmup)
    assert [schedule(step) for step in range(total)] == pytest.approx(case["values"], abs=EXACT)


@pytest.mark.parity
def test_retrieval_factor() -> None:
    case = TASKS["retrieval_warmup_cosine"]
    found = [cosine_including_warmup(progress, case["warmup"]) for progress in case["progress"]]
    assert found == pytest.approx(case["factor"], abs=EXACT)


def test_start_and_final_rate_are_scaled_with_the_peak() -> None:
    settings = ScheduleSettings(steps=10, warmup=2, start_lr=1e-6, final_lr=1e-5)
    schedule = Schedule(settings, peak=4e-3, scale=4.0, total_steps=10, warmup_steps=2)
    assert schedule(0) == pytest.approx(4e-6)
    assert schedule(1) == schedule(2) == pytest.approx(4e-3)
    assert schedule(10) == pytest.approx(4e-5)


def test_linear_constant_and_whole_cosine() -> None:
    warmed = Schedule(
        ScheduleSettings(steps=10, warmup=2, kind="linear"), peak=1.0, scale=1.0, total_steps=10, warmup_steps=2
    )
    assert warmed(6) == pytest.approx(0.5)
    constant = Schedule(
        ScheduleSettings(steps=4, warmup=2, kind="constant"), peak=2.0, scale=1.0, total_steps=4, warmup_steps=2
    )
    assert [constant(step) for step in range(4)] == [0.0, 2.0, 2.0, 2.0]
    linear = Schedule(ScheduleSettings(steps=4, kind="linear"), peak=2.0, scale=1.0, total_steps=4, warmup_steps=0)
    assert [linear(step) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]
    whole = Schedule(
        ScheduleSettings(steps=4, kind="cosine_including_warmup"), peak=2.0, scale=1.0, total_steps=4, warmup_steps=1
    )
    assert [whole(step) for step in range(4)] == pytest.approx(
        [0.0, 1 + math.cos(math.pi / 4), 1.0, 1 - math.cos(math.pi / 4)]
    )


def test_warmup_of_one_step_and_of_the_whole_run() -> None:
    assert cosine_with_warmup(0, 4, peak=1.0, final=0.0, warmup_steps=1, start=0.25) == 0.25
    assert [cosine_with_warmup(i, 3, peak=1.0, final=0.0, warmup_steps=3) for i in range(3)] == [0.0, 0.5, 1.0]


def test_lengths() -> None:
    assert ScheduleSettings(epochs=3).total_steps(7) == 21
    assert ScheduleSettings(epochs=0.5).total_steps(7.5) == 4
    assert ScheduleSettings(epochs=0.01).total_steps(7) == 1
    assert ScheduleSettings(epochs=3, warmup=0.5).warmup_steps(10) == 5
    assert ScheduleSettings(steps=30, warmup=3).warmup_steps(10) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"steps": 3, "epochs": 1},
        {"steps": 3, "warmup": 4},
        {"steps": 0},
        {"steps": 3, "final_lr": -1.0},
        {"steps": 3, "warm_up": 1},
        {"steps": 3, "kind": "step"},
        {"steps": 3, "kind": "cosine_including_warmup", "final_lr": 1e-6},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScheduleSettings.model_validate(wrong)


def test_steps_drop_to_a_tenth_where_they_are_asked_to() -> None:
    settings = ScheduleSettings(epochs=50, kind="multistep", milestones=(20, 40))
    per_epoch = 7
    schedule = Schedule(settings, peak=1.0, scale=1.0, total_steps=settings.total_steps(per_epoch), warmup_steps=0)
    values = [schedule(step) for step in range(50 * per_epoch)]
    expected = [1.0] * 20 * per_epoch + [0.1] * 20 * per_epoch + [0.01] * 10 * per_epoch
    assert values == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "multistep"},
        {"milestones": (2,)},
        {"kind": "multistep", "milestones": (4, 2)},
        {"kind": "multistep", "milestones": (9,)},
    ],
)
def test_drops_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="milestones"):
        ScheduleSettings(epochs=8, **wrong)
