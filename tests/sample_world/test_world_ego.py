"""The reaching clips of the sample world: their answers are true, repeatable, and not told by the detector's boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvideo.data.manifest import read_manifest
from internvideo.errors import RunError
from internvideo.sample_world.clips import WorldSettings
from internvideo.sample_world.ego4d import generate_reaches
from internvideo.sample_world.reaching import DIRECTIONS, HANDS, NOUNS, VERBS, plan_reach
from internvideo.sample_world.scene import actor_boxes
from internvideo.video.reader import read_frames

SETTINGS = WorldSettings(clips=10, seed=5, size=64, difficulty=0.1)
COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    generate_reaches(root, SETTINGS, COUNT, workers=1, progress=False)
    return root


def plan(number: int) -> Any:
    return plan_reach(SETTINGS.seed, number, side=SETTINGS.size, fps=SETTINGS.fps, difficulty=SETTINGS.difficulty)


def overlap(box: Any, other: Any) -> float:
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    inside = np.clip(sides, 0, None).prod()
    return float(inside / ((box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - inside))


def test_the_hand_touches_its_object_at_the_contact_and_moves_the_way_of_the_verb() -> None:
    for number in range(60):
        reach = plan(number)
        hand = reach.scene.actors[reach.objects + reach.hand].track
        assert hand is not None
        target = reach.scene.actors[reach.target].track
        assert target is not None
        gap = np.hypot(hand.x - target.x, hand.y - target.y)
        assert gap[reach.contact] == pytest.approx(gap[: reach.contact + 1].min(), abs=1e-6)
        assert gap[reach.contact] < 0.2 < gap[reach.contact - 36]
        moved = np.array([target.x[-1] - target.x[0], target.y[-1] - target.y[0]])
        assert moved @ np.asarray(DIRECTIONS[reach.verb]) == pytest.approx(np.abs(moved).sum(), abs=1e-6)
        assert np.abs(moved).sum() >= 0.05
        travelled = np.array([hand.x[reach.contact] - hand.x[0], hand.y[reach.contact] - hand.y[0]])
        assert travelled @ np.asarray(DIRECTIONS[reach.verb]) > 0.15


def test_before_the_contact_nothing_of_the_object_changes() -> None:
    for number in range(30):
        reach = plan(number)
        track = reach.scene.actors[reach.target].track
        assert track is not None
        for name in ("x", "y", "tint", "mouth", "scale", "alpha"):
            values = getattr(track, name)[: reach.contact + 1]
            assert np.allclose(values, values[0])


def test_every_verb_hand_and_change_occurs() -> None:
    reaches = [plan(number) for number in range(80)]
    assert {reach.verb for reach in reaches} == set(VERBS)
    assert {reach.hand for reach in reaches} == {0, 1}
    assert len({reach.change for reach in reaches}) == 4


def test_the_manifests_tell_what_is_drawn(folder: Path) -> None:
    ego = folder / "ego"
    for number, row in enumerate(read_manifest(ego / "hands.jsonl").rows):
        reach = plan(number)
        told = json.loads(row.attributes["hands"])
        boxes = actor_boxes(reach.scene)
        assert told["contact_frame"]["frame"] == reach.contact
        assert told["pre_45"]["frame"] == reach.contact - 18
        frame = told["pre_30"]["frame"]
        for name, box in zip(HANDS, boxes[frame, reach.objects :], strict=True):
            assert (name in told["pre_30"]) == (not np.isnan(box).any())
            if name in told["pre_30"]:
                np.testing.assert_allclose(told["pre_30"][name], (box[:2] + box[2:]) * 32, atol=0.01)
                picture = read_frames(ego / row.path, [frame])[0]
                x, y = (int(value) for value in told["pre_30"][name])
                assert picture[y, x].min() > 110, "hands are white"
    contact = read_manifest(ego / "contact.jsonl")
    assert contact.classes == NOUNS
    assert (ego / "verbs.txt").read_text().split("\n")[:-1] == list(VERBS)
    assert len(contact.rows) == 2 * COUNT
    for row in contact.rows:
        reach = plan(int(row.group[-5:]) if row.group else -1)
        assert row.boxes[0].labels == (NOUNS.index(reach.scene.actors[reach.target].look.shape),)
        seconds = float(row.attributes["times_to_contact"])
        assert row.boxes[0].time + seconds == pytest.approx(reach.contact / SETTINGS.fps, abs=1e-3)
    change = read_manifest(ego / "change.jsonl")
    assert (len(change.rows), change.classes) == (3 * COUNT, ("object_of_change",))


@pytest.mark.parametrize("track", ["contact", "change"])
def test_the_detector_finds_the_object_among_others(folder: Path, track: str) -> None:
    manifest = read_manifest(folder / "ego" / f"{track}.jsonl")
    results = json.loads((folder / "ego" / f"{track}.detections.json").read_text())["results"]
    assert set(results) == {row.id for row in manifest.rows}
    found = []
    for row in manifest.rows:
        box = row.boxes[0]
        truth = np.array([box.x1, box.y1, box.x2, box.y2]) * 64
        found.append(max(overlap(truth, np.asarray(entry["box"])) for entry in results[row.id]))
        assert len(results[row.id]) >= 4
    assert np.mean(np.asarray(found) > 0.5) > 0.8


def test_a_second_call_keeps_the_files_and_another_world_is_refused(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "ego" / "clips").rglob("*.mp4")}
    text = (folder / "ego" / "contact.detections.json").read_text()
    generate_reaches(folder, SETTINGS, COUNT, workers=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in (folder / "ego" / "clips").rglob("*.mp4")} == before
    assert (folder / "ego" / "contact.detections.json").read_text() == text
    with pytest.raises(RunError, match="another world"):
        generate_reaches(folder, WorldSettings(clips=10, seed=6), 2, workers=1, progress=False)
