"""Future hands: rows to batches, mirrored hands, guesses, and train -> evaluate -> submission and picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvideo.data.loader import Loader, LoaderSettings
from internvideo.data.manifest import Manifest, Sample, read_manifest, write_manifest
from internvideo.data.sampling import Sparse
from internvideo.data.transforms import TrainTransform
from internvideo.errors import ManifestError, RecipeError
from internvideo.evaluation import evaluate_task, score_table
from internvideo.pipeline import run_recipe
from internvideo.recipe import Recipe, build_recipe
from internvideo.tasks.future_hands.data import HandLoader, HandSettings, hflip_hands, make_rows_and_targets
from internvideo.tasks.future_hands.predict import submission
from internvideo.tasks.table import Predictions
from internvideo.video.writer import write_video

FRAMES = {"pre_45": 8, "pre_30": 11, "pre_15": 14, "pre_frame": 16, "contact_frame": 17}


def world(folder: Path, videos: int = 10) -> Manifest:
    """A light square, the left hand, that moves on evenly over a frame of 48 x 32; the right hand is never there."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(videos):
        frames, y, speed = np.full((18, 32, 48, 3), 40, np.uint8), int(rng.integers(6, 26)), (1 if number % 2 else -1)
        places = [24 + speed * (frame - 4) for frame in range(18)]
        for frame, x in enumerate(places):
            frames[frame, y - 3 : y + 3, x - 3 : x + 3] = 240
        write_video(folder / f"{number}.mp4", frames, 8)
        hands = {name: {"frame": frame, "left_hand": [places[frame], y]} for name, frame in FRAMES.items()}
        seen = [{"frame": frame, "left_hand": [places[frame], y]} for frame in (5, 7)]
        told = {"hands": json.dumps(hands), "seen": json.dumps(seen), "fps": "8"}
        split = "test" if number >= 8 else "train"
        rows.append(Sample(id=f"h{number}", path=f"{number}.mp4", split=split, attributes=told))
    write_manifest(folder / "m.jsonl", rows, ())
    return read_manifest(folder / "m.jsonl")


def recipe(folder: Path, **changes: Any) -> Recipe:
    overrides = {"image_size": 32, "patch_size": 8, "frames": 4, "width": 32, "depth": 1, "heads": 2}
    tree = {
        "stage": "future_hands",
        "model": {"name": "videomae-s-classifier", "overrides": overrides},
        "data": {
            "train": str(folder / "m.jsonl"),
            "split": "train",
            "sampling": {"kind": "sparse", "frames": 4},
            "augment": {"size": 32},
            "loader": {"batch_size": 4, "cache_megabytes": 20},
        },
        "optimizer": {"base_lr": 3e-3},
        "schedule": {"steps": 60, "warmup": 5},
        "loop": {"max_grad_norm": 10.0, "log_every": 20},
    }
    return build_recipe({**tree, **changes})


def test_a_row_is_seen_up_to_its_first_moment(tmp_path: Path) -> None:
    rows, targets = make_rows_and_targets(world(tmp_path, 2), HandSettings(seconds=0.5))
    assert rows.rows[0].span == pytest.approx((7.5 / 8 - 0.5, 7.5 / 8))
    assert targets.size.tolist() == [[48, 32]] * 2
    assert targets.positions[1, :, 0, 0].tolist() == [24 + frame - 4 for frame in FRAMES.values()]
    assert not targets.positions[:, :, 1].any()
    assert targets.last_motion[1, :, 0].tolist() == [[27, targets.positions[1, 0, 0, 1]], [1, 0]]
    assert targets.frame_offsets[0].tolist() == [1, 4, 7, 9, 10]


def test_a_moment_without_annotation_lies_where_the_others_say(tmp_path: Path) -> None:
    manifest = world(tmp_path, 1)
    told = {"hands": json.dumps({"contact_frame": {"frame": 60, "left_hand": [3, 4]}}), "size": "48x32"}
    rows, targets = make_rows_and_targets(
        Manifest((manifest.rows[0].model_copy(update={"attributes": told}),), (), tmp_path, manifest.source),
        HandSettings(),
    )
    assert rows.rows[0].span == pytest.approx((14.5 / 30 - 0, 14.5 / 30), abs=0.5)
    assert (targets.positions != 0).any(axis=(2, 3)).tolist() == [[False, False, False, False, True]]


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({}, "no attribute 'hands'"),
        ({"hands": "{"}, "no JSON"),
        ({"hands": '{"pre_45": {}}'}, "without index"),
        ({"hands": '{"pre_45": {"frame": 3, "left_hand": [1]}}'}, "hands"),
        ({"hands": '{"pre_45": {"frame": 3}}', "fps": "0"}, "fps"),
        ({"hands": '{"pre_45": {"frame": 3}}', "size": "48"}, "WIDTHxHEIGHT"),
        ({"hands": '{"pre_45": {"frame": 3}}', "size": "4x4", "seen": "[1]"}, "seen"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_named(tmp_path: Path, attributes: dict[str, str], found: str) -> None:
    row = Sample(id="bad", path="a.mp4", attributes=attributes)
    with pytest.raises(ManifestError, match=f"row 'bad'.*{found}"):
        make_rows_and_targets(Manifest((row,), (), tmp_path, tmp_path / "m.jsonl"), HandSettings())


def test_mirrored_hands_are_exchanged_and_stay_invisible() -> None:
    positions = np.zeros((1, 5, 2, 2))
    positions[0, 2, 0] = (10, 20)
    turned = hflip_hands(positions, np.array([[48.0, 32.0]]))
    assert turned[0, 2].tolist() == [[0, 0], [38, 20]]
    assert np.count_nonzero(turned) == 2
    np.testing.assert_array_equal(hflip_hands(turned, np.array([[48.0, 32.0]])), positions)


def test_a_mirrored_clip_shows_its_hand_where_the_target_says(tmp_path: Path) -> None:
    rows, targets = make_rows_and_targets(world(tmp_path, 8), HandSettings(seconds=0.3))
    transform = TrainTransform(32, "center", resize=32, keep_aspect=False)
    clips = Loader(rows, Sparse(2), transform, LoaderSettings(8))
    assert clips.manifest is rows
    before = targets.positions.copy()
    mirrored = 0
    for batch in HandLoader(clips, targets, hflip=True).epoch(0):
        for video, positions, name in zip(batch.video, batch.positions, batch.ids, strict=True):
            hand = 1 if positions[0, 1].any() else 0
            mirrored += hand
            columns = video[:, -1].float().mean(0).mean(0)
            x = float((columns - columns.min()).argmax()) * 48 / 32
            way = (1 if int(name[1:]) % 2 else -1) * (-1 if hand else 1)
            assert float(positions[0, hand, 0]) == pytest.approx(x + way, abs=5)
    assert 0 < mirrored < 8
    np.testing.assert_array_equal(targets.positions, before)


def test_train_evaluate_submit_and_score_again(tmp_path: Path) -> None:
    world(tmp_path)
    weights = run_recipe(recipe(tmp_path), tmp_path / "run", device="cpu")
    out = tmp_path / "out"
    settings = {"num_clips": 2, "device": "cpu"}
    result = evaluate_task("future_hands", weights, tmp_path / "m.jsonl", out, settings, split="test")
    name = "left_mean_px"
    assert set(result["figures"]) == {
        f"{side}{suffix}"
        for side in (name, "left_contact_px")
        for suffix in ("", "_mean_of_training", "_last_position", "_constant_velocity")
    }
    assert result["figures"][f"{name}_constant_velocity"] == pytest.approx(0, abs=1e-9)
    assert result["figures"][f"{name}_last_position"] == pytest.approx(np.mean([1, 4, 7, 9, 10]))
    assert result["figures"][name] < result["figures"][f"{name}_mean_of_training"] + 4
    assert score_table(out / "future_hands.npz")["figures"] == result["figures"]
    assert "<svg" in (out / "hands.svg").read_text()
    table = Predictions.load(out / "future_hands.npz")
    sent = json.loads((out / "submission.json").read_text())  # the published scorer divides by 30
    values = np.asarray([sent[name] for name in table["id"].tolist()]) / 30
    np.testing.assert_allclose(values.reshape(-1, 5, 2, 2), table["predicted"], atol=1e-3)
    with pytest.raises(RecipeError, match="whole frame"):
        evaluate_task("future_hands", weights, tmp_path / "m.jsonl", out, {"num_crops": 3}, split="test")


def test_a_submission_names_rows_as_the_challenge_does() -> None:
    predicted = np.arange(60.0).reshape(3, 5, 2, 2)
    arrays = {"id": np.asarray(["a", "b", "c"]), "uid": np.asarray(["7_99", "7_120", "7_99"]), "predicted": predicted}
    sent = json.loads(submission(Predictions("future_hands", arrays, {}, {}), num_views=2))
    assert sent == {
        "7_99": (predicted[0] + predicted[2]).ravel().tolist(),
        "7_120": (2 * predicted[1]).ravel().tolist(),
    }


@pytest.mark.parametrize(
    ("augment", "place"),
    [({"crop": "random_resized"}, "crop"), ({"rand_augment": "rand-m7-n4-mstd0.5-inc1"}, "rand_augment")],
)
def test_a_transform_that_moves_the_frame_is_refused(tmp_path: Path, augment: dict[str, Any], place: str) -> None:
    world(tmp_path, 4)
    tree = recipe(tmp_path).resolved()
    tree["data"]["augment"] |= augment
    with pytest.raises(RecipeError, match=place):
        run_recipe(build_recipe(tree), tmp_path / "run", device="cpu")
