"""Damaged files of many kinds: no crash, no hang, no open file, no growing memory; each is read or refused.

The reading happens in another process (`fuzz_reader.py`), with limits of memory, files and time.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import fuzz_reader
import pytest
from odd_kinds import GOOD

from internvideo.video.reader import read_frames

SEEDS = (
    "plain.mp4", "fragments.mp4", "edit_list.mp4", "open_gop.mkv", "with_sound.mkv", "hdr.mp4", "hevc.ts", "av1.mp4",
    "vp9.webm", "vp8.ogv", "mpeg4.avi", "mjpeg.avi", "flash.flv", "interlaced.mpg", "windows.wmv", "animation.gif",
    "animation.apng", "prores.mov", "quicktime.mov", "latin_title.mp4",
)  # fmt: skip


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole files, small."""
    folder = tmp_path_factory.mktemp("seeds")
    kinds = {odd.name: odd for odd in GOOD}
    for name in SEEDS:
        kinds[name].make(folder / name)
    (folder / "source.mp4").unlink(missing_ok=True)
    assert len(list(folder.iterdir())) == len(SEEDS)
    return folder


def search(mode: str, seeds: Path, work: Path, first: int, count: int) -> dict[str, Any]:
    """Run the search; a crash or a hang fails with the number of the file."""
    program = [sys.executable, fuzz_reader.__file__, mode, str(seeds), str(work), str(first), str(count)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        number = (work / "number").read_text() if (work / "number").exists() else "none"
        why = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
        raise AssertionError(f"{why} at number {number}: {' '.join(program)}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["problems"] == []
    return found


def judge(found: dict[str, Any], count: int) -> None:
    assert found["given"] + found["refused"] == count
    assert found["given"] > count // 10
    assert found["refused"] > count // 10
    assert found["frames"] > count
    assert found["slowest"][0] < fuzz_reader.SECONDS


def test_two_hundred_damaged_files(seeds: Path, tmp_path: Path) -> None:
    judge(search("variants", seeds, tmp_path, 0, 200), 200)


@pytest.mark.slow
def test_two_thousand_damaged_files(seeds: Path, tmp_path: Path) -> None:
    judge(search("variants", seeds, tmp_path, 1000, 2000), 2000)


def flat(memory: list[int]) -> None:
    """The second half takes no more than the first half did, but for what one picture takes."""
    half = len(memory) // 2
    assert max(memory[half:]) - max(memory[:half]) < 4 * 1024, f"KiB: {memory[:: len(memory) // 20]}"


def test_memory_is_flat_over_two_hundred_opens(seeds: Path, tmp_path: Path) -> None:
    found = search("opens", seeds, tmp_path, 0, 200)
    assert (found["given"], found["refused"]) == (200, 0)
    flat(found["memory"])


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_opens(seeds: Path, tmp_path: Path) -> None:
    found = search("opens", seeds, tmp_path, 0, 2000)
    assert (found["given"], found["refused"]) == (2000, 0)
    flat(found["memory"])


def test_no_picture_outlives_its_video(seeds: Path) -> None:
    """Not even until the garbage collector comes: of large videos these would be gigabytes."""
    gc.collect()
    gc.disable()
    gc.freeze()  # leaves what other tests made out of the search
    try:
        for path in sorted(seeds.iterdir()):
            read_frames(path, [1])
            left = [item for item in gc.get_objects() if type(item) is av.VideoFrame and item.width > 16]
            assert left == [], path.name
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_hang_and_a_crash_are_told(seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search itself: a process that ends by a signal is a failure that names the file."""
    program = tmp_path / "program.py"
    program.write_text("import os, signal, pathlib, sys\npathlib.Path(sys.argv[3], 'number').write_text('7')\n"
                       "os.kill(os.getpid(), signal.SIGALRM)\n")  # fmt: skip
    monkeypatch.setattr(fuzz_reader, "__file__", os.fspath(program))
    with pytest.raises(AssertionError, match="SIGALRM at number 7"):
        search("variants", seeds, tmp_path, 0, 1)
