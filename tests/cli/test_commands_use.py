"""The commands that use a model, and the examples."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import in_process
import numpy as np
import pytest
import use_world

from internvideo.apps import doctor
from internvideo.cli.caption import caption
from internvideo.cli.compare import compare
from internvideo.cli.embed import embed
from internvideo.cli.options import clock
from internvideo.cli.stream import stream
from internvideo.data.preprocessing import Span
from internvideo.errors import RecipeError, RunError, VideoError

ROOT = Path(__file__).parents[2]
LABELS = ["a dog", "a cat", "a red circle"]


@pytest.fixture(scope="module")
def language() -> Path:
    return use_world.language_folder()


@pytest.fixture(scope="module")
def clips() -> Path:
    return use_world.clips()


def test_embed(tmp_path: Path, language: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    windowed = ("--window-seconds", "1", "--stride-seconds", "0.5")
    words = ("embed", clips, "-o", "out.npy", "-e", language, *windowed, "--device", "cpu")
    done = in_process.command(*words, "--workers", "1", cwd=tmp_path)
    assert done.code == 0, done.err
    first, read, speed = done.out.splitlines()
    assert first == "out.npy: 20 vectors of dimension 24 from 4 videos"
    assert read == "read: 4 of 4 videos"
    assert speed.startswith("speed: 12.0 s of video in ")
    assert speed.endswith("x real time")
    vectors = np.load(tmp_path / "out.npy")
    expected = use_world.language().encode_video(Span(clips / "0.mp4", 0, 1))[0].numpy()
    np.testing.assert_allclose(vectors[0], expected, atol=1e-5)
    (tmp_path / "broken.mp4").write_bytes(b"garbage")
    inputs, output = [clips, tmp_path / "broken.mp4"], tmp_path / "out.npy"
    capsys.readouterr()
    embed(inputs, output, str(language), window_seconds=1.0, stride_seconds=0.5)
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: 20 vectors of dimension 24 from 4 videos, 4 of them resumed",
        f"read: 4 of 5 videos; see {tmp_path / 'out.skipped.jsonl'}",
    ]
    assert json.loads((tmp_path / "out.skipped.jsonl").read_text())["path"] == str(tmp_path / "broken.mp4")
    with pytest.raises(RunError, match="begun with another window"):
        embed(inputs, output, str(language), window_seconds=2.0)


def test_embed_plans_without_a_model(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embed([clips], tmp_path / "a.npy", "no such model", dry_run=True)
    *files, counts = capsys.readouterr().out.splitlines()
    assert files == [f"read: {clips / f'{n}.mp4'}" for n in range(4)]
    assert counts == "4 to read, 0 done before, 0 absent"
    assert list(tmp_path.iterdir()) == []


def test_embed_with_nothing_readable(tmp_path: Path, language: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"garbage")
    done = in_process.command("embed", "broken.mp4", "-o", "out.npy", "-e", language, cwd=tmp_path)
    assert "broken.mp4: not a readable video" in done.mistake()
    assert not (tmp_path / "out.npy").exists()


def test_classify(language: Path, clips: Path) -> None:
    words = ("classify", clips / "0.mp4", clips / "1.mp4", "-e", language, "--labels", ", ".join(LABELS))
    done = in_process.command(*words, "--json")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    expected = use_world.language().classify([clips / "0.mp4", clips / "1.mp4"], LABELS)
    for row, answer in zip(rows, expected, strict=True):
        assert list(row["labels"]) == list(answer)
        assert row["labels"] == pytest.approx(answer, abs=1e-6)
        assert (row["start"], row["end"]) == (0, pytest.approx(3))


def test_classify_in_words(tmp_path: Path, language: Path, clips: Path) -> None:
    (tmp_path / "labels.txt").write_text("a dog\n\n a cat \n", encoding="utf-8")
    (tmp_path / "broken.mp4").write_bytes(b"garbage")
    files = [clips / "0.mp4", tmp_path / "broken.mp4", clips / "1.mp4"]
    options = ("--labels-file", tmp_path / "labels.txt", "--window-seconds", 2, "--top", 1)
    told = in_process.command("classify", *files, "-e", language, *options)
    assert told.code == 2
    lines = told.out.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith(f"{clips / '0.mp4'} 0:00:02.0-0:00:03.0: a ")
    broken, counted = told.err.splitlines()
    assert "not a readable video" in broken
    assert "videos: 1 of 3 could not be read" in counted
    told = in_process.command("classify", clips / "0.mp4", "-e", use_world.classifier_folder())
    assert "moving left to right 0." in told.out


def test_classify_into_a_file_resumes(tmp_path: Path, language: Path, clips: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"garbage")
    files, options = [clips / "0.mp4", tmp_path / "broken.mp4", clips / "1.mp4"], ("--window-seconds", 2, "--json")
    words = ("classify", *files, "-e", language, *options, "--labels")
    output = ("-o", tmp_path / "found.jsonl")
    printed = in_process.command(*words, "a dog,a cat").out.splitlines()
    first = in_process.command(*words, "a dog,a cat", *output)
    assert (first.code, json.loads(first.out)["resumed"]) == (0, 0)
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for row, line in zip(rows, printed, strict=True):
        expected = json.loads(line)
        assert row.pop("labels") == pytest.approx(expected.pop("labels"), abs=1e-6)
        assert row == expected
    assert json.loads((tmp_path / "found.skipped.jsonl").read_text())["path"] == str(tmp_path / "broken.mp4")
    second = json.loads(in_process.command(*words, "a dog,a cat", *output).out)
    assert (second["resumed"], second["rows"]) == (2, 4)
    assert "another values" in in_process.command(*words, "a dog,a bird", *output).mistake()
    assert in_process.command(*words, "a dog,a bird", *output, "--overwrite").code == 0
    assert "a bird" in (tmp_path / "found.jsonl").read_text()
    assert "--output" in in_process.command(*words, "a dog,a bird", "--overwrite").mistake()


def test_folders_inside_folders(
    tmp_path: Path, language: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "deep" / "deeper" / "0.mp4").symlink_to(clips / "0.mp4")
    words = ("classify", tmp_path / "deep", "-e", language, "--labels", "a, b")
    assert "add --recursive" in in_process.command(*words).mistake()
    told = in_process.command(*words, "--recursive")
    assert told.out.count(f"{tmp_path / 'deep' / 'deeper' / '0.mp4'}: ") == 1
    caption([tmp_path / "deep"], str(language), max_length=4, recursive=True)
    assert capsys.readouterr().out.count(f"{tmp_path / 'deep' / 'deeper' / '0.mp4'}: ") == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--labels a,b --labels-file x", "together with --labels"),
        ("--labels a,a", "'a' twice"),
        ("--labels a", "a list of at least 2 texts"),
        ("", "labels"),
        ("--labels-file absent.txt", "cannot be read"),
        ("--model absent.safetensors", "no such file"),
        ("--labels a,b --window-seconds 0", "more than 0 seconds"),
    ],
)
def test_what_classify_refuses(language: Path, clips: Path, options: str, told: str) -> None:
    refused = in_process.command("classify", clips / "0.mp4", "-e", language, *options.split())
    assert told in refused.mistake()


def test_caption(language: Path, clips: Path) -> None:
    words = ("caption", clips / "0.mp4", "-e", language, "--num-beams", "2", "--max-length", "6", "--json")
    done = in_process.command(*words, "--window-seconds", "2")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    pieces = [Span(clips / "0.mp4", row["start"], row["end"]) for row in rows]
    assert [(piece.start, piece.end) for piece in pieces] == [(0, 2), (2, pytest.approx(3))]
    expected = use_world.language().caption(pieces, num_beams=2, max_length=6)
    assert [row["caption"] for row in rows] == expected
    with pytest.raises(RecipeError, match="caption decoder"):
        caption([clips / "0.mp4"], str(use_world.classifier_folder()))


def test_caption_in_words(language: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caption([clips / "0.mp4"], str(language), max_length=5)
    (expected,) = use_world.language().caption(clips / "0.mp4", num_beams=4, max_length=5)
    assert capsys.readouterr().out == f"{clips / '0.mp4'}: {expected}\n"


def test_compare(language: Path, clips: Path) -> None:
    done = in_process.command("compare", clips / "0.mp4", clips / "1.mp4", "-e", language)
    assert done.code == 0, done.err
    one, other = use_world.language().encode_video([clips / "0.mp4", clips / "1.mp4"])
    assert done.out.startswith(f"cosine of video and video: {float(one @ other):.4f} (")
    assert done.out.count("\n") == 1
    with pytest.raises(VideoError, match="a dog: no such file; for texts add --text"):
        compare(str(clips / "0.mp4"), "a dog", str(language))


def test_compare_with_texts(language: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first, second in ((str(clips / "0.mp4"), "a dog"), ("a dog", str(clips / "0.mp4"))):
        compare(first, second, str(language), text=True)
        assert "compare several texts" in capsys.readouterr().out
    told = json.loads(in_process.command("compare", "a dog", "a dog", "-e", language, "--text", "--json").out)
    assert told["kinds"] == ["text", "text"]
    assert told["cosine"] == pytest.approx(1, abs=1e-5)
    compare(str(clips / "0.mp4"), "a dog " * 60, str(language), text=True)  # longer than a file's name can be
    assert capsys.readouterr().out.startswith("cosine of video and text")
    with pytest.raises(VideoError, match="is a folder; expected: two video files"):
        compare(str(clips), str(clips), str(language))
    with pytest.raises(RecipeError, match="cannot read texts"):
        compare("a dog", "a cat", str(use_world.classifier_folder()), text=True)


def test_stream(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = use_world.piped()
    words = ("-e", language, "--labels", ", ".join(LABELS), "--window-seconds", "1", "--stride-seconds", "0.5")
    with source.open("rb") as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        done = in_process.command("stream", "-", *words, "--json")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["start"], round(row["end"], 1)) for row in rows] == [(k / 2, k / 2 + 1) for k in range(5)]
    expected = use_world.language().classify(Span(source, 0, 1), LABELS)[0]
    assert rows[0]["labels"] == pytest.approx(expected, abs=1e-6)
    assert all(row["latency"] > 0 for row in rows)
    assert done.err.startswith("5 windows, latency p50 ")
    assert done.err.rstrip().endswith(" ms; 0 dropped")
    with pytest.raises(VideoError, match="only local sources"):
        stream("rtsp://127.0.0.1/x", str(language))


def test_stream_in_words(language: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = str(clips / "0.mp4")
    stream(video, str(language), window_seconds=1.0, seconds=2.0)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("0:00:00.0-0:00:01.0: embedding of 24 numbers")
    assert "cosine to the window before 0." in second
    told = in_process.command("stream", video, "-e", language, "--window-seconds", 1, "--json")
    assert len(json.loads(told.out.splitlines()[0])["embedding"]) == 24
    stream(video, str(use_world.classifier_folder()), live=True, window_seconds=1.0)
    assert "moving left to right 0." in capsys.readouterr().out
    with pytest.raises(RecipeError, match="labels"):
        stream(video, str(language), labels=" , ")
    with pytest.raises(RecipeError, match="--top: given for a model without classes"):
        stream(video, str(language), top=2)
    with pytest.raises(RecipeError, match=r"--reconnect: given for .* which ends"):
        stream(video, str(language), reconnect=3.0)


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"parquet": doctor.EXTRAS["parquet"]})  # tests/apps/test_doctor.py: all
    done = in_process.command("doctor", "--seconds", "0", "--json")
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in map(json.loads, done.out.splitlines())}
    assert rows["reading, every frame"]["state"] in ("ok", "advice")
    assert {"device", "threads", "decoder", "parquet"} <= rows.keys()


def test_times_for_people() -> None:
    assert clock(0, 3661.25) == "0:00:00.0-1:01:01.2"
    assert clock(-0.2, 59.96) == "-0:00:00.2-0:01:00.0"


# ---------------------------------------------------------------------------------------------------------- examples


class Example:
    """Runs an example in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, name: str, *words: object) -> str:
        """What it printed."""
        self.monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        self.capsys.readouterr()
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return self.capsys.readouterr().out

    def mistake(self, name: str, *words: object) -> str:
        """The one line with which it ends."""
        with pytest.raises(SystemExit) as ended:
            self(name, *words)
        assert ended.value.code == 2
        told = self.capsys.readouterr().err
        assert told.count("\n") == 1
        return told


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    return Example(monkeypatch, capsys)


def test_examples_embed_and_search(tmp_path: Path, language: Path, clips: Path, example: Example) -> None:
    done = example("embed_folder.py", language, clips, tmp_path / "v.npy", "--window-seconds", "1")
    assert done == f"12 vectors of 4 videos in {tmp_path / 'v.npy'}\n"
    found = example("search_text.py", language, tmp_path / "v.npy", "a red circle", "--top", "3").splitlines()
    cosines = np.load(tmp_path / "v.npy") @ use_world.language().encode_text("a red circle")[0].numpy()
    assert [float(line.split()[0]) for line in found] == [
        pytest.approx(cosine, abs=6e-4) for cosine in sorted(cosines, reverse=True)[:3]
    ]
    told = example.mistake("search_text.py", use_world.classifier_folder(), tmp_path / "v.npy", "x")
    assert "with other weights" in told


def test_example_classifies_without_training(language: Path, clips: Path, example: Example) -> None:
    files = [clips / "0.mp4", clips / "1.mp4"]
    done = example("classify_zero_shot.py", language, "a dog, a cat", *files).splitlines()
    best = [next(iter(row)) for row in use_world.language().classify(files, LABELS[:2])]
    assert [line.split(": ")[1].split(", ")[0][:-5] for line in done] == best
    assert "absent.mp4" in example.mistake("classify_zero_shot.py", language, "a dog, a cat", "absent.mp4")


def test_example_describes_and_compares(language: Path, clips: Path, example: Example) -> None:
    said, alike = example("describe_and_compare.py", language, clips / "0.mp4", clips / "0.mp4").splitlines()
    assert said == f"{clips / '0.mp4'}: {use_world.language().caption(clips / '0.mp4')[0]}"
    assert alike == "cosine 1.000"


def test_example_follows_a_source(language: Path, clips: Path, example: Example) -> None:
    words = (language, clips / "0.mp4", "a dog, a cat", "--window-seconds", "1", "--stride-seconds", "0.5")
    assert "latency p50 " in example("stream_camera.py", *words).splitlines()[-1]
    assert "absent.mp4" in example.mistake("stream_camera.py", language, "absent.mp4", "a dog, a cat")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    assert len([line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]) <= 60
