"""Honest folds, calibration, and the choice of everything inside the training part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from internvideo.data.manifest import Manifest, Sample
from internvideo.errors import ManifestError, RecipeError
from internvideo.metrics.calibration import expected_calibration_error, fit_temperature
from internvideo.metrics.classification import softmax
from internvideo.probing import fit_learn
from internvideo.probing.fit_learn import FitConfig, LabeledFeatures
from internvideo.probing.fit_report import add_fold_metrics, add_metrics, most_confident_mistakes
from internvideo.probing.fit_split import assign_folds, assign_groups, check_classes, near_duplicates
from internvideo.probing.probe_fit import standardize
from internvideo.tasks.table import MetricValues

CONFIG = FitConfig(num_classes=4, accept_known=0.9, seed=0)


def data(
    n: int = 120, *, classes: int = 4, width: int = 10, apart: float = 3.0, seed: int = 0, each: int = 1
) -> LabeledFeatures:
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(7).normal(size=(classes, width)) * apart / np.sqrt(width)
    labels = np.arange(n) % classes
    features = torch.from_numpy(means[labels] + rng.normal(size=(n, width))).float()
    return LabeledFeatures(features, labels.astype(np.int64), (np.arange(n) // (classes * each)).astype(np.int64))


def told(line: str) -> None:
    assert line.startswith("fold ")


# ---------------------------------------------------------------------------------------------------------- metrics


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.7, 0.3]])
    labels = np.array([0, 1, 1, 0])
    # Bin of 0.9: confidence 0.9, accuracy 1/2; bin of 0.7: confidence 0.7, accuracy 1.
    assert expected_calibration_error(probabilities, labels, num_bins=10) == pytest.approx((2 * 0.4 + 2 * 0.3) / 4)
    assert expected_calibration_error(np.eye(2), np.array([0, 1])) == 0
    with pytest.raises(ValueError, match="not be empty"):
        expected_calibration_error(np.zeros((0, 2)), np.zeros(0, dtype=np.int64))


@pytest.mark.parametrize("true", [0.2, 1.0, 6.0])
def test_the_temperature_is_found(true: float) -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(20000, 5)) * 2
    labels = (honest + rng.gumbel(size=honest.shape)).argmax(axis=1)
    logits = honest * true
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(true, rel=0.05)
    after = expected_calibration_error(softmax(logits / found), labels)
    assert after < 0.015
    few = np.eye(3)[np.arange(20) % 3] * 5
    surest = softmax(few / fit_temperature(few, np.arange(20) % 3)).max()
    assert surest == pytest.approx(1 - 1 / 22, abs=1e-3), "20 right answers do not show that none will be wrong"
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(np.full((2, 2), np.nan), np.zeros(2, dtype=np.int64))


# ------------------------------------------------------------------------------------------------------------ splits


def test_a_source_is_never_divided() -> None:
    labels = np.arange(120) % 3
    groups = np.arange(120) // 8
    place = assign_folds(labels, groups, 5, seed=1)
    assert set(place) == set(range(5))
    assert all(len(np.unique(place[groups == group])) == 1 for group in np.unique(groups))
    counts = np.asarray([np.bincount(labels[place == fold], minlength=3) for fold in range(5)])
    assert counts.min() >= 5
    assert (assign_folds(labels, groups, 5, seed=1) == place).all()
    assert (assign_folds(labels, groups, 5, seed=2) != place).any()


def test_few_sources_give_few_folds() -> None:
    labels = np.array([0] * 10 + [1] * 3)
    place = assign_folds(labels, np.arange(13), 5, seed=0)
    assert len(np.unique(place)) == 3
    for fold in range(3):
        assert set(labels[place != fold]) == {0, 1}


def manifest(paths: list[str], labels: list[int], groups: list[str | None] | None = None) -> Manifest:
    rows = tuple(
        Sample(id=f"{place}", path=path, label=label, group=None if groups is None else groups[place])
        for place, (path, label) in enumerate(zip(paths, labels, strict=True))
    )
    names = tuple("abcdef"[: max(labels) + 1])
    return Manifest(rows, names, Path("."), Path("m.jsonl"))


def test_sources_from_the_column_the_pattern_or_the_file() -> None:
    paths = ["a/clip_01_part1.mp4", "a/clip_01_part2.mp4", "b/clip_02_part1.mp4", "b/clip_02_part1.mp4"]
    plain = assign_groups(manifest(paths, [0, 0, 1, 1]))
    assert plain.num_groups == 3, "pieces of one file are one source"
    assert any("every video counts as a separate group" in note for note in plain.notes)
    by_name = assign_groups(manifest(paths, [0, 0, 1, 1]), r"(clip_\d+)_part")
    assert by_name.ids.tolist() == [0, 0, 1, 1]
    assert by_name.notes == ("4 videos of 2 groups",)
    column = assign_groups(manifest(paths, [0, 0, 1, 1], ["x", None, "y", "x"]))
    assert column.ids[0] == column.ids[3] != column.ids[2]
    assert any("each of 1 videos without a group" in note for note in column.notes)
    some = assign_groups(manifest([*paths, "c/other.mp4"], [0, 0, 1, 1, 1]), r"clip_\d+")
    assert some.num_groups == 3
    assert any("does not match 1 paths, such as 'c/other.mp4'" in note for note in some.notes)


@pytest.mark.parametrize("pattern", ["(", "nowhere"])
def test_a_wrong_pattern(pattern: str) -> None:
    with pytest.raises(RecipeError, match="--group-pattern"):
        assign_groups(manifest(["a/1.mp4"], [0]), pattern)


@pytest.mark.parametrize(
    ("labels", "groups", "said"),
    [
        ([0, 0, 0], [0, 1, 2], "1 class, 'a'"),
        ([0, 0, 1], [0, 1, 2], "class 'b' has one video"),
        ([0, 0, 2, 2], [0, 1, 2, 3], "class 'b' has no video"),
        ([0, 0, 1, 1], [0, 1, 2, 2], "all 2 videos of class 'b' are of one group"),
    ],
)
def test_what_nothing_can_be_learned_from(labels: list[int], groups: list[int], said: str) -> None:
    rows = manifest([f"{place}.mp4" for place in range(len(labels))], labels)
    with pytest.raises(ManifestError) as error:
        check_classes(rows, np.asarray(labels), np.asarray(groups))
    assert said in str(error.value)


def test_look_alikes_across_the_split_are_found() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1500, 40)).astype(np.float32) + 100  # what all share must not count
    features[1400] = features[3] + 1e-3
    features[10] = features[11] + 1e-3
    part = np.arange(1500) % 5
    part[10] = part[11]
    found = near_duplicates(standardize(torch.from_numpy(features)).numpy(), part)
    assert [pair[:2] for pair in found] == [(3, 1400)] or part[3] == part[1400]
    assert part[3] != part[1400]
    assert found[0][2] > 0.999


# ---------------------------------------------------------------------------------------------------------- learning


def test_a_probe_beats_its_baselines_on_sources_it_never_saw() -> None:
    case = data()
    case.features[:, 0] *= 30  # one loud column that says nothing: means are misled, standardising mends it
    judged = fit_learn.cross_validate(case, CONFIG, 5, told)
    metrics = MetricValues()
    add_metrics(metrics, "", judged, case)
    each = add_fold_metrics(metrics, judged, case)
    got = metrics.values
    assert got["top1"] > 0.7 > got["majority"] + 0.3
    assert got["chance"] == 0.25
    assert got["folds_mean"] == pytest.approx(np.mean(each))
    assert len(each) == 5
    low, high = metrics.intervals["top1"]
    assert low < got["top1"] < high
    assert got["known_accepted"] == pytest.approx(0.9, abs=0.08)
    assert got["top1_of_accepted"] >= got["top1"]
    assert got["ece_after"] < 0.15
    mistakes = most_confident_mistakes(judged, case, [str(n) for n in range(120)], "abcd")
    assert [m["probability"] for m in mistakes] == sorted((m["probability"] for m in mistakes), reverse=True)
    assert all(m["label"] != m["said"] for m in mistakes)


def test_labels_without_meaning_give_chance() -> None:
    """Nothing of the held-out videos reaches the learning: with many columns and random labels nothing is found."""
    case = data(width=300, apart=0.0)
    judged = fit_learn.cross_validate(case, CONFIG, 5, told)
    right = (judged.logits.argmax(axis=1) == case.labels).mean()
    assert right < 0.42  # 0.25 and three standard deviations
    assert judged.probabilities.max(axis=1).mean() < 0.5, "and the calibrated probabilities know it"


def test_pieces_of_one_recording_do_not_flatter() -> None:
    """Random labels per recording, three nearly equal pieces each: divided, they would be recognized."""
    rng = np.random.default_rng(0)
    recordings = torch.from_numpy(rng.normal(size=(40, 60))).float()
    features = recordings.repeat_interleave(3, dim=0) + 0.01 * torch.randn(120, 60)
    labels = np.repeat(rng.integers(4, size=40), 3).astype(np.int64)
    whole = LabeledFeatures(features, labels, np.repeat(np.arange(40), 3).astype(np.int64))
    divided = LabeledFeatures(features, labels, np.arange(120))
    honest, flattered = (
        (fit_learn.cross_validate(case, CONFIG, 3, told).logits.argmax(axis=1) == labels).mean()
        for case in (whole, divided)
    )
    assert flattered > 0.9
    assert honest < 0.5


def test_a_class_never_shown_is_strange() -> None:
    case = data(apart=9.0)
    learned = fit_learn.fit_probe(case, CONFIG)
    check = fit_learn.leave_one_class_out(case, learned, assign_folds(case.labels, case.groups, 5, 0), CONFIG)
    assert check is not None
    assert set(check.per_class) == {0, 1, 2, 3}
    assert check.auroc > 0.8
    assert check.accepted >= 0.9
    two = case.subset(case.labels < 2)
    assert fit_learn.leave_one_class_out(two, learned, np.zeros(len(two), dtype=np.int64), FitConfig(2, 0.9, 0)) is None


def test_the_threshold_accepts_the_share_that_was_asked_for() -> None:
    familiarity = np.linspace(-0.3, 1.0, 200)
    threshold = fit_learn.accepting_threshold(familiarity, 0.95)
    assert (familiarity >= threshold).mean() == pytest.approx(0.95, abs=0.01)


def test_too_few_videos_to_choose_from() -> None:
    case = data(8)
    learned = fit_learn.fit_probe(case, CONFIG)
    assert (learned.temperature, learned.threshold, learned.num_held_out) == (1.0, -1.0, 0)
    judged = fit_learn.cross_validate(case, CONFIG, 5, told)
    assert len(judged.logits) == 8


def test_a_class_whose_training_videos_are_all_held_out_counts_as_wrong() -> None:
    case = data(40)
    few = np.flatnonzero(case.labels == 3)
    keep = np.ones(40, dtype=bool)
    keep[few[2:]] = False
    case = case.subset(keep)
    groups = case.groups.copy()
    groups[case.labels == 3] = 99  # one source: wherever it is judged, nothing like it was learned
    case = LabeledFeatures(case.features, case.labels, groups)
    judged = fit_learn.cross_validate(case, CONFIG, 5, told)
    assert (judged.logits.argmax(axis=1)[case.labels == 3] != 3).all()
    assert np.isfinite(judged.probabilities).all()
