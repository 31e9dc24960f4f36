"""docs/tasks/*.md as they are written, on a small sample world and small models: commands that need no other data."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import in_process
import pytest

PAGES = sorted((in_process.ROOT / "docs" / "tasks").glob("*.md"))
OTHER_DATA = re.compile(
    r"\bdata/|ANNOTATIONS|clip_l14|runs/(?:msrvtt|tgif|zero_shot_|ucf|hmdb51|masked_k400|d_weighted|ava|mixed)|hf://|results\.csv|long/queries"
)
"""In commands that read a published data set or what was made of one."""
QUICK = ["schedule.epochs=1", "schedule.warmup=0", "data.loader.workers=0"]
SMALLER = {
    "sample-world": ["--clips", "60", "--size", "32", "--workers", "0", "--reaches", "40"],
    "navigation-world": ["--scenes", "3", "--episodes", "12", "--validation", "4"],
    "train sample/navigation": ["schedule.steps=1", "schedule.warmup=0", "data.loader.batch_size=2"],
    "train sample/waypoints": ["schedule.steps=1", "schedule.warmup=0"],
    "train sample/temporal_localization": [*QUICK, "data.loader.batch_size=2"],
    "train sample/refinement": [*QUICK, "data.loader.batch_size=2"],
    "train": [*QUICK, "data.loader.batch_size=16"],
}
"""Beginning of a command -> what makes it small, after the page's own words; the first that fits."""


def commands(page: Path) -> Iterator[list[str]]:
    """Words after `internvideo` of the commands of a page that need no other data."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("internvideo ") and not OTHER_DATA.search(line):
                yield shlex.split(line, comments=True)[1:]


def run(words: list[str], place: Path) -> str:
    """What went wrong, "" for nothing."""
    line = " ".join(words)
    smaller = next((more for start, more in SMALLER.items() if line.startswith(start)), [])
    done = in_process.command(*words, *smaller, cwd=place)
    return f"internvideo {line}\n{done.err[-2000:]}\n" if done.code else ""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world and what `make demo` leaves, shorter, under the names that the pages use."""
    place = tmp_path_factory.mktemp("pages")
    data = "data.train=runs/demo/world/train.jsonl"
    for line in (
        "sample-world runs/demo/world",
        f"train sample/multimodal {data} data.loader.batch_size=16 -o runs/demo/multimodal_pretrained",
        f"train sample/supervised_masked {data} -o runs/demo/supervised_masked",
        f"train sample/supervised_multimodal {data} -o runs/demo/supervised_multimodal",
    ):
        assert not (wrong := run(line.split(), place)), wrong
    world = place / "runs" / "demo" / "world"
    for name in ("my.mp4", "clip.mp4", "video.mp4"):
        shutil.copy(next((world / "clips").rglob("test_*.mp4")), place / name)
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same for one page: what it makes stays there."""
    links = {
        "runs/demo": "demo",
        "runs/world": "demo/world",
        "runs/multimodal": "demo/multimodal_pretrained",
        "runs/supervised_masked": "demo/supervised_masked",
        "runs/supervised_multimodal": "demo/supervised_multimodal",
        "runs/actions": "demo/supervised_masked",
        "WORLD": "demo/world",
        "long": "demo/world",
        "encoder": "demo/supervised_masked",
    }
    (tmp_path / "runs").mkdir()
    for name, target in links.items():
        (tmp_path / name).symlink_to(made / "runs" / target)
    for video in made.glob("*.mp4"):
        (tmp_path / video.name).symlink_to(video)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, folder: Path) -> None:
    failed = [run(words, folder) for words in commands(page)]
    if any(failed):
        pytest.fail("\n".join(filter(None, failed)))


def test_every_page_has_commands() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 40
