"""The training commands of docs/scale.md: torchrun takes their options, `internvideo` runs them on a small recipe."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import in_process
import pytest
import torch
import torch.distributed.run
import yaml
from small_world import small_recipe, world

from internvideo.pipeline import run_recipe
from internvideo.recipe import build_recipe
from internvideo.terminal import LOGGER
from internvideo.training.logging import read_metrics

PAGE = (in_process.ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
LINES = [
    line.strip()
    for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.S | re.M)
    for line in re.sub(r"\\\n\s*", "", block).splitlines()
    if "torchrun" in line
]
SMALL = {
    r"\$\(.*?\)": "node0", r"\$SLURM_NNODES": "4", r"paper/masked": "small.yaml", r"train \.\.\.": "train small.yaml",
    r" \.\.\.": "", r"-o /\S+": "-o run", r"data\.train=\S+": f"data.train={world.__name__}", "=2048": "=8",
}  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_line_of_torchrun_trains_a_small_recipe(tmp_path: Path, line: str) -> None:
    for pattern, small in SMALL.items():
        line = re.sub(pattern, small, line)
    before, command = re.fullmatch(r"(?:srun )?torchrun (.*?) -m internvideo (train .*)", line).groups()  # type: ignore[union-attr]  # fails
    options = torch.distributed.run.get_args_parser().parse_args([*shlex.split(before), "-m", "internvideo"])
    assert options.nproc_per_node == "8"
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe("masked", schedule={"steps": 1})))
    words = [word.replace("=world", f"={world()}") for word in shlex.split(command)]
    words += [] if "-o" in words else ["-o", "run"]
    told = in_process.command(*words, "--device", "cpu", cwd=tmp_path)
    assert told.code == 0, told.err
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_lines_were_found() -> None:
    assert len(LINES) == 4


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own
def test_a_compiler_that_fails_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no C++ compiler here")

    compile_layer = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: compile_layer(layer, backend=fails))
    monkeypatch.setattr(LOGGER, "propagate", True)
    for kind in (True, False):
        run_recipe(build_recipe(small_recipe("masked", loop={"compile": kind})), tmp_path / str(kind), device="cpu")
    told = [record.getMessage() for record in caplog.records if "compiler failed" in record.getMessage()]
    assert len(told) == 1
    assert "\n" not in told[0]
    assert "no C++ compiler here" in told[0]
    compiled, plain = ([line["loss"] for line in read_metrics(tmp_path / name)] for name in ("True", "False"))
    assert compiled == plain


LOOP = dict.fromkeys(re.findall(r"`(loop\.\w+=[\w.]+)", PAGE))
SETTINGS = dict.fromkeys(re.findall(r"`(settings\.\w+)`", PAGE))


@pytest.mark.parametrize("change", LOOP)
def test_a_setting_of_the_page_is_one(change: str) -> None:
    key, value = change.split("=")
    kept = build_recipe(small_recipe("masked", loop={key.removeprefix("loop."): yaml.safe_load(value)}))
    assert str(getattr(kept.loop, key.removeprefix("loop."))).lower() == value


@pytest.mark.slow
def test_the_memory_of_the_page_s_settings_is_predicted(tmp_path: Path) -> None:
    assert len(SETTINGS) == 3
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe("multimodal")))
    words = ["train", "small.yaml", *(f"{name}=4" for name in SETTINGS), "--dry-run", "--processes", 64]
    words += ["--memory-gib", 80]
    told = in_process.command(*words, "--device", "cpu", cwd=tmp_path)
    assert (told.code, "memory" in told.out + told.err) == (0, True), told
