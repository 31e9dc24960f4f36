"""Batches of an epoch, some of them made of runs of alike clips."""

from __future__ import annotations

import numpy as np

from internvideo.data.epoch_plan import AlikeBatches, EpochPlan


def test_batches_of_alike_clips_hold_runs_and_every_clip_once() -> None:
    groups = np.repeat(np.arange(10), 13)
    alike = AlikeBatches(groups, size=4, share=0.5, first_epoch=2)
    plan = EpochPlan(len(groups), 8, 0, True, True, 0, 1, alike=alike)
    plain = EpochPlan(len(groups), 8, 0, True, True, 0, 1)
    assert np.array_equal(plan.order(1), plain.order(1))
    for epoch in (2, 3):
        order = np.asarray(plan.order(epoch))
        assert sorted(order.tolist()) == list(range(len(groups)))
        assert np.array_equal(order, plan.order(epoch))  # resumable
        batches = [groups[order[list(plan.positions(batch))]] for batch in range(plan.batches)]
        runs = [batch for batch in batches if all(len(set(batch[i : i + 4].tolist())) == 1 for i in (0, 4))]
        assert len(runs) == round(0.5 * plan.batches)
    assert not np.array_equal(plan.order(2), plan.order(3))


def test_too_few_alike_clips_make_fewer_such_batches() -> None:
    groups = np.r_[np.zeros(9), np.arange(1, 32)].astype(int)
    order = AlikeBatches(groups, 4, 1.0, 0).arrange(np.arange(40), 8, np.random.RandomState(0))
    assert sorted(order.tolist()) == list(range(40))
