"""Read many damaged videos in a process of its own, and report as JSON; `test_video_fuzz.py` starts it.

    python fuzz_reader.py variants SEEDS WORK FIRST COUNT     damaged copies number FIRST, FIRST + 1 ... of the files in
                                                              SEEDS, one after another at the same place in WORK
    python fuzz_reader.py opens SEEDS WORK FIRST COUNT        the whole files, COUNT times

A variant depends on its number alone: one that fails is made again with its number and COUNT 1, and stays in WORK.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import time
from pathlib import Path

import numpy as np

from internvideo.errors import VideoError
from internvideo.video.live import LiveVideo
from internvideo.video.reader import Video
from internvideo.video.sequential import iter_frames

SECONDS = 5.0
"""A file that takes longer is a hang: the process ends by SIGALRM."""
MEMORY = 3 * 2**30
HANDLES = 64

EDGE = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def variant(files: list[Path], number: int) -> tuple[str, bytes]:
    """(ending, content) of damaged copy `number`."""
    rng = np.random.RandomState(number)
    path = files[number % len(files)]
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 4])):
        damage(data, files, rng)
    return path.suffix, bytes(data)


def damage(data: bytearray, files: list[Path], rng: np.random.RandomState) -> None:
    """One more thing that is wrong, in place."""
    size = len(data)
    if size < 16:
        return
    # Half of the time where headers are: at the beginning or at the end.
    regions = [(0, size), (0, size), (0, min(size, 1500)), (max(0, size - 2000), size)]
    low, high = regions[rng.randint(4)]
    at = int(rng.randint(low, max(low + 1, high - 8)))
    length = int(min(size - at, rng.choice([1, 4, 16, 100, 1000])))
    kind = rng.randint(10)
    if kind <= 1:  # bits
        for place in rng.randint(low, high, rng.choice([1, 3, 10, 50])):
            data[place] ^= 1 << rng.randint(8)
    elif kind <= 3:  # a number at the edge of what its field can hold
        form = rng.choice([">I", "<I", ">H", "B", ">Q"])
        width = struct.calcsize(form)
        value = int(EDGE[rng.randint(len(EDGE))]) % (1 << 8 * width)
        data[at : at + width] = struct.pack(form, value)
    elif kind == 4:
        data[at : at + length] = rng.bytes(length)
    elif kind == 5:
        data[at : at + length] = bytes(length)
    elif kind == 6:  # cut off
        del data[int(rng.randint(1, size)) :]
    elif kind == 7:  # a piece is missing
        del data[at : at + length]
    elif kind == 8:  # a piece comes twice, somewhere
        data[at:at] = data[int(rng.randint(size)) :][:length]
    else:  # a piece of another file
        other = files[rng.randint(len(files))].read_bytes()
        data[at : at + length] = other[int(rng.randint(len(other))) :][:length]


def read(path: Path, number: int) -> int:
    """Frames that could be had. Raises VideoError; anything else is a fault of the reader."""
    if number % 8 == 7:
        with LiveVideo(path) as live:
            return sum(len(live.rgb(frame.frame)) > 0 for frame in live)
    with Video(path, budget=SECONDS, backend="pyav") as video:
        info = video.info
        times = info.times
        assert info.frames == len(times) > 0
        assert np.isfinite(times).all()
        assert (np.diff(times) >= 0).all()
        assert np.isfinite([info.fps, info.duration]).all()
        assert info.duration >= 0
        wanted = sorted({0, info.frames // 2, info.frames - 1})
        if number % 8 == 3:
            return sum(frame.shape == (info.height, info.width, 3) for frame in iter_frames(video, wanted))
        assert video.frames(wanted).shape == (len(wanted), info.height, info.width, 3)
        video.frames_at([0.0, info.duration])
        return info.frames


def resident() -> int:
    """Memory of this process, KiB."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def main(mode: str, seeds: Path, work: Path, first: int, count: int) -> dict[str, object]:
    """Read, and tell what came out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (HANDLES, HANDLES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = sorted(seeds.iterdir())
    problems: list[str] = []
    memory: list[int] = []
    given = refused = frames = 0
    slowest = (0.0, -1)
    handles = len(os.listdir("/proc/self/fd"))
    for number in range(first, first + count):
        path = files[number % len(files)]
        if mode == "variants":
            ending, content = variant(files, number)
            path = work / f"variant{ending}"
            path.write_bytes(content)
        (work / "number").write_text(str(number))
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            frames += read(path, number)
            given += 1
        except VideoError as error:
            refused += 1
            if "\n" in str(error):
                problems.append(f"{number}: more than one line: {error!r}")
        except Exception as error:  # what the search is for
            problems.append(f"{number}: {error!r}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, (time.perf_counter() - began, number))
        if len(os.listdir("/proc/self/fd")) != handles:
            problems.append(f"{number}: a file stays open")
            handles = len(os.listdir("/proc/self/fd"))
        memory.append(resident())
    return {
        "given": given,
        "refused": refused,
        "frames": frames,
        "slowest": slowest,
        "problems": problems,
        "memory": memory,
        "cpu": time.process_time(),
    }


if __name__ == "__main__":
    _, mode, seeds, work, first, count = sys.argv
    print(json.dumps(main(mode, Path(seeds), Path(work), int(first), int(count))))
