"""The README's section on using a model, as it is written, on a small checkpoint in the published layout."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import in_process
import numpy as np
import pytest
import torch
from published_keys import below, multimodal, numbers, text_tower, uniformerv2

from internvideo.apps import doctor
from internvideo.model_table import MODELS
from internvideo.models.factory import BACKBONES, configure
from internvideo.video.writer import write_video

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "README.md").read_text("utf-8").split("## Use a model", 1)[1].split("\n## ", 1)[0]


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.fixture(scope="module", autouse=True)
def published() -> Iterator[None]:
    """The small checkpoint is of a published size here, so that its heads are known."""
    tower = {"image_size": 32, "patch_size": 16, "width": 64, "depth": 2, "heads": 1, "global_layers": [1]}
    small = {"vision": tower, "text": {"width": 64, "layers": 1, "heads": 1}, "joint_width": 64}
    name = "internvideo-mm-b16"
    with pytest.MonkeyPatch.context() as patch:
        row = replace(MODELS[name], config=configure(name, small))
        patch.setitem(MODELS, name, row)
        patch.setitem(BACKBONES, name, row)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos in class folders and a checkpoint as it is published, but for its width and depth."""
    place = tmp_path_factory.mktemp("readme")
    for number, name in enumerate(("waving", "sitting")):
        for clip in range(6):
            (place / "videos" / name).mkdir(parents=True, exist_ok=True)
            grey = np.full((48, 48, 3), 40 + 120 * number + 4 * clip, dtype=np.uint8)
            write_video(place / "videos" / name / f"{clip}.mp4", [grey] * 20, 10)
    tower = uniformerv2(32, 16, 64, 2, 1, prefix="visual.")
    keys = below("clip.", multimodal(tower, text_tower("", 64, 64, layers=1), 64, 64, 64))
    torch.save({"state_dict": numbers(keys), "epoch": 3}, place / "InternVideo-MM-L-14.ckpt")
    return place


def test_use_section_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVIDEO_CACHE", str(folder / "cache"))
    monkeypatch.setattr(doctor, "EXTRAS", {})  # tests/apps/test_doctor.py imports them all
    said = ""
    for line in block("bash").splitlines():
        name, *words = shlex.split(line)
        assert name == "internvideo"
        done = in_process.command(*words, cwd=folder)
        assert done.code == 0, f"{line}\n{done.err}"
        said += done.out
    assert "read: 12 of 12 videos" in said
    assert "waving" in said
    assert np.load(folder / "vectors.npy").shape[1] == 64
    assert (folder / "mm.onnx").stat().st_size > 0
    (folder / "use.py").write_text(block("python"))
    assert "tensor([[" in in_process.program(folder / "use.py", cwd=folder).out
    assert (folder / "mm" / "config.json").is_file()


def test_examples_on_a_checkpoint(folder: Path) -> None:
    """From a published file to a folder, captions aside (its towers have no decoder), and a classifier of one's own."""

    def example(name: str, *words: str) -> str:
        done = in_process.program(ROOT / "examples" / name, *words, cwd=folder)
        assert done.code == 0, done.err
        return done.out

    told = example("from_checkpoint.py", "InternVideo-MM-L-14.ckpt", "kept", "--licence", "apache-2.0")
    assert "text, video" in told
    assert "apache-2.0" in (folder / "kept" / "README.md").read_text("utf-8")
    two = ("videos/waving/0.mp4", "videos/sitting/0.mp4")
    assert example("describe_and_compare.py", "kept", *two).startswith("cosine ")
    assert in_process.command("fit", "videos", "-e", "kept", "-o", "own", "--folds", "2", cwd=folder).code == 0
    answers = example("own_classes.py", "kept", "own/classifier.safetensors", *two).splitlines()
    assert [line.split(": ")[0] for line in answers] == list(two)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 60
