"""Spatio-temporal localization: AVA's files, figures equal to the published ones, and train -> evaluate -> picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from goldens_folder import GOLDENS

from internvideo.apps.dry_run import describe
from internvideo.cli.main import score
from internvideo.data.manifest import Manifest, Sample, read_manifest, write_manifest
from internvideo.data.sample import Box
from internvideo.errors import ManifestError, RecipeError, RunError
from internvideo.evaluation import evaluate_task, score_table
from internvideo.metrics.frame_detection import Boxes, frame_average_precision, frame_map_statistic
from internvideo.pipeline import run_recipe
from internvideo.plots import charts as figures
from internvideo.recipe import Recipe, build_recipe
from internvideo.tasks.spatio_temporal_localization import predict as spatio_temporal
from internvideo.tasks.spatio_temporal_localization.ava_files import read_exclusions, read_rows, timestamp
from internvideo.tasks.spatio_temporal_localization.data import key_frames
from internvideo.tasks.table import Predictions
from internvideo.video.writer import write_video

FOLDER = GOLDENS / "tasks" / "ava_frame_map"
AVA = json.loads((FOLDER / "expected.json").read_text("utf-8"))
COLOURS = ((230, 40, 40), (40, 230, 40), (40, 60, 230))
CLASSES = ("be red", "be green", "be blue", "be wide")


def world(folder: Path, videos: int = 9) -> Manifest:
    """Two rectangles in every video that stand still; what they do is their colour, and whether they are wide."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(videos):
        frames = np.full((24, 32, 64, 3), 90, np.uint8)
        boxes = []
        for actor in range(2):
            colour, wide = int(rng.integers(3)), bool(rng.integers(2))
            x1, y1 = 32 * actor + int(rng.integers(2, 8)), int(rng.integers(2, 8))
            x2, y2 = x1 + (22 if wide else 12), y1 + 18
            frames[:, y1:y2, x1:x2] = COLOURS[colour]
            for time in (0.5, 1.5):
                labels = (colour, 3) if wide else (colour,)
                boxes.append(Box(time=time, x1=x1 / 64, y1=y1 / 32, x2=x2 / 64, y2=y2 / 32, labels=labels, actor=actor))
        write_video(folder / f"{number}.mp4", frames, 12)
        split = "test" if number % 3 == 2 else "train"
        rows.append(Sample(id=f"v{number}", path=f"{number}.mp4", boxes=tuple(boxes), split=split))
    write_manifest(folder / "m.jsonl", rows, CLASSES)
    return read_manifest(folder / "m.jsonl")


def recipe(folder: Path, **changes: Any) -> Recipe:
    overrides = {"image_size": 32, "patch_size": 8, "frames": 4, "width": 32, "depth": 1, "heads": 2}
    tree = {
        "stage": "spatio_temporal_localization",
        "model": {"name": "action-detector-s", "overrides": overrides},
        "data": {
            "train": str(folder / "m.jsonl"),
            "split": "train",
            "sampling": {"kind": "dense", "frames": 4, "stride": 2},
            "augment": {"size": 32},
            "key_frames": {"short": 32, "longest": 64, "hue": 0, "saturation": 0},
            "loader": {"batch_size": 4, "cache_megabytes": 20},
        },
        "optimizer": {"base_lr": 3e-3},
        "schedule": {"steps": 60, "warmup": 5},
        "loop": {"max_grad_norm": 10.0, "log_every": 20},
    }
    return build_recipe({**tree, **changes})


# --- files and figures -----------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(AVA))
def test_official_files_give_the_published_figure(name: str, tmp_path: Path) -> None:
    case, labels = name.split("/")
    files = [FOLDER / f"{case}.{kind}.csv" for kind in ("gt", "det", "excluded")]
    table = spatio_temporal.make_table_from_files(files[0], files[1], FOLDER / f"{labels}.pbtxt", files[2])
    table.save(tmp_path / "t.npz")
    result = score_table(tmp_path / "t.npz")
    assert result["figures"]["frame_mAP@0.5"] == pytest.approx(AVA[name]["mAP@0.5"], abs=1e-6)
    assert "highest IoU alone" in result["protocol"]["matching"]
    precision = frame_average_precision(*spatio_temporal.evaluated_boxes(table), 0.5)
    by_name = {str(table["classes"][label]): value for label, value in precision.items()}
    assert by_name == pytest.approx(AVA[name]["per_class_AP"], abs=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(AVA))
def test_the_command_scores_official_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, labels = name.split("/")
    truth, results, excluded = (FOLDER / f"{case}.{kind}.csv" for kind in ("gt", "det", "excluded"))
    score([results], truth, FOLDER / f"{labels}.pbtxt", excluded, tmp_path / "figures.json")
    told = json.loads((tmp_path / "figures.json").read_text())
    assert told["figures"]["frame_mAP@0.5"] == pytest.approx(AVA[name]["mAP@0.5"], abs=1e-6)
    assert told["protocol"]["results"] == str(results)
    assert told["protocol"]["annotated_frames_with_results"] <= told["coverage"]["read"] == told["coverage"]["asked"]
    assert "frame_mAP@0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("v,1,0,0,1,1", ": 6 cells"),
        ("v,x,0,0,1,1,3,1", " timestamp: 'x'"),
        ("v,1,0,0,1,1,3.5,1", " action_id: '3.5'"),
        ("v,1,0,0,1,1,0,1", " action_id: '0'"),
        ("v,1,nan,0,1,1,3,1", " x1: 'nan'"),
        ("v,1,0,0,1,1,3,", " score: ''"),
    ],
)
def test_a_malformed_row_is_told_with_its_line_and_field(row: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"v,0902,0,0,1,1,3,0.5\n{row}\n")
    with pytest.raises(ManifestError, match=rf"r\.csv:2{re.escape(field)}"):
        read_rows(path, has_scores=True)


def test_a_time_of_the_official_list_is_written_as_it_stands_there() -> None:
    assert [timestamp(time) for time in (902.0, 121.281427, 1734.5)] == ["0902", "121.281427", "1734.5"]


def test_rows_without_boxes_and_excluded_frames_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("w,0903\n")
    (tmp_path / "t.csv").write_text("k,12.5,,,,,,\nw,0903,0,0,1,1,3,1\nv,0902,0,0,1,1,4,1\n")
    found = read_rows(tmp_path / "t.csv", has_scores=False, excluded=read_exclusions(tmp_path / "e.csv"))
    assert (found.frame, found.action.tolist()) == ((("v", 902),), [4])
    assert (timestamp(902.0), timestamp(12.25)) == ("0902", "12.25")


def test_drawing_videos_again_weighs_their_frames() -> None:
    rng = np.random.default_rng(0)
    corners = rng.random((40, 2))
    boxes = np.concatenate([corners, corners + 0.3], axis=1)
    truth = Boxes(np.arange(40) % 8, rng.integers(0, 3, 40), boxes, np.zeros(40))
    found = Boxes(truth.frame, rng.integers(0, 3, 40), boxes + 0.02 * rng.standard_normal((40, 4)), rng.random(40))
    video = np.arange(8) // 2
    statistic = frame_map_statistic(truth, found, video)
    plain = np.mean(list(frame_average_precision(truth, found).values()))
    assert statistic(np.ones((1, 4)))[0] == pytest.approx(plain)
    chosen = [video[part.frame] < 2 for part in (truth, found)]
    half = frame_average_precision(truth.take(chosen[0]), found.take(chosen[1]))
    assert statistic(np.asarray([[1.0, 1, 0, 0]]))[0] == pytest.approx(np.mean(list(half.values())))


def test_the_two_parts_of_a_mixed_set_have_their_own_figures() -> None:
    arrays = {
        "classes": np.asarray(["a"]), "scored": np.ones(1, bool), "frame_video": np.asarray(["v", "w"]),
        "frame_time": np.zeros(2), "frame_source": np.asarray(["ava", "kinetics"]),
        "frame": np.asarray([0, 1]), "box": np.asarray([[0, 0, 1, 1], [0.8, 0.8, 1, 1]]), "label": np.zeros(2, int),
        "score": np.asarray([0.9, 0.8]), "truth_frame": np.asarray([0, 1]), "truth_label": np.zeros(2, int),
        "truth_box": np.asarray([[0, 0, 1, 1], [0, 0, 1.0, 1]]),
    }  # fmt: skip
    coverage = {"asked": 2, "read": 2, "unreadable": []}
    found = spatio_temporal.score(Predictions("spatio_temporal_localization", arrays, {}, coverage))["figures"]
    assert found == {"frame_mAP@0.5": 0.5, "frame_mAP@0.5_ava": 1.0, "frame_mAP@0.5_kinetics": 0.0}
    empty = {name: array[:0] if name.startswith("truth") else array for name, array in arrays.items()}
    with pytest.raises(RunError, match="no key frame"):
        spatio_temporal.score(Predictions("spatio_temporal_localization", empty, {}, coverage))


def test_a_picture_has_boxes_and_words() -> None:
    panel = figures.BoxedFrame(
        np.zeros((8, 9, 3), np.uint8), [((0.1, 0.1, 0.5, 0.5), ("run 0.9",))], ("a <b>",), "v, 1 s"
    )
    picture = figures.frames_with_boxes([panel] * 4)
    assert picture.startswith("<svg")
    assert picture.count("1: run 0.9 [a &lt;b&gt;]") == 4


# --- from training to a picture --------------------------------------------------------------------------------------


def test_a_detector_learns_and_is_measured(tmp_path: Path) -> None:
    manifest = world(tmp_path / "w", videos=12)
    weights = run_recipe(recipe(tmp_path / "w"), tmp_path / "run", device="cpu")
    path, out = manifest.source, tmp_path / "out"
    result = evaluate_task("spatio_temporal_localization", weights, path, out, {"device": "cpu"}, split="test")
    assert result["figures"]["frame_mAP@0.5"] > 0.75
    assert result["protocol"]["persons"] == "ground truth"
    assert result["coverage"] == {"asked": 8, "read": 8, "unreadable": []}
    assert (out / "frames.svg").read_text().startswith("<svg")
    lines = (out / "results.csv").read_text().splitlines()
    assert len(lines) == 8 * 2 * len(CLASSES)
    rows = read_rows(out / "results.csv", has_scores=True)
    table = Predictions.load(out / "spatio_temporal_localization.npz")
    np.testing.assert_allclose(rows.box, table["box"], atol=1e-5)
    np.testing.assert_allclose(rows.score, table["score"], atol=1e-5)
    assert rows.action.tolist() == (table["label"] + 1).tolist()

    persons = tmp_path / "persons.csv"
    boxes = [
        (frame, corners) for frame in key_frames(manifest.subset(split="test")) for corners in frame.boxes.tolist()
    ]
    persons.write_text("".join(f"{frame.video},{frame.time},{','.join(map(str, box))},,0.9\n" for frame, box in boxes))
    settings = {"device": "cpu", "persons": persons}
    other = evaluate_task("spatio_temporal_localization", weights, path, tmp_path / "other", settings, split="test")
    assert other["figures"] == pytest.approx(result["figures"], abs=1e-6)
    again = Predictions.load(tmp_path / "other" / "spatio_temporal_localization.npz")
    assert again["score"].sum() == pytest.approx(0.9 * table["score"].sum(), rel=1e-4)
    with pytest.raises(RunError, match="with other rows"):
        evaluate_task("spatio_temporal_localization", weights, path, out, {"device": "cpu"}, split="train")
    (path.parent / "scored_classes.txt").write_text("be wide\n")
    fewer = evaluate_task("spatio_temporal_localization", weights, path, tmp_path / "fewer", settings, split="test")
    assert fewer["protocol"]["classes_scored"] == 1
    (path.parent / "scored_classes.txt").write_text("be narrow\n")
    with pytest.raises(ManifestError, match="be narrow"):
        evaluate_task("spatio_temporal_localization", weights, path, tmp_path / "third", settings, split="test")
    (path.parent / "scored_classes.txt").unlink()
    persons.write_text("v2,0.5,0,0,1,1,,0.5\n")
    with pytest.raises(ManifestError, match="no matching box"):
        evaluate_task("spatio_temporal_localization", weights, path, tmp_path / "third", settings, split="test")


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    world(tmp_path, videos=4)
    assert "ActionDetector" in describe(recipe(tmp_path), device="cpu")
    wrong = recipe(tmp_path, model={"name": "videomae-s-classifier", "overrides": {
        "image_size": 32, "patch_size": 8, "frames": 4, "width": 32, "depth": 1, "heads": 2}})  # fmt: skip
    with pytest.raises(RecipeError, match="ActionDetector"):
        describe(wrong, device="cpu")
