"""Boxes of objects: files of detectors, what is learned of each box, and train -> evaluate of both tasks on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from internvideo.data.manifest import Box, Manifest, Sample, read_manifest, write_manifest
from internvideo.errors import ManifestError, RecipeError, RunError
from internvideo.evaluation import evaluate_task, score_table
from internvideo.metrics import bootstrap
from internvideo.metrics.frame_detection import (
    Boxes,
    StaObjects,
    anticipation_average_precision,
    anticipation_statistic,
    coco_average_precision,
    coco_statistic,
)
from internvideo.models.videomae import VideoMAEConfig
from internvideo.objectives.anticipation import contact_losses
from internvideo.pipeline import run_recipe
from internvideo.recipe import Recipe, build_recipe
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.spatio_temporal_localization.data import KeyFrame, positions_before
from internvideo.tasks.spatio_temporal_localization.object_boxes import (
    detections_of,
    match_boxes,
    object_frames,
    read_detections,
    with_detected_boxes,
    with_training_targets,
)
from internvideo.tasks.state_change import predict as state_change
from internvideo.tasks.table import Predictions
from internvideo.video.writer import write_video

NOUNS, VERBS = ("red", "blue"), ("take", "put")


def world(folder: Path, videos: int = 8) -> Manifest:
    """A red and a blue square a video; one of them is annotated. Red is taken after 0.5 s, blue put after 1 s."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows, found = np.random.default_rng(0), [], {}
    for number in range(videos):
        frames, noun = np.full((12, 32, 64, 3), 90, np.uint8), number % 2
        boxes = []
        for index, colour in enumerate(((230, 40, 40), (40, 60, 230))):
            x, y = 4 + 32 * index + int(rng.integers(8)), int(rng.integers(2, 12))
            frames[:, y : y + 16, x : x + 16] = colour
            boxes.append([x, y, x + 16, y + 16])
        write_video(folder / f"{number}.mp4", frames, 12)
        x1, y1, x2, y2 = boxes[noun]
        box = Box(time=0.75, x1=x1 / 64, y1=y1 / 32, x2=x2 / 64, y2=y2 / 32, labels=(noun,))
        told = {"uid": f"u{number}", "size": "64x32", "verbs": str(noun), "times_to_contact": str((noun + 1) / 2)}
        split = "test" if number >= videos - 2 else "train"
        rows.append(Sample(id=f"o{number}", path=f"{number}.mp4", boxes=(box,), split=split, attributes=told))
        found[f"u{number}"] = [
            {"box": corners, "noun_category_id": index, "score": 0.9 - 0.1 * index}
            for index, corners in enumerate(boxes)
        ]
    write_manifest(folder / "m.jsonl", rows, NOUNS)
    (folder / "verbs.txt").write_text("".join(f"{verb}\n" for verb in VERBS))
    (folder / "found.json").write_text(json.dumps({"results": found}))
    return read_manifest(folder / "m.jsonl")


def recipe(folder: Path, stage: str, **overrides: Any) -> Recipe:
    size = {"image_size": 32, "patch_size": 8, "frames": 4, "width": 32, "depth": 1, "heads": 2}
    return build_recipe(
        {
            "stage": stage,
            "model": {
                "name": "anticipator-s" if stage == "anticipation" else "action-detector-s",
                "overrides": {**size, **overrides},
            },
            "data": {
                "train": str(folder / "m.jsonl"),
                "split": "train",
                "sampling": {"kind": "dense", "frames": 4, "stride": 2},
                "augment": {"size": 64},
                "key_frames": {
                    "short": 32, "longest": 64, "hue": 0, "saturation": 0, "candidates": str(folder / "found.json"),
                },
                "loader": {"batch_size": 3, "cache_megabytes": 20},
            },
            "optimizer": {"base_lr": 3e-3},
            "schedule": {"steps": 60, "warmup": 5},
            "loop": {"max_grad_norm": 10.0, "log_every": 20},
        }
    )  # fmt: skip


# --- files and frames ------------------------------------------------------------------------------------------------


def test_both_forms_of_files_say_the_same(tmp_path: Path) -> None:
    coco = [{"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
    (tmp_path / "a.json").write_text(json.dumps(coco))
    own = {"results": {"7": [{"box": [1, 2, 4, 6], "noun_category_id": 1, "score": 0.5, "verb_category_id": 3}]}}
    (tmp_path / "b.json").write_text(json.dumps(own))
    one, other = (read_detections(tmp_path / f"{name}.json")["7"] for name in "ab")
    assert one.box.tolist() == other.box.tolist() == [[1, 2, 4, 6]]
    assert (one.label.tolist(), one.score.tolist()) == (other.label.tolist(), other.score.tolist())


@pytest.mark.parametrize("text", ["{", "{}", '{"results": {"a": [{"box": [1, 2]}]}}', '[{"image_id": 1}]', "3"])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ManifestError, match=r"bad\.json"):
        read_detections(tmp_path / "bad.json")


def test_what_is_learned_of_a_detectors_box(tmp_path: Path) -> None:
    frames = object_frames(world(tmp_path))
    found = read_detections(tmp_path / "found.json")
    assert (frames[1].size, frames[1].time, frames[1].contact.tolist()) == ((64, 32), 0.75, [[1.0, 1.0]])
    plain = with_training_targets(frames[1], detections_of(frames[1], found))
    assert plain.labels == ((1,), (), (1,))
    contact = with_training_targets(frames[1], detections_of(frames[1], found), background=2)
    assert contact.targets is not None
    np.testing.assert_array_equal(contact.targets, [[1, 1], [2, np.nan], [1, 1]])
    seen = with_detected_boxes(frames[1], detections_of(frames[1], found))
    assert (seen.labels, seen.scores.tolist()) == (((0,), (1,)), [0.9, 0.8])


def test_a_box_belongs_to_the_object_it_overlaps_most() -> None:
    truths = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]])
    boxes = np.array([[0.0, 0.0, 0.6, 1.0], [0.0, 0.0, 0.9, 1.0], [0.9, 0.9, 1.0, 1.0]])
    assert match_boxes(boxes, truths).tolist() == [1, 0, -1]
    assert match_boxes(boxes, truths[:0]).tolist() == [-1, -1, -1]


def test_boxes_of_two_times_are_no_key_frame(tmp_path: Path) -> None:
    box = Box(time=0.0, x1=0, y1=0, x2=1, y2=1)
    row = Sample(id="two", path="a.mp4", boxes=(box, box.model_copy(update={"time": 1.0})))
    with pytest.raises(ManifestError, match="2 times"):
        object_frames(Manifest((row,), (), tmp_path, tmp_path / "m.jsonl"))


def test_a_clip_before_a_key_frame_ends_with_it() -> None:
    frame = KeyFrame(Sample(id="a", path="a"), "a", 0.5, np.zeros((0, 4)), np.zeros(0), ())
    times = np.arange(20) / 10
    assert positions_before(times, frame, frames=4, stride=2).tolist() == [0, 1, 3, 5]


# --- model and loss --------------------------------------------------------------------------------------------------


def test_the_head_sees_where_a_box_is_to_the_pixel() -> None:
    torch.manual_seed(0)
    config = VideoMAEConfig(image_size=32, patch_size=8, frames=4, width=32, depth=1, heads=2, num_classes=3)
    model = Anticipator(config).eval()
    video = torch.full((1, 3, 4, 32, 32), 0.3)
    boxes = torch.tensor([[2.0, 2.0, 20.0, 20.0], [2.9, 2.9, 20.9, 20.9], [3.0, 2.0, 20.0, 20.0]])
    table = model.head.embed_boxes(boxes)
    torch.testing.assert_close(table[0], table[1], msg="whole coordinates alone count")
    assert not torch.allclose(table[0], table[2])
    logits, seconds = model(video, torch.zeros(3, dtype=torch.int64), boxes)
    assert (logits.shape, seconds.shape) == ((3, 4), (3,))
    assert bool((seconds > 0).all())
    far = model.head.embed_boxes(torch.tensor([[0.0, 0.0, 5000.0, 1023.0]]))
    torch.testing.assert_close(far, model.head.embed_boxes(torch.tensor([[0.0, 0.0, 1023.0, 1023.0]])))


def test_the_time_of_what_is_not_touched_does_not_count() -> None:
    logits = torch.zeros(2, 3)
    seconds = torch.tensor([1.5, 9.0], requires_grad=True)
    verb, time = contact_losses(logits, seconds, torch.tensor([0, 2]), torch.tensor([1.0, float("nan")]))
    assert verb.item() == pytest.approx(np.log(3))
    assert time.item() == pytest.approx(0.125)
    torch.autograd.backward(time)
    assert seconds.grad is not None
    assert seconds.grad.tolist() == pytest.approx([0.5, 0.0])


# --- intervals -------------------------------------------------------------------------------------------------------


def drawn(frames: int = 12) -> tuple[Boxes, Boxes]:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (frames, 2))
    truth = np.concatenate([corner, corner + rng.uniform(10, 30, (frames, 2))], axis=1)
    found = np.concatenate([truth + rng.normal(0, 2, truth.shape), truth[::-1]])
    index = np.arange(frames)
    none = np.zeros(frames, np.int64)
    return Boxes(index, none, truth, np.zeros(frames)), Boxes(
        np.concatenate([index, index]), np.concatenate([none, none]), found, rng.uniform(size=2 * frames)
    )


def test_the_figure_of_what_was_drawn_once_each_is_the_figure() -> None:
    truth, found = drawn()
    precision = coco_average_precision(truth, found)[0]
    ones = np.ones((1, 12))
    expected = [precision.mean(), precision[0], precision[5]]
    np.testing.assert_allclose(coco_statistic(truth, found, np.arange(12))(ones)[0], expected)
    twice = coco_statistic(truth, found, np.arange(12))(2 * ones)[0]
    np.testing.assert_allclose(twice, expected)
    frames = [
        (
            StaObjects(truth.box[[k]], np.array([k % 3]), np.array([k % 2]), np.array([0.5])),
            StaObjects(found.box[[k, k + 12]], np.array([k % 3, 0]), np.array([0, 1]), np.array([0.6, 0.5])),
            found.score[[k, k + 12]],
        )
        for k in range(12)
    ]
    for verb, seconds in ((False, False), (True, True)):
        values = anticipation_average_precision(frames, verb=verb, seconds=seconds).values()
        mean = np.mean([value for value in values if value is not None])
        statistic = anticipation_statistic(frames, np.arange(12), verb=verb, seconds=seconds)
        np.testing.assert_allclose(statistic(ones), mean)
        low, high = bootstrap.interval(statistic, 12, draws=50)
        assert low <= mean <= high


# --- train and evaluate ----------------------------------------------------------------------------------------------


def test_anticipation_learns_and_writes_the_challenges_form(tmp_path: Path) -> None:
    world(tmp_path)
    weights = run_recipe(recipe(tmp_path, "anticipation"), tmp_path / "run", device="cpu")
    out, settings = tmp_path / "out", {"device": "cpu", "boxes": tmp_path / "found.json"}
    result = evaluate_task("anticipation", weights, tmp_path / "m.jsonl", out, settings, split="test")
    assert result["figures"]["top5_mAP_noun"] == 1.0
    assert result["figures"]["top5_mAP_noun_verb_of_guess"] == 0.5
    assert result["figures"]["top5_mAP_all"] == 1.0
    assert score_table(out / "anticipation.npz")["figures"] == result["figures"]
    sent = json.loads((out / "predictions.json").read_text())
    assert (sent["version"], sent["challenge"]) == ("1.0", "ego4d_short_term_object_interaction_anticipation")
    assert set(sent["results"]) == {"u6", "u7"}
    entry = sent["results"]["u7"][1]
    assert set(entry) == {"box", "noun_category_id", "verb_category_id", "time_to_contact", "score"}
    assert (entry["noun_category_id"], entry["verb_category_id"], entry["score"]) == (1, 1, 0.8)
    assert entry["time_to_contact"] == pytest.approx(1.0, abs=0.25)
    assert read_detections(out / "predictions.json")["u7"].label.tolist() == [0, 1]
    assert "<svg" in (out / "anticipation.svg").read_text()
    with pytest.raises(RunError, match="with other boxes"):
        evaluate_task("anticipation", weights, tmp_path / "m.jsonl", out, {"device": "cpu"}, split="test")


def test_state_change_learns_which_box_and_writes_cocos_form(tmp_path: Path) -> None:
    manifest = world(tmp_path)
    red = [row for row in manifest.rows if row.boxes[0].labels == (0,)]
    write_manifest(tmp_path / "m.jsonl", red, ("object_of_change",))  # the red one of both changes
    chosen = recipe(tmp_path, "spatio_temporal_localization")
    weights = run_recipe(chosen, tmp_path / "run", device="cpu")
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    for entries in found.values():
        entries[0]["score"], entries[1]["score"] = 0.7, 0.9  # the detector is surer of the other
    (tmp_path / "found.json").write_text(json.dumps({"results": found}))
    out, settings = tmp_path / "out", {"device": "cpu", "boxes": tmp_path / "found.json"}
    result = evaluate_task("state_change", weights, tmp_path / "m.jsonl", out, settings, split="test")
    assert result["figures"]["AP50_of_detector_alone"] == pytest.approx(0.5, abs=0.01)
    assert result["figures"]["AP50"] == pytest.approx(1.0)
    assert score_table(out / "state_change.npz")["figures"] == result["figures"]
    rows = json.loads((out / "detections.json").read_text())
    assert {row["image_id"] for row in rows} == {"o6"}
    assert "<svg" in (out / "state_change.svg").read_text()


def test_numbers_of_images_stay_numbers_in_cocos_form() -> None:
    """Ids 12 and 3 of a COCO file must be found again by its evaluator, which compares them as numbers."""
    arrays = {
        "frame_id": np.asarray(["12", "3", "03"]),
        "frame": np.asarray([0, 1, 2]),
        "box": np.asarray([[1.0, 2.0, 4.0, 8.0]] * 3),
        "score": np.asarray([0.5, 0.25, 0.125]),
    }
    rows = json.loads(state_change.detections(Predictions("state_change", arrays, {}, {})))
    assert [row["image_id"] for row in rows] == [12, 3, "03"]
    assert rows[0] == {"image_id": 12, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    world(tmp_path)
    (tmp_path / "verbs.txt").write_text("take\n")
    with pytest.raises(ManifestError, match="verbs 0 to 0"):
        run_recipe(recipe(tmp_path, "anticipation"), tmp_path / "run", device="cpu")
    (tmp_path / "verbs.txt").write_text("take\nput\n")
    tree = recipe(tmp_path, "anticipation").resolved()
    tree["data"]["augment"]["flip"] = True
    with pytest.raises(RecipeError, match="flip"):
        run_recipe(build_recipe(tree), tmp_path / "run", device="cpu")
