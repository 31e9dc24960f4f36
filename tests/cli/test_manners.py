"""Manners of the command line: groups, whole summaries, examples, completion, JSON, all mistakes at once, stdin."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import use_world
from typer.main import get_command

from internvideo import terminal
from internvideo.cli import main as cli
from internvideo.cli.manners import EXAMPLES, GROUPS, Command, summary
from internvideo.cli.options import named_files
from internvideo.errors import VideoError

ROOT = Path(__file__).parents[2]
GROUP: Any = get_command(cli.app)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    terminal.LOGGER.setLevel(logging.INFO)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["internvideo", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, told.out, told.err


def test_help_has_every_command_once_in_a_group_with_its_whole_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert code == 0
    assert "..." not in out.partition("[ARGS]...")[2]
    assert "More:" not in out, "a command that stands in no group of cli/manners.py"
    names = [name for group in GROUPS.values() for name in group if name in GROUP.commands]
    assert sorted(names) == sorted(GROUP.commands)
    joined = " ".join(out.split())
    for name, command in GROUP.commands.items():
        assert f"{name} {summary(command)}" in joined
    assert all(f"{title}:" in out for title in GROUPS)


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_every_help_has_examples_that_parse(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, name, "--help")
    assert code == 0
    joined = " ".join(out.replace("\\\n", " ").split())
    for line in EXAMPLES[name]:
        assert " ".join(line.split()) in joined
        words = shlex.split(line[line.index("internvideo ") :])[1:]
        assert words[0] == name
        if name != "evaluate":  # its commands are the tasks
            assert isinstance(GROUP.commands[name], Command)
            GROUP.commands[name].make_context(name, words[1:])


@pytest.mark.parametrize("shell", ["bash", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zsh", "fish"))])
def test_shells_complete_commands(shell: str) -> None:
    words = {"COMP_WORDS": "internvideo c", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "internvideo c"}
    environment = {**os.environ, **words, "_INTERNVIDEO_COMPLETE": f"complete_{shell}"}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    told = subprocess.run(
        [sys.executable, "-c", "from internvideo.cli.main import main; main()"],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    for name in ("classify", "caption", "compare", "convert"):
        assert name in told.stdout, told


def test_lists_are_a_line_each_for_programs_and_json_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plain, _ = run(monkeypatch, capsys, "list", "benchmarks")
    _, told, _ = run(monkeypatch, capsys, "list", "benchmarks", "--json")
    records = [json.loads(line) for line in told.splitlines()]
    assert [record["name"] for record in records] == [line.split()[0] for line in plain.splitlines()]
    assert all(record["about"] for record in records)


def test_lists_fit_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "70")
    terminal.print_rows({"kinetics400": "recognition: " + "many words " * 20, "short": "one"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 4
    assert all(len(line) <= 70 for line in lines)
    assert lines[1].startswith(" " * 13)
    assert lines[-1] == "short        one"


def test_all_mistakes_of_a_line_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, capsys, "classify") == (
        2,
        "",
        "internvideo: Missing argument 'inputs'; Missing option '--encoder' / '-e'; "
        "see `internvideo classify --help`\n",
    )
    code, _, err = run(monkeypatch, capsys, "classify", "a.mp4", "--lables", "x,y", "--topp", "3")
    assert code == 2
    assert re.fullmatch(
        r"internvideo: No such option: --lables.*; No such option: --topp.*; Missing option '--encoder' / '-e'; "
        r"see `internvideo classify --help`\n",
        err,
    )
    code, _, err = run(monkeypatch, capsys, "clasify")
    assert (code, "Did you mean 'classify'?" in err) == (2, True)
    code, _, err = run(monkeypatch, capsys, "classify", "a.mp4", "-e", "x", "--quiet")
    assert (code, "--quiet (it stands before the command: internvideo --quiet classify)" in err) == (2, True)


def test_standard_input_names_videos_and_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from internvideo.cli.options import text_lines
    from internvideo.features.video_files import find_videos

    for name in ("a.mp4", "b c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path / 'a.mp4'}\n\n{tmp_path / 'b c.mp4'}\n"))
    assert [Path(video.path).name for video in find_videos([Path("-")])] == ["a.mp4", "b c.mp4"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(VideoError, match="none given"):
        find_videos(["-"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("waving\n\n sitting down \n"))
    assert text_lines(Path("-")) == ["waving", "sitting down"]


def test_quiet_and_verbose(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(monkeypatch, capsys, "--verbose", "list", "nothing")
    assert (code, out) == (2, "")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("internvideo: list: found 'nothing'")
    code, _, err = run(monkeypatch, capsys, "--quiet", "list", "nothing")
    assert err.count("\n") == 1
    assert os.environ["TQDM_DISABLE"] == "1"
    assert not terminal.LOGGER.isEnabledFor(logging.WARNING)
    code, _, err = run(monkeypatch, capsys, "--quiet", "--verbose", "list", "models")
    assert (code, "--verbose: together with --quiet" in err) == (2, True)


def test_every_command_prints_json_on_request() -> None:
    tasks = GROUP.commands["evaluate"]
    every = {name: command for name, command in GROUP.commands.items() if name != "evaluate"}
    every |= {f"evaluate {name}": tasks.get_command(None, name) for name in tasks.list_commands(None)}
    lacking = [name for name, command in every.items() if not any("--json" in p.opts for p in command.params)]
    assert lacking == []


def test_tasks_have_whole_summaries_and_examples_that_parse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = GROUP.commands["evaluate"]
    _, out, _ = run(monkeypatch, capsys, "evaluate", "--help")
    joined = " ".join(out.split())
    for name in tasks.list_commands(None):
        command = tasks.get_command(None, name)
        assert f"{name} {summary(command)}" in joined
        (line,) = command.examples()
        words = shlex.split(line)
        assert words[:3] == ["internvideo", "evaluate", name]
        command.make_context(name, words[3:])
    code, _, err = run(monkeypatch, capsys, "evaluate", "recognition", "--num-clips", "x", "--nun-crops", "3")
    assert (code, "'--num-clips'" in err, "--nun-crops" in err, "'manifest'" in err) == (2, True, True, True)


def test_standard_output_is_json_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    world, out = tmp_path / "world", tmp_path / "run"
    trained = ("train", "sample/supervised_masked", f"data.train={world / 'train.jsonl'}", "schedule.epochs=1")
    trained += ("schedule.warmup=0", "data.loader.batch_size=4")
    lists = ROOT / "tests" / "goldens" / "tasks" / "annotations" / "kinetics400"
    lines: list[tuple[object, ...]] = [
        ("sample-world", world, "--clips", 16, "--size", 32, "--workers", 0),
        ("navigation-world", tmp_path / "houses", "--scenes", 2, "--episodes", 1, "--validation", 1),
        ("prepare", "kinetics400", "--annotations", lists, "-o", tmp_path / "prepared"),
        ("pack", world / "train.jsonl", "-o", tmp_path / "packed"),
        (*trained, "--dry-run"),
        (*trained, "-o", out),
        ("evaluate", "recognition", out, world / "train.jsonl", "-o", out, "--device", "cpu"),
        ("score", out / "recognition.npz"),
        ("index", use_world.clips(), "-o", tmp_path / "collection", "-e", use_world.language_folder()),
        ("search", tmp_path / "collection", "a dog"),
        ("search", tmp_path / "collection", "a dog", "--export", tmp_path / "found.csv"),
    ]
    for line in lines:
        code, told, err = run(monkeypatch, capsys, *line, "--json")
        assert code == 0, err
        records = [json.loads(text) for text in told.splitlines()]
        assert records, line
        assert all(isinstance(record, dict) for record in records)
        assert not terminal.results_as_json()


def test_tables_are_named_by_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a.npz\n\nb c.npz\n"))
    assert named_files([Path("first.npz"), "-", "last.npz"]) == ["first.npz", "a.npz", "b c.npz", "last.npz"]


def test_notes_go_where_the_program_sends_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.LOGGER.warning("something is odd\x1b[1m")
    terminal.LOGGER.info("step 1")
    terminal.LOGGER.debug("not told")
    assert capsys.readouterr().err == "something is odd\\u001b[1m\nstep 1\n"
    root = logging.getLogger()
    own = logging.StreamHandler(sys.stderr)
    own.setFormatter(logging.Formatter("mine: %(message)s"))
    monkeypatch.setattr(root, "handlers", [*root.handlers, own])
    terminal.LOGGER.warning("something is odd")
    assert capsys.readouterr().err == "mine: something is odd\n"
    terminal.set_verbosity(quiet=True)
    terminal.LOGGER.warning("something is odd")
    terminal.LOGGER.error("lost")
    assert capsys.readouterr().err == "mine: lost\n"
    terminal.set_verbosity()


WITH_ARGUMENTS = [path for path in sorted(ROOT.glob("examples/*.py")) if "argparse" in path.read_text()]


@pytest.mark.parametrize("example", WITH_ARGUMENTS, ids=lambda path: path.name)
def test_examples_never_end_in_a_traceback(example: Path) -> None:
    text = example.read_text()
    assert "except InternVideoError as error:" in text
    assert "parser.exit(2," in text or "sys.exit(" in text
