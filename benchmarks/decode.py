"""Clips a second of the package's reader against others, from the file's name to an RGB array in memory.

    python benchmarks/decode.py [--data FOLDER] [--rounds 7] [--clips 12] [--seconds 10]

Two ways of sampling: sparse (8 frames spread over the whole file) and dense (16 frames, every 4th, somewhere inside).
Every reader opens the file for every clip, as a data loader does, with one decoder thread, and returns the frames that
naive full decoding returns (checked once before timing; a reader that returns others is marked). The readers take turns
clip by clip; the table gives medians over rounds. Input is made with `write_video` unless a folder is given.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.video.reader import read_frames, read_video_info
from internvideo.video.writer import write_video

Indices = NDArray[np.int64]
Reader = Callable[[str, Indices], NDArray[np.uint8]]


def ours(path: str, indices: Indices) -> NDArray[np.uint8]:
    return read_frames(path, indices)


def naive(path: str, indices: Indices) -> NDArray[np.uint8]:
    """Decode from the start, convert what is wanted, stop at the last wanted frame."""
    wanted, got = set(indices.tolist()), {}
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for count, picture in enumerate(container.decode(video=0)):
            if count in wanted:
                got[count] = picture.to_ndarray(format="rgb24")
            if len(got) == len(wanted):
                break
    return np.stack([got[index] for index in indices.tolist()])


def others() -> dict[str, Reader]:
    """The other readers that import here."""
    found: dict[str, Reader] = {}
    try:
        import cv2
    except (ImportError, OSError, RuntimeError):
        pass
    else:
        cv2.setNumThreads(1)

        def opencv(path: str, indices: Indices) -> NDArray[np.uint8]:
            capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
            frames = []
            for index in indices.tolist():
                capture.set(cv2.CAP_PROP_POS_FRAMES, index)
                frames.append(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
            capture.release()
            return np.stack(frames)

        found[f"OpenCV {cv2.__version__}"] = opencv
    try:
        import decord
    except (ImportError, OSError, RuntimeError):
        pass
    else:

        def read_decord(path: str, indices: Indices) -> NDArray[np.uint8]:
            return decord.VideoReader(path, num_threads=1).get_batch(indices.tolist()).asnumpy()

        found[f"decord {decord.__version__}"] = read_decord
    try:
        import torchcodec
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        pass
    else:

        def read_torchcodec(path: str, indices: Indices) -> NDArray[np.uint8]:
            decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
            return decoder.get_frames_at(indices.tolist()).data.numpy()

        found[f"torchcodec {torchcodec.__version__}, exact"] = read_torchcodec
    return found


def make_inputs(folder: Path, seconds: float) -> dict[str, list[str]]:
    """Moving noise over a gradient: two sizes, key frames every 12 frames and as x264 places them by itself (250)."""
    groups: dict[str, list[str]] = {}
    rng = np.random.RandomState(0)
    for width, height in ((320, 240), (640, 360)):
        texture = rng.randint(0, 256, (height // 8, width // 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        for gop in (12, 250):
            path = folder / f"{width}x{height}_gop{gop}.mp4"
            shifts = range(int(seconds * 30))
            write_video(path, (np.roll(texture, (i, 2 * i), (0, 1)) for i in shifts), 30, gop=gop, crf=23)
            groups[f"{width}x{height}, key frame every {gop}"] = [str(path)]
    return groups


def draw(kind: str, frames: int, rng: np.random.RandomState) -> Indices:
    if kind == "sparse 8":
        edges = np.linspace(0, frames, 9)
        return np.array([rng.randint(int(a), max(int(a) + 1, int(b))) for a, b in itertools.pairwise(edges)])
    span = min(64, frames)
    return rng.randint(0, frames - span + 1) + np.arange(0, span, 4)


def measure(
    readers: dict[str, Reader], paths: list[str], kind: str, rounds: int, clips: int
) -> tuple[dict[str, float], set[str]]:
    """(seconds a clip, median over rounds, per reader; the readers whose frames differ from naive decoding)."""
    rng = np.random.RandomState(1)
    jobs = []
    for number in range(clips):
        path = paths[number % len(paths)]
        jobs.append((path, draw(kind, read_video_info(path).frames, rng)))
    differ = set()
    for name, reader in readers.items():
        for path, indices in jobs[:3]:
            expected, got = naive(path, indices).astype(int), reader(path, indices).astype(int)
            # Other builds of the scaler round colours differently; a neighbouring frame is much further away.
            if got.shape != expected.shape or np.abs(got - expected).mean() > 3:
                differ.add(name)
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        spent = dict.fromkeys(readers, 0.0)
        for path, indices in jobs:
            for name, reader in readers.items():
                start = time.perf_counter()
                reader(path, indices)
                spent[name] += time.perf_counter() - start
        for name, value in spent.items():
            times[name].append(value / clips)
    return {name: float(np.median(values)) for name, values in times.items()}, differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="a folder of video files instead of generated ones")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=12, help="clips a round")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the generated videos")
    options = parser.parse_args()
    readers: dict[str, Reader] = {"this package": ours, f"naive PyAV {av.__version__}": naive, **others()}
    with tempfile.TemporaryDirectory() as folder:
        if options.data:
            suffixes = {".mp4", ".mkv", ".webm", ".avi", ".mov"}
            found = sorted(str(path) for path in options.data.rglob("*") if path.suffix.lower() in suffixes)
            groups = {str(options.data.name): found[:: max(1, len(found) // options.clips)][: options.clips]}
        else:
            groups = make_inputs(Path(folder), options.seconds)
        print("| input | sampling | reader | clips/s | the package is faster by |\n|---|---|---|---|---|")
        for label, paths in groups.items():
            for kind in ("sparse 8", "dense 16x4"):
                seconds, differ = measure(readers, paths, kind, options.rounds, options.clips)
                for name, value in seconds.items():
                    note = " (other frames!)" if name in differ else ""
                    ratio = value / seconds["this package"]
                    print(f"| {label} | {kind} | {name}{note} | {1 / value:.1f} | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
