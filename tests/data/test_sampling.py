"""Frame sampling: every stored index list, and what must hold for every length of video."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from goldens_folder import GOLDENS
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo.data import sampling
from internvideo.data.sampling import (
    Dense,
    DenseLoop,
    DensePretrain,
    FrameSampler,
    Linspace,
    SegmentMiddle,
    Sparse,
    SparseTwoView,
)
from internvideo.data.settings import SamplingSettings
from internvideo.errors import RecipeError

Case = dict[str, Any]


UNUSED = ("dense_start_end", "linspace_temporal_sampling")
"""Stored samplings that no model of ours is trained or tested with."""


def stored_cases() -> list[tuple[str, Case]]:
    tasks = json.loads((GOLDENS / "tasks/frame_sampling/expected.json").read_text())
    models = json.loads((GOLDENS / "models/preprocess.json").read_text())["frame_indices"]
    return [(kind, case) for kind, cases in [*tasks.items(), *models.items()] if kind not in UNUSED for case in cases]


STORED = stored_cases()


def check_dense_test_clips(case: Case) -> None:
    frames, stride = case["clip_len"], case["sampling_rate"]
    assert len(sampling.strided_buffer(case["num_frames"], frames, stride)) == case["decoded"]
    views = Dense(frames, stride, case["test_num_segment"]).test(case["num_frames"])
    assert [view.tolist() for view in views] == case["clips"]


def check_dense_train_clip(case: Case) -> None:
    got = Dense(len(case["indices"]), case["sampling_rate"]).train(case["num_frames"], np.random.RandomState(7))
    assert "seed(7)" in case["note"]
    assert got.tolist() == case["indices"]


def check_two_view(case: Case) -> None:
    frames, n = case["num_segment"], case["num_frames"]
    assert sampling.two_view_order(n, frames).tolist() == case["all_sorted"]
    assert [view.tolist() for view in SparseTwoView(frames).test(n)] == [case["clip0"], case["clip1"]]


def check_multi_clip(case: Case) -> None:
    views = Sparse(case["num_frames"], case["num_clips"]).test(case["num_frames_in_video"])
    assert [view.tolist() for view in views] == case["clips"]


def check_one_per_second(case: Case) -> None:
    indices, mask = sampling.one_per_second(
        case["num_frames"], case["fps"], case["max_frames"], case["start"], case["end"]
    )
    assert indices.tolist() == case["indices"]
    assert mask.tolist() == case["mask"]


def check_segment_middle(case: Case) -> None:
    assert sampling.segment_middle(case["video_length"], case["num_frames"]).tolist() == case["indices"]


def check_three_crop(case: Case) -> None:
    from internvideo.data.transforms import crop_starts

    long = case[case["axis"]]
    assert long == max(case["height"], case["width"])
    assert list(crop_starts(long, case["size"], 3)) == case["starts"]


def check_sparse_order(case: Case) -> None:
    assert sampling.two_view_order(case["n"], case["frames"]).tolist() == case["idx"]
    views = SparseTwoView(case["frames"], case["views"]).test(case["n"])
    assert [view.tolist() for view in views] == [case["idx"][v :: case["views"]] for v in range(case["views"])]


CHECKS: dict[str, Callable[[Case], None]] = {
    "retrieval_one_fps_then_uniform": check_one_per_second,
    "segment_middle": check_segment_middle,
    "dense_test_clips": check_dense_test_clips,
    "dense_train_clip": check_dense_train_clip,
    "sparse_two_view_test": check_two_view,
    "three_crop_starts_long_axis": check_three_crop,
    "sparse_multi_clip_test": check_multi_clip,
    "mae_val_dense": lambda c: same(Dense(c["clip_len"], c["rate"], 1).test(c["n"])[0], c),
    "mae_test_dense": lambda c: same(sampling.strided_buffer(c["n"], c["clip_len"], c["rate"]), c),
    "mae_test_sparse": check_sparse_order,
    "mae_test_sparse_rawframes": check_sparse_order,
    "mae_val_sparse_rawframes": lambda c: same(SparseTwoView(c["frames"], 1).test(c["n"])[0], c),
    "ufv2_sparse_eval": lambda c: same(Sparse(c["frames"], c["n_clips"]).test(c["n"])[c["clip"]], c),
    "mm_demo": lambda c: same(Linspace(c["frames"]).test(c["n"])[0], c),
    "mm_uniform": lambda c: same(sampling.segment_middle(c["n"], c["frames"]), c),
}


def same(got: sampling.Indices, case: Case) -> None:
    assert got.tolist() == case["idx"]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "case"), STORED, ids=[f"{kind}-{position}" for position, (kind, _) in enumerate(STORED)]
)
def test_stored_indices(kind: str, case: Case) -> None:
    assert kind in CHECKS, f"a kind of stored case that no test knows: {kind}"
    CHECKS[kind](case)


@pytest.mark.parity
def test_stored_cases_were_found() -> None:
    assert {kind for kind, _ in STORED}
    assert len(STORED) >= 50


SAMPLERS = st.one_of(
    st.builds(Dense, st.integers(1, 20), st.integers(1, 5), st.integers(1, 4)),
    st.builds(DensePretrain, st.integers(1, 20), st.integers(1, 5)),
    st.builds(Sparse, st.integers(1, 20), st.integers(1, 4)),
    st.builds(SparseTwoView, st.integers(1, 20), st.integers(1, 2), st.sampled_from(["first", "zeros", "spread"])),
    st.builds(SegmentMiddle, st.integers(1, 20)),
    st.builds(Linspace, st.integers(1, 20)),
    st.builds(DenseLoop, st.integers(1, 20), st.integers(1, 5), st.integers(1, 12)),
)


@settings(deadline=None, max_examples=300)
@given(SAMPLERS, st.integers(1, 200), st.integers(0, 1000))
def test_indices_lie_in_the_video_in_order(sampler: FrameSampler, n: int, seed: int) -> None:
    clips = [sampler.train(n, np.random.RandomState(seed)), *sampler.test(n)]
    for clip in clips:
        assert clip.shape == (sampler.frames,)
        assert clip.dtype == np.int64
        assert clip.min() >= 0
        assert clip.max() < n
        assert (np.diff(clip) >= 0).all() or (isinstance(sampler, DenseLoop) and n < sampler.frames * sampler.stride)
    assert len(clips) == 1 + getattr(sampler, "num_clips", 1)
    assert (clips[0] == sampler.train(n, np.random.RandomState(seed))).all()
    assert isinstance(sampler, FrameSampler)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 500), st.floats(1, 120), st.integers(1, 64), st.floats(0, 20), st.floats(0, 20))
def test_one_per_second_stays_in_the_span(n: int, fps: float, most: int, start: float, end: float) -> None:
    indices, mask = sampling.one_per_second(n, fps, most, start, end)
    assert len(indices) == mask.sum() <= most
    assert len(mask) == most
    if len(indices):
        assert int(min(start, end) * fps) == indices[0] <= indices[-1] < n


def test_training_reaches_both_ends() -> None:
    rng = np.random.RandomState(0)
    sparse = np.stack([Sparse(4).train(41, rng) for _ in range(300)])
    assert sparse.min() == 0
    assert sparse.max() == 40
    starts = {int(DensePretrain(4, 2).train(12, rng)[0]) for _ in range(200)}
    assert starts == set(range(5))
    ends = {int(Dense(4, 2).train(12, rng)[-1]) for _ in range(200)}
    assert ends == {7, 8, 9, 10}


@pytest.mark.parametrize(
    ("n", "right"),
    [
        (61, [*range(0, 57, 4), 56]),
        (57, [*range(0, 53, 4), 52, 52]),
        (62, [*range(0, 61, 4)]),
        (9, [0, *[4] * 15]),
        (1, [0] * 16),
    ],
)
def test_pretraining_steps_while_the_next_place_is_before_the_last(n: int, right: list[int]) -> None:
    """OpenGVLab/InternVideo, InternVideo1/Pretrain/VideoMAE/mae.py, get_frame_id_list: places counted from 1."""
    assert DensePretrain(16, 4).train(n, np.random.RandomState(0)).tolist() == right


def test_short_videos_of_sparse_training() -> None:
    """By default all frames after copies of the first, as the released SSRawFrameClsDataset does."""
    rng = np.random.RandomState(0)
    assert SparseTwoView(6).train(4, rng).tolist() == [0, 0, 0, 1, 2, 3]
    assert SparseTwoView(6).train(1, rng).tolist() == [0] * 6
    assert SparseTwoView(6, short="zeros").train(3, rng).tolist() == [0] * 6
    assert set(SparseTwoView(6, short="spread").train(3, rng).tolist()) == {0, 1, 2}


def test_the_last_frame_of_an_interval_is_never_drawn_for_the_language_tasks() -> None:
    """OpenGVLab/InternVideo, multi-modalities-downstream/CoTrain/datasets/video/video_base_dataset.py."""
    rng = np.random.RandomState(0)
    drawn = np.stack([SegmentMiddle(4).train(16, rng) for _ in range(200)])
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[0, 1, 2], [4, 5, 6], [8, 9, 10], [12, 13, 14]]
    assert SegmentMiddle(4).train(4, rng).tolist() == [0, 1, 2, 3], "an interval of one frame gives it"
    assert SegmentMiddle(4).train(2, rng).tolist() == [0, 1, 1, 1]


def test_open_set_clips() -> None:
    """mmaction2's DenseSampleFrames (mmaction/datasets/pipelines/loading.py) with 32 frames at stride 2 of 64."""
    assert DenseLoop().test(40)[3].tolist() == [*range(0, 40, 2), *range(0, 24, 2)], "a short video begins anew"
    assert [int(view[0]) for view in DenseLoop().test(100)] == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]
    assert DenseLoop().test(100)[9].tolist() == [*range(36, 99, 2)]
    assert [int(DenseLoop(num_clips=1).test(n)[0][0]) for n in (40, 64, 65, 100)] == [0, 0, 1, 18]
    rng = np.random.RandomState(0)
    assert {int(DenseLoop(4, 2).train(11, rng)[0]) for _ in range(100)} == {0, 1, 2}, "the last place is never drawn"
    assert DenseLoop(4, 2).train(7, rng).tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(
    "sampler", [Dense(), DensePretrain(), DenseLoop(), Sparse(), SparseTwoView(), SegmentMiddle(), Linspace()]
)
def test_no_frames_is_an_error(sampler: FrameSampler) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        sampler.train(0, np.random.RandomState(0))
    with pytest.raises(ValueError, match="at least one frame"):
        sampler.test(0)


def test_wrong_settings_are_errors() -> None:
    with pytest.raises(ValueError, match="stride = 0"):
        Dense(stride=0)
    with pytest.raises(ValueError, match="num_clips = 3"):
        SparseTwoView(num_clips=3)


@pytest.mark.parametrize(
    ("settings_given", "told"),
    [
        ({"kind": "sparse", "stride": 3}, "data.sampling.stride: not of data.sampling.kind 'sparse'"),
        ({"kind": "sparse_two_view", "num_clips": 3}, "data.sampling.num_clips: 3: two-view sampling has 1 or 2"),
    ],
)
def test_a_setting_that_the_sampler_does_not_take_is_named(settings_given: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        SamplingSettings(**settings_given).build()
    assert str(caught.value).startswith(told)
