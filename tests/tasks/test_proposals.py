"""Proposals of a detector: read, brought beside their videos, batched."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from proposal_world import CLASSES, world

from internvideo.data.loader import LoaderSettings
from internvideo.errors import ManifestError
from internvideo.metrics.temporal_detection import tiou
from internvideo.objectives.refinement import best_truths
from internvideo.tasks.refinement.data import (
    ProposalLoader,
    ProposalSettings,
    jitter_spans,
    read_all_proposals,
    read_padded_sequence,
    read_proposals,
    select_with_proposals,
)
from internvideo.tasks.temporal_localization.data import FeatureSettings, FeatureVideo, read_feature_set

CPU = torch.device("cpu")


# --- reading ---------------------------------------------------------------------------------------------------------


def test_proposals_are_read_best_first_with_their_classes(tmp_path: Path) -> None:
    found = read_proposals(world(tmp_path) / "proposals.json", CLASSES)
    assert found.classes == CLASSES
    assert found.provenance["detector_weights_sha256"] == "2"
    own = found.videos["v0"]
    assert (np.diff(own.scores) <= 0).all()
    assert set(own.labels) <= {0, 1}
    content = json.loads((tmp_path / "proposals.json").read_text())
    best = max(content["results"]["v0"], key=lambda row: row["score"])
    assert (own.spans[0].tolist(), CLASSES[own.labels[0]]) == (best["segment"], best["label"])


@pytest.mark.parametrize("label", [None, "action"])
def test_proposals_without_classes(tmp_path: Path, label: str | None) -> None:
    row = {"segment": [0, 1], "score": 0.5} | ({} if label is None else {"label": label})
    (tmp_path / "p.json").write_text(json.dumps({"results": {"a": [row]}}))
    assert read_proposals(tmp_path / "p.json", CLASSES).classes == ("action",)


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    row = {"segment": [1.0, 2.0], "score": 0.5, "label": "run"}
    content: dict[str, Any] = {"results": {"a": [row]}}
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no JSON"),
        ("[]", "results|valid"),
        ('{"results": {}}', "no proposal"),
        ('{"results": {"a": []}}', "no proposal"),
        (changed(lambda c: c["results"]["a"][0].pop("score")), r"results\.a\.0\.score"),
        (changed(lambda c: c["results"]["a"][0].update(segment=[1.0])), r"results\.a\.0\.segment"),
        (changed(lambda c: c["results"]["a"][0].update(segment=[1.0, float("nan")])), r"results\.a\.0\.segment"),
        (changed(lambda c: c["results"]["a"][0].update(segment=[2.0, 1.0])), r"p\.json: a: segment \[2\.0, 1\.0\]"),
        (changed(lambda c: c["results"]["a"][0].update(score=-1)), r"score -1"),
        (changed(lambda c: c["results"]["a"][0].update(label="fly")), "class 'fly'"),
        (changed(lambda c: c["results"]["a"].append({"segment": [0, 1], "score": 1})), "class 'action'"),
    ],
)
def test_a_wrong_file_of_proposals_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ManifestError, match=told) as caught:
        read_proposals(tmp_path / "p.json", CLASSES)
    assert "\n" not in str(caught.value)


def test_proposals_are_cut_to_the_video_and_those_outside_are_left_out(tmp_path: Path) -> None:
    video = read_feature_set(world(tmp_path)).videos[0]
    rows = [[-1.0, 2.0], [3.0, 999.0], [998.0, 999.0], [4.0, 4.0]]
    content = {"results": {video.id: [{"segment": row, "score": 1.0} for row in rows]}}
    (tmp_path / "p.json").write_text(json.dumps(content))
    found = read_proposals(tmp_path / "p.json", CLASSES)
    assert found.for_video(video).spans.tolist() == [[0.0, 2.0], [3.0, video.duration]]
    assert len(found.for_video(replace(video, id="other"))) == 0


def test_files_of_other_videos_are_joined(tmp_path: Path) -> None:
    whole = json.loads((world(tmp_path) / "proposals.json").read_text())
    names = sorted(whole["results"])
    for part, chosen in enumerate((names[:9], names[9:])):
        content = {**whole, "results": {name: whole["results"][name] for name in chosen}}
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    joined = read_all_proposals(paths, CLASSES)
    assert joined.fingerprint == read_proposals(tmp_path / "proposals.json", CLASSES).fingerprint
    with pytest.raises(ManifestError, match="'v0' again"):
        read_all_proposals([*paths, tmp_path / "0.json"], CLASSES)


def test_a_split_has_parts(tmp_path: Path) -> None:
    features = read_feature_set(world(tmp_path))
    parts = [features.subset(f"TRAIN:{part}/3").videos for part in (1, 2, 3)]
    names = [video.id for part in parts for video in part]
    assert sorted(names) == sorted(video.id for video in features.subset("train").videos)
    assert {len(part) for part in parts} == {6, 7}
    for wrong in ("train:0/3", "train:4/3", "train:1/0", "train:30/40", "train:", "x:1/2"):
        with pytest.raises(ManifestError, match="no video of split"):
            features.subset(wrong)


def test_the_fingerprint_changes_with_a_segment(tmp_path: Path) -> None:
    path = world(tmp_path) / "proposals.json"
    first = read_proposals(path, CLASSES).fingerprint
    assert read_proposals(path, CLASSES).fingerprint == first
    content = json.loads(path.read_text())
    content["results"]["v3"][0]["segment"][1] += 0.001
    path.write_text(json.dumps(content))
    assert read_proposals(path, CLASSES).fingerprint != first


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [4.0, 12.0, 24.0])
def test_places_reach_over_the_whole_video(tmp_path: Path, window: float) -> None:
    np.save(tmp_path / "a.npy", np.arange(20, dtype=np.float32)[:, None])
    nothing = np.zeros((0, 2)), np.zeros(0, np.int64)
    video = FeatureVideo("a", tmp_path / "a.npy", "", 8.0, 4.0, window, (19 * 4 + window) / 8, *nothing)
    made = read_padded_sequence(video, FeatureSettings())
    middles = (np.arange(20) * 4 + window / 2) / 8
    places = made.positions(middles)
    np.testing.assert_allclose(places, np.arange(20) + 0.5 + made.pad_left)
    at = (places - 0.5).astype(int)
    assert made.values[0, at].tolist() == list(range(20))
    np.testing.assert_allclose(made.seconds(places), middles)
    ends = made.positions(np.asarray([0.0, video.duration]))
    assert 0 <= ends[0] < 1
    assert made.values.shape[1] - 1 < ends[1] <= made.values.shape[1]
    if window == 4:
        assert ends[0] == 0.0


def loader(folder: Path, **changes: Any) -> ProposalLoader:
    features = read_feature_set(folder)
    proposals = read_proposals(folder / "proposals.json", features.classes)
    features = select_with_proposals(features, proposals)
    choice = ProposalSettings(**{"jitter": 0.2, "top_k": 10, **changes})
    return ProposalLoader(features, proposals, FeatureSettings(), choice, LoaderSettings(batch_size=5))


@pytest.mark.parametrize("start", [0, 2])
def test_a_batch_depends_on_its_place_alone(tmp_path: Path, start: int) -> None:
    whole = list(loader(world(tmp_path)).epoch(3))
    for ours, theirs in zip(whole[start:], loader(tmp_path).epoch(3, start), strict=True):
        assert ours.ids == theirs.ids
        assert torch.equal(ours.features, theirs.features)
        assert all(torch.equal(a, b) for a, b in zip(ours.proposals, theirs.proposals, strict=True))  # type: ignore[attr-defined]  # they are ProposalBatches
    first = next(iter(loader(tmp_path).epoch(4)))
    assert first.mask.sum(dim=1).max() == first.features.shape[2]
    assert all(len(each) <= 10 for each in first.proposals)  # type: ignore[attr-defined]  # a batch with proposals
    moved = first.to(CPU)
    assert torch.equal(moved.proposals[0], first.proposals[0])  # type: ignore[attr-defined]  # as above


def test_jitter_keeps_segments_whole() -> None:
    spans = torch.tensor([[0.0, 10.0], [2.0, 2.05], [5.0, 6.0]])
    drawn = [jitter_spans(spans, 0.4, np.random.RandomState(seed)) for seed in range(200)]
    moved = torch.stack(drawn)
    assert (moved[..., 0] >= 0).all()
    assert (moved[..., 1] - moved[..., 0] > 0.09).all()
    assert (moved[:, 2, 0] - 5).abs().max() <= 0.4
    assert (moved[:, 2, 0] - 5).abs().max() > 0.35
    assert torch.equal(jitter_spans(spans, 0.0, np.random.RandomState(0)), spans)


def test_the_nearest_truth_is_found() -> None:
    rng = np.random.default_rng(1)
    ends = np.sort(rng.uniform(0, 20, (2, 12, 2)), axis=2)
    truth, overlap = best_truths(*(torch.from_numpy(each) for each in ends))
    table = tiou(ends[0], ends[1])
    np.testing.assert_allclose(overlap.numpy(), table.max(axis=1))
    np.testing.assert_allclose(truth.numpy(), ends[1][table.argmax(axis=1)])
    own, none = best_truths(torch.ones(2, 2), torch.zeros(0, 2))
    assert (own.tolist(), none.tolist()) == ([[1.0, 1.0]] * 2, [0.0, 0.0])
