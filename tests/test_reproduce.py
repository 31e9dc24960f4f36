"""The measurement of every task: its commands exist, its report tells what was measured, RESULTS.md is made of it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import reproduce  # noqa: E402
import results  # noqa: E402
from reproduce_navigation import NAVIGATION  # noqa: E402
from reproduce_open_set import OPEN_SET  # noqa: E402
from reproduce_real import REAL  # noqa: E402
from reproduce_tasks import WORLD, Figure, Task  # noqa: E402

from internvideo.evaluation import find_task  # noqa: E402
from internvideo.recipe import read_recipe  # noqa: E402

TASKS = {**WORLD, **OPEN_SET, **NAVIGATION, **REAL}
PLACES = {"R": "out", "DATA": "data", "PY": "python"}


@pytest.mark.parametrize("name", TASKS)
def test_commands_are_ones_that_can_be_typed(name: str) -> None:
    task = TASKS[name]
    assert {*task.needs} <= {*TASKS}
    assert task.figures
    for _, command in task.commands:
        words = shlex.split(command.format(**PLACES))
        if words[0] == "python":
            assert (ROOT / words[1]).is_file()
        elif words[0] == "cp":
            assert words[1] == "-r"
        elif words[1] == "train" and words[2].startswith("out/"):  # a run is made longer, by its own recipe
            assert words[2] == f"{words[-1]}/recipe.json"
        elif words[1] == "train":
            assert read_recipe(words[2], [word for word in words[3:] if "=" in word]).stage
        elif words[1] == "evaluate":
            find_task(words[2])
        else:
            assert words[1] in {"demo", "extract", "navigation-world", "sample-world"}


def test_what_is_needed_comes_first_and_once() -> None:
    order = list(reproduce.wanted(WORLD, ["language_queries", "open_set"]))
    assert order == ["recognition", "spatio_temporal", "localization", "language_queries", "open_set"]
    assert list(reproduce.wanted(WORLD, [])) == list(WORLD)


def test_a_run_resumes_and_its_report_has_figure_interval_baseline_and_verdict(tmp_path: Path) -> None:
    program = tmp_path / "make.py"
    content = {"figures": {"top1": 0.5}, "intervals": {"top1": [0.4, 0.6]}, "rows": [{"name": "a", "top1": 0.45}]}
    program.write_text(f"import sys; open(sys.argv[1], 'x').write({json.dumps(content)!r})")
    target = "{R}/made.json"
    task = Task(
        "a task",
        ((target, f"python {program} {target}"),),
        {
            "above": Figure(f"{target}:top1", "above chance", 0.25),
            "undecided": Figure(f"{target}:top1", "against another row", f"{target}:rows/name=a/top1", "row a"),
            "unmeasured": Figure("{R}/none.json:top1", "not there", 0.1),
        },
    )
    places = {**PLACES, "R": str(tmp_path)}
    for _ in range(2):  # the program would fail the second time
        assert reproduce.run("task", task, tmp_path, places)
    reproduce.write_report(tmp_path, {"task": task}, places)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert {name: (one["figure"], one["interval"], one["baseline"], one["holds"]) for name, one in report.items()} == {
        "above": (0.5, [0.4, 0.6], 0.25, True), "undecided": (0.5, [0.4, 0.6], 0.45, False),
    }  # fmt: skip
    assert "above chance" in (tmp_path / "report.html").read_text("utf-8")
    broken = Task("fails", ((f"{tmp_path}/never", f"python {program}"),), task.figures)
    assert not reproduce.run("broken", broken, tmp_path, places)


def test_results_are_made_of_the_kept_figures() -> None:
    text = (ROOT / "RESULTS.md").read_text("utf-8")
    assert results.page(text) == text
