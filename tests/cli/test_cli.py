"""The command line: help, listings, a run, and every mistake told in one line with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import odd_video
import pytest
import small_world
import torch
import typer
import yaml
from small_world import small_recipe

from internvideo import __version__
from internvideo.cli import main as cli
from internvideo.model_table import MODELS
from internvideo.video.writer import write_video
from internvideo.weights.state import save_model

COMMANDS = (
    *("demo", "sample-world", "train", "evaluate", "score", "list"),
    *("embed", "index", "search", "serve", "classify", "caption", "ask", "compare", "stream", "fit"),
    *(
        "prepare",
        "pack",
        "extract",
        "localize",
        "persons",
        "navigation-world",
        "ensemble",
        "mix",
        "export",
        "convert",
        "doctor",
    ),
)


class Told(NamedTuple):
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Told]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command in this process."""

    def call(*words: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["internvideo", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Told(ended.value.code, told.out, told.err)

    return call


def mistake(told: Told) -> str:
    """The one line of a user's mistake."""
    assert told.code == 2, told
    assert told.out == ""
    assert told.err.endswith("\n")
    assert told.err.count("\n") == 1, told.err
    assert told.err.startswith("internvideo: ")
    return told.err


@pytest.mark.parametrize("error", [KeyboardInterrupt, typer.Abort])
def test_ctrl_c_is_told(run: Run, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def stopped(*given: object, **named: object) -> None:
        raise error

    monkeypatch.setattr("internvideo.pipeline.listing", stopped)
    monkeypatch.setattr("internvideo.features.video_files.find_videos", stopped)
    assert run("list", "models") == (130, "", "internvideo: interrupted\n")
    told = "internvideo: interrupted; the same command resumes\n"
    assert run("embed", "x", "-o", "x.npy", "-e", "x") == (130, "", told)


def write(folder: Path, stage: str = "supervised", **changes: Any) -> Path:
    """A recipe file."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe(stage, **changes)))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    told = run(command, "--help")
    assert told.code == 0
    assert told.err == ""
    assert f"Usage: internvideo {command}" in told.out
    assert all(len(line) <= 100 for line in told.out.splitlines())
    for line in told.out.partition("\nExamples:")[0].splitlines():
        if line.lstrip().startswith("--") and "--help" not in line:
            assert len(line.split()) > 2, f"an option without help: {line}"


def test_every_command_is_in_the_help(run: Run) -> None:
    told = run("--help")
    assert told.code == 0
    assert [name for name in COMMANDS if f"  {name} " not in told.out] == []
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}  # type: ignore[union-attr]  # all have one
    names |= {group.name for group in cli.app.registered_groups}
    assert {name.replace("_", "-") for name in names} == set(COMMANDS)
    assert run() == Told(2, "", told.out), "without a command: the help, as an error"


def test_the_module_runs_and_tells_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "internvideo", "--version"],
        capture_output=True,
        text=True,
        cwd=Path(cli.__file__).parents[2],
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"internvideo {__version__}\n", "")


@pytest.mark.parametrize("what", ["models", "stages", "tasks", "recipes"])
def test_listings(run: Run, what: str) -> None:
    told = run("list", what)
    assert told.code == 0
    assert told.err == ""
    assert len(told.out.splitlines()) >= 4
    if what == "models":
        assert len(told.out.splitlines()) == len(MODELS)


def test_a_sample_world_is_written_and_continued(run: Run, tmp_path: Path) -> None:
    words = ("sample-world", tmp_path / "w", "--clips", 10, "--size", 32, "--seed", 1, "--workers", 1)
    told = run(*words)
    assert told.code == 0
    for line in told.out.splitlines():
        assert Path(line.partition(": ")[2]).is_file()
    assert "train: " in told.out
    assert run(*words).out == told.out
    assert "contains another sample world" in mistake(run(*words[:-4], "--seed", 2, "--workers", 1))


def test_train_evaluate_and_score(run: Run, tmp_path: Path) -> None:
    told = run("train", write(tmp_path), "loop.log_every=3", "--output", tmp_path / "run", "--device", "cpu")
    assert (told.code, told.out) == (0, f"weights: {tmp_path / 'run/model.safetensors'}\n")
    assert json.loads((tmp_path / "run/run.json").read_text())["recipe"]["loop"]["log_every"] == 3
    words = (tmp_path / "run/model.safetensors", small_world.world(), "--output", tmp_path / "test")
    told = run("evaluate", "recognition", *words, "--device", "cpu")
    assert told.code == 0, told.err
    assert "top1" in told.out
    result = json.loads((tmp_path / "test/recognition.json").read_text())
    assert result["coverage"] == {"asked": 42, "read": 42, "unreadable": []}
    assert result["intervals"].keys() == result["figures"].keys() >= {"top1", "mean_class"}
    assert {"weights_sha256", "split_sha256"} <= result["protocol"].keys()
    again = run("score", tmp_path / "test/recognition.npz")
    assert again.code == 0, again.err
    assert "top1" in again.out
    assert "holds a VideoMAEClassifier" in mistake(run("evaluate", "retrieval", *words))


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    told = run("train", write(tmp_path), "--dry-run", "--output", tmp_path / "run", "--device", "cpu")
    assert told.code == 0
    assert "learning" in told.out
    assert not (tmp_path / "run").exists()


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["list"], "Missing argument 'what'"),
        (["list", "models", "more"], "unexpected extra argument"),
        (["list", "nonsense"], "expected: models, stages, tasks, recipes"),
        (["train"], "Missing argument 'recipe'"),
        (["train", "sample/maskd"], "did you mean 'sample/masked'?"),
        (["sample-world", "w", "--clips", "0"], "--clips"),
        (["sample-world", "w", "--clips", "many"], "--clips"),
        (["sample-world", "w", "--size", "33"], "an even number"),
        (["evaluate", "recognition", "none.safetensors", "none.jsonl"], "no such file"),
        (["evaluate", "nonsense", "none.safetensors", "none.jsonl"], "expected: recognition"),
        (["score", "none.npz"], "none.npz"),
        (["score", "none.csv"], "results in AVA's format, without --truth"),
        (["score", "none.csv", "--truth", "t.csv"], "results in AVA's format, without --labels"),
        (["score", "none.csv", "--truth", "t.csv", "--labels", "l.pbtxt"], "no such file"),
        (["score", "none.npz", "--truth", "t.csv"], "with no single .csv"),
        (["score", "a.csv", "b.csv", "--truth", "t.csv"], "with no single .csv"),
    ],
)
def test_wrong_commands(run: Run, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = mistake(run(*words))
    assert said in line
    assert list(tmp_path.iterdir()) == [], "something was written"


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("supervised", ["loop.log_evry=3"], "no setting 'loop.log_evry', did you mean 'log_every'?"),
        ("supervised", ["optimizer.base_lr=fast"], "optimizer.base_lr"),
        ("supervised", ["optimizer=1"], "optimizer"),
        ("supervised", ["schedule.epochs=2"], "give either schedule.steps or schedule.epochs"),
        ("supervised", ["settings.ratio=0.9"], "no setting 'settings.ratio'"),
        ("supervised", ["nonsense"], "expected: key.key=value"),
        ("supervised", ["model.name=videomae-x-classifier"], "no model 'videomae-x-classifier'; did you mean"),
        ("supervised", ["model.overrides.widht=3"], "did you mean 'width'?"),
        ("supervised", ["model.overrides.num_classes=3"], "3, but the manifest has 2 classes; expected: 2"),
        ("supervised", ["stage=nonsense"], "no stage 'nonsense'; expected: masked"),
        ("supervised", ["data.train=none.jsonl"], "none.jsonl"),
        ("supervised", ["data.sampling.kind=nonsense"], "no sampler 'nonsense'; expected: dense"),
        ("supervised", ["data.loader.batch_size=0"], "batch_size"),
        ("supervised", ["init.weights=none.safetensors"], "none.safetensors: no such file"),
        ("interaction", [], "masked: FILE and multimodal: FILE"),
    ],
)
def test_wrong_settings(run: Run, stage: str, changes: list[str], said: str, tmp_path: Path) -> None:
    line = mistake(run("train", write(tmp_path, stage), *changes, "--output", tmp_path / "run"))
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stage: masked\n", "'model' is missing; 'data.loader' is missing"),
        ("- 1\n", "contains a list; expected: a mapping"),
        ("a: [1\n", "cannot be read as YAML"),
        ("", "is empty; expected: a mapping"),
    ],
)
def test_wrong_recipe_files(run: Run, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    line = mistake(run("train", path, "--output", tmp_path / "run"))
    assert said in line
    assert str(path) in line


def manifest(folder: Path, files: dict[str, bytes | Path], copies: int = 8) -> Path:
    """A manifest of good clips, and of the files given."""
    good = np.zeros((8, 32, 32, 3), np.uint8)
    for number in range(copies):
        write_video(folder / f"{number}.mp4", good + 20 * number, 8)
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
    names = [f"{number}.mp4" for number in range(copies)] + list(files)
    rows = [{"id": name, "path": name, "label": place % 2} for place, name in enumerate(names)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "classes.txt").write_text("dark\nlight\n")
    return folder / "train.jsonl"


def unreadable(kind: str, folder: Path) -> None:
    """Write `bad.mp4` of a kind into the folder."""
    path = folder / "bad.mp4"
    if kind == "audio only":
        odd_video.audio_only(path)
    elif kind == "zero frames":
        odd_video.zero_frames(path)
    elif kind == "corrupt":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "truncated":
        write_video(path, np.zeros((8, 32, 32, 3), np.uint8), 8)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        assert kind == "absent"


@pytest.mark.parametrize("kind", ["corrupt", "truncated", "empty", "absent", "audio only", "zero frames"])
def test_too_many_unreadable_clips_stop_the_run(run: Run, kind: str, tmp_path: Path) -> None:
    unreadable(kind, tmp_path)
    rows = manifest(tmp_path, {"bad.mp4": tmp_path / "bad.mp4"})
    words = ("train", write(tmp_path), f"data.train={rows}", "data.loader.batch_size=9", "--output", tmp_path / "run")
    line = mistake(run(*words))
    assert "1 of 9 clips cannot be read" in line
    assert "bad.mp4" in line
    assert "max_unreadable" in line
    assert [json.loads(row)["id"] for row in (tmp_path / "run/skipped.jsonl").read_text().splitlines()] == ["bad.mp4"]
    assert not (tmp_path / "run/model.safetensors").exists()
    told = run(*words[:-1], tmp_path / "tolerant", "data.loader.max_unreadable=0.2")
    assert told.code == 0, told.err


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_manifest(run: Run, text: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(text)
    (tmp_path / "classes.txt").write_text("dark\nlight\n")
    line = mistake(run("train", write(tmp_path), f"data.train={tmp_path / 'train.jsonl'}", "-o", tmp_path / "run"))
    assert "train.jsonl" in line
    assert not (tmp_path / "run").exists()


def test_labels_outside_the_classes(run: Run, tmp_path: Path) -> None:
    rows = manifest(tmp_path, {})
    rows.write_text(rows.read_text().replace('"label": 1', '"label": 7', 1))
    line = mistake(run("train", write(tmp_path), f"data.train={rows}", "-o", tmp_path / "run"))
    assert "train.jsonl:2" in line or "line 2" in line
    assert "7" in line


def test_a_manifest_without_captions_for_the_multimodal_stage(run: Run, tmp_path: Path) -> None:
    rows = manifest(tmp_path, {})
    line = mistake(run("train", write(tmp_path, "multimodal"), f"data.train={rows}", "-o", tmp_path / "run"))
    assert "no caption" in line


def test_weights_of_another_model(run: Run, tmp_path: Path) -> None:
    save_model(tmp_path / "other.safetensors", small_world.multimodal_classifier())
    words = (f"init.weights={tmp_path / 'other.safetensors'}", "-o", tmp_path / "run")
    line = mistake(run("train", write(tmp_path), *words))
    assert "other.safetensors" in line
    assert "12 missing" in line
    assert "VideoMAEClassifier" in line
    assert "keys of no known layout" in mistake(
        run("evaluate", "recognition", tmp_path / "other.safetensors", small_world.world(), "-o", tmp_path / "out")
    )


def test_a_folder_of_another_run(run: Run, tmp_path: Path) -> None:
    recipe, folder = write(tmp_path), tmp_path / "run"
    assert run("train", recipe, "schedule.steps=2", "-o", folder).code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    line = mistake(run("train", recipe, "schedule.steps=1", "-o", folder))
    assert str(folder) in line
    assert "steps" in line
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_is_changed_on_purpose(run: Run, tmp_path: Path) -> None:
    recipe, folder = write(tmp_path), tmp_path / "run"
    assert run("train", recipe, "schedule.steps=1", "-o", folder).code == 0
    changed = ("train", recipe, "schedule.steps=2", "--change", "optimizer.base_lr=0.01", "-o", folder)
    assert "base_lr" in mistake(run("train", recipe, "schedule.steps=2", "optimizer.base_lr=0.01", "-o", folder))
    told = run(*changed)
    assert told.code == 0
    assert "optimizer.base_lr was 0.001, is 0.01" in told.err
    assert "--change: 'model.name' cannot" in mistake(
        run("train", recipe, "schedule.steps=2", "--change", "model.name=videomae-b-classifier", "-o", folder)
    )


def test_a_folder_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    mistake(run("train", write(tmp_path), "-o", tmp_path / "file/run"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_device_that_is_not_there(run: Run, tmp_path: Path) -> None:
    assert "expected: auto, cpu" in mistake(
        run("train", write(tmp_path), "-o", tmp_path / "run", "--device", "nonsense")
    )
    if not torch.cuda.is_available():
        assert "no CUDA device" in mistake(run("train", write(tmp_path), "-o", tmp_path / "run", "--device", "cuda"))
    assert not (tmp_path / "run").exists()
