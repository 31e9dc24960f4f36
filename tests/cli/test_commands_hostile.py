"""Hand-made hostile files through the commands: one line and exit code 2 (or a good answer), nothing blocks."""

from __future__ import annotations

import gzip
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_apps

from internvideo.cli import main as cli

SECONDS = 60.0
"""Of processor time for a command and all its files."""


def link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def text(content: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode(encoding, "surrogatepass"))


def hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31)


ROW = '{"id": "a", "path": "x.mp4", "label": %s}\n'


def an_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": link("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "an empty file": Path.touch,
    "NUL bytes": lambda path: path.write_bytes(bytes(1000)),
    "a hole of 2 GiB": hole,
    "UTF-16": text(ROW % 1, "utf-16"),
    "a byte order mark alone": text("\ufeff"),
    "a huge integer": text(ROW % ("9" * 5000)),
    "a label of 10^10": text(ROW % 10**10),
    "a negative label": text(ROW % -1),
    "a label that is no whole number": text(ROW % 1.5),
    "a boolean as a label": text(ROW % "true"),
    "NaN": text(ROW % "NaN"),
    "deep nesting": text('{"a":' * 50_000 + "1" + "}" * 50_000),
    "deep lists": text("[" * 100_000),
    "a key twice": text('{"id": "a", "id": "b", "path": "x.mp4"}'),
    "an id twice": text(2 * (ROW % 1)),
    "aliases": text("a: &a [x,x,x,x,x,x,x,x]\n" + "".join(f"b{n}: &{n} [{8 * '*a,'}]\n" for n in range(3000))),
    "control characters": text('{"id": "\\u001b[31m", "path": "\x1b[2J\u202e.mp4", "label": "\x9b\x07"}'),
    "halves of characters": text('{"id": "\\ud800", "path": "\ud800.mp4"}'),
    "gzip": lambda path: path.write_bytes(gzip.compress(bytes(10**7))),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "another file": an_array,
}

COMMANDS: dict[str, tuple[str, ...]] = {
    "a recipe": ("train", "{x}.yaml", "-o", "{out}"),
    "what is trained on": ("train", "sample/masked", "data.train={x}.jsonl", "-o", "{out}", "--device", "cpu"),
    "weights": ("evaluate", "recognition", "{x}.safetensors", "{x}", "-o", "{out}", "--device", "cpu"),
    "what is tested on": ("evaluate", "recognition", "{weights}", "{x}.jsonl", "-o", "{out}", "--device", "cpu"),
    "a list that is tested on": ("evaluate", "recognition", "{weights}", "{x}.txt", "-o", "{out}", "--device", "cpu"),
    "a table": ("score", "{x}.npz"),
    "results": ("score", "{x}.csv", "--truth", "{x}.csv", "--labels", "{x}.csv"),
    "an encoder": ("embed", "{clip}", "-e", "{x}.safetensors", "-o", "{out}.npy", "--device", "cpu"),
    "a folder of a model": ("embed", "{clip}", "-e", "{folder}", "-o", "{out}.npy", "--device", "cpu"),
    "videos": ("embed", "{x}.csv", "-e", "{weights}", "-o", "{out}.npy", "--device", "cpu"),
    "a video": ("classify", "{x}.mp4", "-e", "{weights}", "--device", "cpu"),
    "a classifier": ("classify", "{clip}", "-e", "{weights}", "--model", "{x}.safetensors", "--device", "cpu"),
    "labels": ("classify", "{clip}", "-e", "{weights}", "--labels-file", "{x}.txt", "--device", "cpu"),
    "answers of open-set tests": ("classify", "{clip}", "-e", "{weights}", "--unknown", "{x}.json", "--device", "cpu"),
    "labelled videos": ("fit", "{x}.csv", "-e", "{weights}", "-o", "{out}", "--device", "cpu"),
    "annotations in JSON": ("prepare", "activitynet", "--annotations", "{x}.json", "-o", "{out}"),
    "annotations in CSV": ("prepare", "kinetics400", "--annotations", "{x}.csv", "-o", "{out}"),
    "packed annotations": ("prepare", "r2r_ce", "--annotations", "{x}.json.gz", "-o", "{out}"),
    "tables": ("ensemble", "{x}.npz", "{x}.npz", "-o", "{out}"),
    "a model to mix": ("mix", "{x}.safetensors", "-o", "{out}.safetensors"),
    "a model to export": ("export", "{x}.safetensors", "-o", "{out}.onnx"),
    "key frames": ("persons", "{x}.jsonl", "-d", "{folder}", "-o", "{out}.csv"),
}


@pytest.fixture
def _no_hang() -> Iterator[None]:
    """No command waits or works without end."""

    def too_long(*_: object) -> None:
        raise TimeoutError

    kinds = ((signal.SIGVTALRM, signal.ITIMER_VIRTUAL, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 10 * SECONDS))
    before = {number: signal.signal(number, too_long) for number, _, _ in kinds}
    for _, timer, seconds in kinds:
        signal.setitimer(timer, seconds)
    yield
    for number, timer, _ in kinds:
        signal.setitimer(timer, 0)
        signal.signal(number, before[number])


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What a command that ended with 0 or 2 said, each line within bounds and without control characters."""
    monkeypatch.setattr(sys, "argv", ["internvideo", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code in (0, 2), err
    assert not set("\x00\x07\x1b\x9b\u202e") & set(out + err)
    if ended.value.code == 2:
        last = err.splitlines()[-1]
        assert last.startswith("internvideo: "), err
        assert len(last) <= 520
        assert "Traceback" not in err
    return str(out + err)


def made(tmp_path: Path, how: Callable[[Path], object], command: tuple[str, ...]) -> list[str]:
    """The words of a command, the hostile file at every place where {x} stands."""
    places = {"x": tmp_path / "x", "out": tmp_path / "out", "folder": tmp_path / "folder"}
    for word in command:
        if word.partition("=")[2].startswith("{x}") or word.startswith("{x}"):
            path = Path(str(word.rpartition("=")[2]).format(x=tmp_path / "x"))
            if not os.path.lexists(path):
                how(path)
    if "{folder}" in command:
        places["folder"].mkdir()
        how(places["folder"] / "config.json")
    given: dict[str, Any] = {"weights": "", "clip": "", **places}
    if "{weights}" in command:
        given["weights"] = small_apps.trained("supervised")
    if "{clip}" in command:
        given["clip"] = small_apps.clips(1)[0]
    return [word.format(**given) for word in command]


def check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, kinds: list[str]
) -> None:
    """Some kinds of files at one place of a command."""
    for number, name in enumerate(kinds):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            told(capsys, monkeypatch, *made(folder, FILES[name], COMMANDS[command]))
        except BaseException as error:
            error.add_note(f"{name} as {command}")
            raise


@pytest.mark.usefixtures("_no_hang")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_hostile_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """One kind for each command, another for each."""
    kinds = list(FILES)
    check(tmp_path, capsys, monkeypatch, command, [kinds[list(COMMANDS).index(command) % len(kinds)]])


@pytest.mark.slow
@pytest.mark.usefixtures("_no_hang")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_hostile_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    check(tmp_path, capsys, monkeypatch, command, list(FILES))
