"""Every entry of the catalog from its official annotations to its figures: what sees videos and texts; the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_walk import LANGUAGE, WALKED, check, measuring, walk

from internvideo.datasets.catalog import BENCHMARKS

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in WALKED if BENCHMARKS[name].measure.evaluation in LANGUAGE])
def test_an_entry_is_walked_from_annotations_to_figures(name: str, tmp_path: Path) -> None:
    check(name, walk(name, tmp_path))


def test_every_entry_of_the_paper_is_walked() -> None:
    counted = {name for name, entry in BENCHMARKS.items() if entry.paper_number}
    assert len(counted) == 39
    assert counted <= set(WALKED)


@pytest.mark.parametrize("name", WALKED)
def test_the_measuring_command_is_of_the_task_of_the_catalog(name: str) -> None:
    assert measuring(name)["task"] == BENCHMARKS[name].measure.evaluation


def table() -> str:
    """The paper's 39 in Markdown."""
    heads = ("", "name", "task", "data set", "reader", "recipe", "evaluate", "metric: figures", "the paper's figure")
    lines = [heads, ("---",) * len(heads)]
    for name, entry in BENCHMARKS.items():
        if entry.paper_number:
            reader = f"{entry.read.__module__.rpartition('.')[2]}.{entry.read.__name__}"
            figures = ", ".join(f"`{figure}`" for figure in entry.measure.metrics)
            lines.append((
                str(entry.paper_number), f"`{name}`", entry.task, entry.title, f"`{reader}`", f"`benchmarks/{name}`",
                f"`{entry.measure.evaluation}`", f"{entry.metric}: {figures}", entry.paper,
            ))  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def test_the_page_shows_the_table_of_the_catalog() -> None:
    """Where it fails: `python tests/datasets/test_benchmarks_language.py` prints the table as it must be."""
    assert f"\n{table()}\n" in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
