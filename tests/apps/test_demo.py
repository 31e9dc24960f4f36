"""The demo's own decisions: how steps follow each other, how videos become train and test, what it times."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from internvideo.apps.demo import PROFILES, Columns, _hold_out_groups, _prepare_videos, run_demo, step_recipe
from internvideo.apps.demo_budget import TIME_FRACTIONS, Budget, VideoSetStatistics
from internvideo.apps.demo_clock import DemoClock
from internvideo.apps.demo_report import DemoData
from internvideo.apps.demo_steps import STEPS, DemoStage, run_in_parallel, run_sequentially
from internvideo.data.manifest import read_manifest
from internvideo.data.sample import Sample
from internvideo.errors import InternVideoError, ManifestError, RecipeError, RunError
from internvideo.model_table import create_model
from internvideo.plots.report import ABLATION
from internvideo.probing.pixel_ridge import pixel_ridge
from internvideo.recipe import Recipe
from internvideo.sample_world.generate import WorldSettings, generate
from internvideo.search.collection import Collection
from internvideo.storage import read_safetensors
from internvideo.video.writer import write_video


def videos(folder: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            frames = rng.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
            write_video(folder / name / f"{number}.mp4", iter(frames), 6)
    return folder


def test_every_step_starts_from_steps_before_it() -> None:
    done: set[str] = set()
    for step in STEPS:
        assert set(step.init.values()) <= done, step.name
        done.add(step.name)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_recipe_of_a_step_is_filled_in(step, tmp_path: Path) -> None:
    data = DemoData(tmp_path / "train.jsonl", tmp_path / "test.jsonl", True)
    full = step_recipe(step, tmp_path, data, PROFILES["full"], seed=3)
    short = step_recipe(step, tmp_path, data, PROFILES["short"], seed=3)
    assert full.data.train == data.train
    assert full.loop.seed == full.data.loader.seed == 3
    assert set(full.init) == set(step.init)
    assert short.schedule.epochs < full.schedule.epochs
    assert short.schedule.warmup <= short.schedule.epochs / 4


def test_a_folder_of_folders_is_split_without_overlap(tmp_path: Path) -> None:
    data = _prepare_videos(tmp_path / "out", videos(tmp_path / "in", {"wave": 6, "nod": 6}), Columns())
    train, test = read_manifest(data.train), read_manifest(data.test)
    assert train.classes == test.classes == ("nod", "wave")
    assert len(train.rows) + len(test.rows) == 12
    assert not {row.id for row in train.rows} & {row.id for row in test.rows}
    assert all(row.captions for row in train.rows)
    assert all(train.video_path(row).is_file() for row in train.rows)


def clips(groups: dict[str, list[int]]) -> list[Sample]:
    """Rows of named groups, one for each of their labels."""
    return [
        Sample(id=f"{group}-{n}", path=f"{group}-{n}.mp4", label=label, group=None if group.startswith("-") else group)
        for group, labels in groups.items()
        for n, label in enumerate(labels)
    ]


WHOLE = {
    "single videos": {f"-{label}-{n}": [label] for label in range(6) for n in range(2 + 7 * label)},
    "groups of one class": {f"{label}-{n}": [label] * (1 + n) for label in range(8) for n in range(5)},
    "two groups a class": {f"{label}-{n}": [label] * 3 for label in range(20) for n in range(2)},
    "scenes of two classes": {f"scene {n}": [0, 1] * (1 + n % 4) for n in range(15)},
    "one big scene": {"big": [0] * 90, **{f"{n}": [0, 1, 2] for n in range(5)}},
    "a class of one group": {"lonely": [0] * 4, **{f"{n}": [1] * 3 for n in range(10)}},
    "chained": {"a": [0, 1], "b": [1, 2], "c": [2, 0], "d": [0], "e": [1], "f": [2]},
}


@pytest.mark.parametrize("case", WHOLE)
def test_every_class_of_two_groups_is_on_both_sides(case: str) -> None:
    rows = clips(WHOLE[case])
    train, test = _hold_out_groups(rows)
    assert sorted(row.id for row in (*train, *test)) == sorted(row.id for row in rows)
    sides = [{row.group or row.id for row in side} for side in (train, test)]
    assert not sides[0] & sides[1], "a group was divided"
    for label in {row.label for row in rows}:
        of_class = {row.group or row.id for row in rows if row.label == label}
        assert of_class & sides[0], f"class {label} is not trained on"
        assert bool(of_class & sides[1]) == (len(of_class) > 1), f"class {label} in the test videos"
    again = _hold_out_groups(rows)
    assert again == (train, test)
    assert {row.id for row in _hold_out_groups(rows[::-1])[1]} == {row.id for row in test}, (
        "depends on the order of rows"
    )


@pytest.mark.parametrize(("classes", "each"), [(10, 20), (3, 50)])
def test_about_one_group_in_five_of_every_class_is_held_out(classes: int, each: int) -> None:
    rows = clips({f"{label}-{n}": [label] * 2 for label in range(classes) for n in range(each)})
    held = np.bincount([row.label or 0 for row in _hold_out_groups(rows)[1]]) / 2 / each
    assert held.min() > 0.1
    assert held.max() < 0.3
    assert held.mean() == pytest.approx(0.2, abs=0.03)


def test_a_class_cannot_be_divided_that_has_one_group_only() -> None:
    with pytest.raises(ManifestError, match="each class of one group"):
        _hold_out_groups(clips({"a": [0] * 5, "b": [1] * 5}))


def test_the_split_column_is_used(tmp_path: Path) -> None:
    folder = videos(tmp_path / "in", {"wave": 7, "nod": 7})
    lines = ["path,label,split,fold"]
    for name in ("wave", "nod"):
        lines += [
            f"{name}/{i}.mp4,{name},{'Test' if i == 3 else 'train'},{'val' if i < 2 else 'train'}" for i in range(7)
        ]
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    assert len(read_manifest(_prepare_videos(tmp_path / "a", folder, Columns()).test).rows) == 2
    assert len(read_manifest(_prepare_videos(tmp_path / "b", folder, Columns(split="fold")).test).rows) == 4
    with pytest.raises(ManifestError, match=r"no column 'fald'.*fold"):
        _prepare_videos(tmp_path / "c", folder, Columns(split="fald"))
    with pytest.raises(RunError, match="other videos, labels or splits"):
        _prepare_videos(tmp_path / "a", folder, Columns(split="fold"))


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="at least 2"):
        _prepare_videos(tmp_path / "out", videos(tmp_path / "in", {"wave": 3}), Columns())


def test_unknown_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="full, short"):
        run_demo(tmp_path, profile="tiny")


def test_clock_adds_up_over_sessions(tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_text(json.dumps({"seconds": {"masked": 5.0}, "peak_memory_mb": 1e6}))
    clock = DemoClock(tmp_path / "seconds.json")
    with pytest.raises(KeyboardInterrupt), clock.timed("masked"):
        raise KeyboardInterrupt
    stored = json.loads((tmp_path / "seconds.json").read_text())
    assert stored["seconds"]["masked"] > 5.0
    assert stored["peak_memory_mb"] == 1e6
    again = DemoClock(tmp_path / "seconds.json")
    with again.timed("masked", already_done=True):
        pass
    assert again.seconds == stored["seconds"]


@pytest.mark.slow
def test_the_whole_demo_runs_and_resumes(tmp_path: Path) -> None:
    page = run_demo(tmp_path / "demo", profile="short", device="cpu")
    with Collection.open(tmp_path / "demo" / "collection") as collection:
        assert len(collection.videos) == 84
        assert collection.search("a red circle", top=2).moments[0].p_value is not None
    report = json.loads(page.with_suffix(".json").read_text())
    assert [row["name"] for row in report["ablation"]] == list(ABLATION)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").glob("*/metrics.jsonl")}
    run_demo(tmp_path / "demo", profile="short", device="cpu")
    assert before == {path: path.stat().st_mtime_ns for path in before}, "a finished step was trained again"


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_few_videos_of_ones_own_fit_into_batches(step, tmp_path: Path) -> None:
    data = DemoData(
        tmp_path / "train.jsonl", tmp_path / "test.jsonl", False, facts=VideoSetStatistics(10, 2, 3.0, 144, True)
    )
    own = step_recipe(step, tmp_path, data, PROFILES["full"], seed=0)
    world = step_recipe(step, tmp_path, DemoData(data.train, data.test, True), PROFILES["full"], seed=0)
    assert own.data.loader.batch_size == 2
    assert own.data.augment.size == own.data.loader.short_side == 2 * world.data.augment.size
    assert own.schedule.epochs == world.schedule.epochs
    if step.recipe in ("supervised_masked", "supervised_multimodal", "single_frame", "masked"):
        assert own.data.augment.flip
    assert not world.data.augment.flip
    tokens = [create_model(r.model.name, r.model.overrides).state_dict() for r in (own, world)]
    assert tokens[0].keys() == tokens[1].keys()


def test_a_set_is_looked_at_before_recipes_are_fitted_to_it(tmp_path: Path) -> None:
    data = _prepare_videos(tmp_path / "out", videos(tmp_path / "in", {"turn left": 6, "nod": 6}), Columns())
    assert data.facts == VideoSetStatistics(len(read_manifest(data.train)), 2, 1.0, 32, False)
    assert data.unlabelled is not None
    every = read_manifest(data.unlabelled)
    assert len(every) == 12
    assert all(row.label is None for row in every.rows)
    masked, supervised = (
        step_recipe(step, tmp_path, data, PROFILES["full"], seed=0) for step in STEPS if step.name[-6:] == "masked"
    )
    assert masked.data.train == data.unlabelled
    assert supervised.data.train == data.train
    assert not supervised.data.augment.flip  # a class knows left from right
    assert supervised.data.augment.size == 32  # small frames are not enlarged


def test_steps_follow_the_time_that_is_given_and_stay_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DemoData(
        tmp_path / "train.jsonl", tmp_path / "test.jsonl", False, facts=VideoSetStatistics(83, 6, 3.0, 144, True)
    )
    assert data.facts is not None
    asked = []
    monkeypatch.setattr("internvideo.apps.demo_budget.seconds_per_step", lambda recipe, device: asked.append(1) or 0.25)
    budget = Budget(tmp_path / "plan.json", 10, "cpu")
    recipes = {
        step.name: budget.set_num_steps(step.name, step_recipe(step, tmp_path, data, PROFILES["full"], 0), data.facts)
        for step in STEPS
    }
    steps = {name: recipe.schedule.total_steps(1.0) for name, recipe in recipes.items()}
    assert steps["masked"] == round(600 * TIME_FRACTIONS["masked"] / 0.25)
    assert steps["supervised_scratch"] == steps["supervised_masked"]
    assert sum(TIME_FRACTIONS.values()) < 1
    again = Budget(tmp_path / "plan.json", 10, "cpu")
    count = len(asked)
    repeated = again.set_num_steps("masked", step_recipe(STEPS[0], tmp_path, data, PROFILES["full"], 0), data.facts)
    assert repeated.schedule == recipes["masked"].schedule
    assert len(asked) == count


def test_a_ridge_on_pixels_knows_where_something_is(tmp_path: Path) -> None:
    for name, side in (("left", 0), ("right", 16)):
        (tmp_path / name).mkdir()
        for number in range(8):
            frames = np.random.default_rng(number).integers(0, 120, (6, 32, 32, 3), dtype=np.uint8)
            frames[:, 8:24, side + 4 : side + 12] += 100
            write_video(tmp_path / name / f"{number}.mp4", iter(frames), 6)
    rows = read_manifest(tmp_path)
    train, test = (rows.subset(where=lambda row, half=half: int(row.id[-5]) % 2 == half) for half in (0, 1))
    ridge = pixel_ridge(train, test)
    assert [test.rows[index].label for index in ridge.row_index] == ridge.scores.argmax(axis=1).tolist()
    (tmp_path / "left" / "1.mp4").write_bytes(b"no video")
    assert len(pixel_ridge(train, test).row_index) == len(test) - 1


def test_clock_adds_what_overlaps(tmp_path: Path) -> None:
    clock = DemoClock(tmp_path / "seconds.json")
    stop_first, stop_second = clock.start("first"), clock.start("second")
    stop_second()
    assert set(clock.seconds) == {"second"}
    assert set(clock.seconds_so_far()) == {"first", "second"}
    stop_first()
    assert set(DemoClock(tmp_path / "seconds.json").seconds) == {"first", "second"}


@pytest.mark.slow
def test_steps_side_by_side_learn_the_same_and_name_what_fails(tmp_path: Path) -> None:
    world = generate(tmp_path / "world", WorldSettings(clips=112, size=32, seed=1, zero_shot_clips=8, long_videos=0))
    data = DemoData(world["train"], world["test"], True, world["zero_shot"])
    profile = replace(PROFILES["short"], epochs=0.01)
    for name in ("a", "b"):
        clock, folder = DemoClock(tmp_path / name / "seconds.json"), tmp_path / name

        def recipe_of(step: DemoStage, folder: Path = folder) -> Recipe:
            return step_recipe(step, folder, data, profile, seed=0)

        if name == "a":
            run_sequentially(recipe_of, folder, clock, "cpu")
        else:
            run_in_parallel(recipe_of, folder, clock)
        assert set(clock.seconds) == {step.name for step in STEPS}
    for step in STEPS:
        first, second = (read_safetensors(tmp_path / name / step.name / "model.safetensors")[0] for name in ("a", "b"))
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=1e-3, atol=1e-4, msg=f"{step.name} {key}")
    shutil.rmtree(tmp_path / "b" / "interaction")

    def absent(step: DemoStage) -> Recipe:
        return step_recipe(step, tmp_path / "b", replace(data, train=tmp_path / "absent.jsonl"), profile, seed=0)

    with pytest.raises(InternVideoError, match=r"absent\.jsonl"):
        run_in_parallel(absent, tmp_path / "b", DemoClock(tmp_path / "b" / "seconds.json"))


INTERRUPTED = """
import sys
from dataclasses import replace
from pathlib import Path
from internvideo.apps.demo import PROFILES, step_recipe
from internvideo.apps.demo_clock import DemoClock
from internvideo.apps.demo_report import DemoData
from internvideo.apps.demo_steps import run_in_parallel
from internvideo.sample_world.generate import WorldSettings, generate

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    world = generate(folder / "world", WorldSettings(clips=112, size=32, seed=1, zero_shot_clips=8, long_videos=0))
    data, profile = DemoData(world["train"], world["test"], True, world["zero_shot"]), PROFILES["full"]
    recipe_of = lambda step: step_recipe(step, folder, data, profile, seed=0)
    run_in_parallel(recipe_of, folder, DemoClock(folder / "seconds.json"))
"""


@pytest.mark.slow
def test_an_interrupted_pair_of_steps_writes_checkpoints_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(INTERRUPTED, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stderr is not None
        for line in program.stderr:
            if ": step " in line:
                program.send_signal(signal.SIGINT)
                break
        rest = program.stderr.read()  # ends when no worker holds it any more
    assert program.returncode == 1
    assert "RunInterruptedError" in rest
    assert "killed" not in rest
    steps = set(json.loads((tmp_path / "seconds.json").read_text())["seconds"])
    assert {"masked", "image_text"} & steps
    assert list(tmp_path.glob("*/checkpoints/*.safetensors"))
