"""docs/tutorials.md as it is written, on small files and small models: every command runs, in the order of the page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import in_process
import numpy as np
import pytest
import use_world
from transformers import AutoModelForObjectDetection, YolosConfig

from internvideo.video.writer import write_video

PAGE = (in_process.ROOT / "docs" / "tutorials.md").read_text("utf-8")
NOT_RUN = ("pip install",)
"""Nothing is installed by tests; tests/test_install.py and the CI do that."""

VISION = "image_size: 32, patch_size: 8, frames: 4, width: 48, depth: 3, heads: 2"
TOWERS = f"vision: {{{VISION}, global_layers: [1, 2]}}, text: {{width: 32, heads: 2, layers: 2, context: 32}}"
QUICK = ["schedule.epochs=1", "schedule.warmup=0", "data.loader.workers=0"]
SMALLER = {
    "sample-world": ["--clips", "60", "--size", "32", "--workers", "0"],
    "prepare ava": ["--offset", "900"],  # a film of seconds instead of a quarter of an hour
    "persons": ["--detector", "detector", "--score-threshold", "0"],  # instead of one that is downloaded
    "train paper/": ["data.loader.batch_size=4"],
    "train benchmarks/": ["data.loader.batch_size=2"],
    "train paper/masked": [
        f"model.overrides={{{VISION}, decoder_width: 24, decoder_depth: 1, decoder_heads: 2}}",
        *("data.sampling.frames=4", "data.augment.size=32"),
    ],
    "train benchmarks/ava": [
        "settings.min_person=0",  # the random detector is sure of nothing
        f"model.overrides={{{VISION}, num_classes: 80}}",
        *("data.sampling.frames=4", "data.augment.size=32", "data.key_frames.short=32", "data.key_frames.longest=64"),
    ],
    "train benchmarks/msrvtt": [
        f"model.overrides={{{TOWERS}, joint_width: 24}}", "data.sampling.frames=4", "data.augment.size=32"
    ],
    "train sample/temporal_localization": ["model.overrides.input_width=24"],  # the width of the small model
}  # fmt: skip
"""Beginning of a command -> what makes it small, after the page's own words."""


def commands() -> Iterator[tuple[str, list[str]]]:
    """(heading, words after `internvideo`) of the page's commands; torchrun's is that of each process."""
    for part in re.split(r"^## ", PAGE, flags=re.M):
        for block in re.findall(r"^```bash\n(.*?)^```", part, re.S | re.M):
            for line in block.splitlines():
                if not line.startswith(NOT_RUN):
                    before, name, words = line.partition("internvideo ")
                    assert name, line
                    assert before in ("", "torchrun --nproc-per-node 8 --no-python "), line
                    yield part.splitlines()[0], shlex.split(words)


COMMANDS = list(commands())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page says the reader has: videos, a model, manifests, AVA's files, and what `make demo` left."""
    place = tmp_path_factory.mktemp("tutorials")
    shutil.copytree(use_world.language_folder(), place / "mm.safetensors")  # a folder opens like a file
    rng = np.random.default_rng(0)
    for number, name in enumerate(("waving", "sitting")):
        for clip in range(6):
            (place / "videos" / name).mkdir(parents=True, exist_ok=True)
            grey = np.full((48, 48, 3), 40 + 120 * number + 4 * clip, dtype=np.uint8)
            write_video(place / "videos" / name / f"{clip}.mp4", [grey] * 20, 10)
    write_video(place / "new.mp4", rng.integers(0, 255, (30, 48, 48, 3), dtype=np.uint8), 10)
    for name in ("train", "test"):
        rows = [
            {"id": f"v{n}", "path": f"videos/waving/{n}.mp4", "captions": ["a dog runs", "a dog"]} for n in range(6)
        ]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("ava", "films"):
        (place / name).mkdir()
    for part in ("train", "val"):
        write_video(place / "films" / f"{part}.mp4", rng.integers(0, 255, (60, 48, 64, 3), dtype=np.uint8), 10)
        keys = [f"{part},{time:04d},0.2,0.1,0.6,0.9,{action},0" for time in (902, 903) for action in (12, 17)]
        (place / "ava" / f"ava_{part}_v2.2.csv").write_text("\n".join(keys) + "\n")
    names = "".join(f'label {{\n  name: "action {number}"\n  label_id: {number}\n}}\n' for number in range(1, 81))
    (place / "ava" / "ava_action_list_v2.2.pbtxt").write_text(names)
    small = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[64, 64],
        num_detection_tokens=6, id2label={0: "N/A", 1: "person"}, label2id={"N/A": 0, "person": 1},
    )  # fmt: skip
    AutoModelForObjectDetection.from_config(small).save_pretrained(place / "detector")
    told = {"size": {"shortest_edge": 64, "longest_edge": 96}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (place / "detector" / "preprocessor_config.json").write_text(json.dumps(told))
    return place


def run(words: list[str], place: Path) -> str:
    """What went wrong, "" for nothing."""
    line = " ".join(words)
    smaller = [word for start, more in SMALLER.items() if line.startswith(start) for word in more]
    if words[0] == "train":
        smaller += QUICK
    done = in_process.command(*words, *smaller, cwd=place)
    if done.code:
        return f"internvideo {line}\n{done.err[-2000:]}\n"
    if words[:2] == ["train", "sample/supervised_masked"]:  # make demo leaves such a run, but longer
        demo = place / "runs" / "demo"
        demo.mkdir(exist_ok=True)
        if (demo / "world").exists():
            return ""
        shutil.copytree(place / "runs" / "first", demo / "supervised_masked")
        (demo / "world").symlink_to(place / "runs" / "world")
        data = f"data.train={demo / 'world' / 'train.jsonl'}"
        return run(
            [
                "train",
                "sample/multimodal",
                data,
                "data.loader.batch_size=16",
                "-o",
                str(demo / "multimodal_pretrained"),
            ],
            place,
        )
    return ""


def run_page(place: Path, headings: Collection[str]) -> None:
    failed = [run(words, place) for heading, words in COMMANDS if heading in headings]
    if any(failed):
        pytest.fail("\n".join(filter(None, failed)))


def test_boxes(folder: Path) -> None:
    run_page(folder, ("Tutorials", "First success without weights", "Boxes in AVA's form"))
    for name in ("ava", "boxes"):
        figures = json.loads((folder / "runs" / name / "spatio_temporal_localization.json").read_text())
        assert figures, name


@pytest.mark.slow
def test_every_other_command_runs(folder: Path) -> None:
    run_page(folder, {heading for heading, _ in COMMANDS} - {"Boxes in AVA's form"})
    assert (folder / "mm.onnx").stat().st_size > 0


def test_the_page_has_a_tutorial_of_each_use() -> None:
    headings = dict.fromkeys(heading for heading, _ in COMMANDS)
    assert len(headings) >= 9
    assert len(COMMANDS) >= 24
