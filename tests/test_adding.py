"""docs/adding.md is true: a task and a backbone of one file and one row each do what the others do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import small_world

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
from internvideo import load, read_recipe
from internvideo.evaluation import evaluate_task
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import find_items
from internvideo.features.window_sampling import WindowRule
from internvideo.inference.export import ExportSettings, export
from internvideo.pipeline import listing, run_recipe
from internvideo.recipe import build_recipe

world, video = sys.argv[1:]
assert "brightness" in listing("tasks") and "colors" in listing("models")
tree = {
    "data": {"train": world, "sampling": {"kind": "linspace", "frames": 4}, "loader": {"batch_size": 8},
             "augment": {"size": 32, "use_eval_transform": True}},
    "optimizer": {"base_lr": 0.05, "weight_decay": 0.0}, "schedule": {"epochs": 40.0},
}
told = run_recipe(
    build_recipe({**tree, "stage": "brightness", "model": {"name": "brightness"}}), Path("task"), device="cpu"
)
found = evaluate_task("brightness", told, Path(world), Path("task"), {"device": "cpu"})["figures"]
assert found["error"] < 0.5 * found["error_of_the_mean"], found
weights = run_recipe(
    build_recipe({**tree, "stage": "supervised", "model": {"name": "colors"}, "schedule": {"steps": 4}}),
    Path("backbone"),
    device="cpu",
)
evaluate_task("recognition", weights, Path(world), Path("backbone"), {"device": "cpu"})
model = load(weights, device="cpu")
model.save_pretrained("saved")
evaluate_task("recognition", Path("saved"), Path(world), Path("again"), {"device": "cpu"})
items, classes = find_items([video])
extract(items, load("saved", device="cpu"), Path("features"), ExtractSettings(rule=WindowRule(4, 4)))
export(model, Path("colors.pt2"), ExportSettings(format="torch"))
"""


def test_a_task_and_a_backbone_are_one_file_and_one_row_each(tmp_path: Path) -> None:
    package = tmp_path / "src" / "internvideo"
    shutil.copytree(ROOT / "src" / "internvideo", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    page = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    files = re.findall(r"\*\*src/internvideo/([\w/]+\.py)\*\*:\n\n```python\n(.*?)```", page, re.S)
    assert [name for name, _ in files] == ["tasks/brightness.py", "models/colors.py"]
    for name, text in files:
        (package / name).write_text(text, encoding="utf-8")
    row = '"colors": ModelEntry(Colors, ColorsConfig(), None, "mean colors")'
    assert row in page
    edit(package / "tasks/__init__.py", r"^TASKS: tuple\[TaskSpec, \.\.\.\] = \(\n", "\\g<0>    BRIGHTNESS,\n")
    edit(
        package / "tasks/__init__.py",
        "^from internvideo.tasks.task import",
        "from internvideo.tasks.brightness import SPEC as BRIGHTNESS\n\\g<0>",
    )
    edit(
        package / "models/factory.py",
        r"^BACKBONES: [^\n]+ = \{",
        f"from internvideo.models.colors import Colors, ColorsConfig\n\n\\g<0>{row}, ",
    )
    video = small_world.world().parent / json.loads(small_world.world().read_text().splitlines()[0])["path"]
    words = [sys.executable, "-c", PROGRAM, str(small_world.world()), str(video)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / name).exists() for name in ("task/brightness.json", "again/recognition.json", "colors.pt2"))
    assert list((tmp_path / "features").glob("*.npy"))


def edit(path: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, text, path.read_text(encoding="utf-8"), count=1, flags=re.M)
    assert count == 1, path
    path.write_text(changed, encoding="utf-8")
