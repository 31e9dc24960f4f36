"""Features of a film: `extract` against a plain loop over PyAV's pictures, with the same model, in turns.

    OMP_NUM_THREADS=1 python benchmarks/extract.py [--seconds 360] [--size 64] [--backend pil] [--readers 1]

The plain loop decodes every picture, makes it RGB, resizes the windows with the model's own preprocessing and encodes
them one by one. Both must give the same features. Windows of 16 frames lie side by side; CPU seconds and wall-clock
time, medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from internvideo.data.preprocessing import Preprocessing
from internvideo.features import extract as home
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import find_items
from internvideo.features.window_sampling import WindowRule
from internvideo.inference.video_model import VideoModel
from internvideo.model_table import create_model
from internvideo.video.writer import write_video

WINDOW = 16


def make_film(path: Path, seconds: int) -> None:
    rng = np.random.RandomState(0)
    texture = rng.randint(0, 256, (45, 80, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    write_video(path, (np.roll(texture, (i, 2 * i), (0, 1)) for i in range(30 * seconds)), 30, gop=250, crf=23)


def plain(path: Path, model: VideoModel) -> np.ndarray:  # type: ignore[type-arg]  # float32 (N, C)
    rows, frames = [], []
    with av.open(str(path)) as container:
        for picture in container.decode(video=0):
            frames.append(picture.to_ndarray(format="rgb24"))
            if len(frames) == WINDOW:
                rows.append(model.encode_clips(model.preprocessing.transform_frames(np.stack(frames))[None]).numpy())
                frames = []
    return np.concatenate(rows)


def ours(path: Path, model: VideoModel) -> np.ndarray:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as folder:
        settings = ExtractSettings(WindowRule(WINDOW, WINDOW))
        extract(find_items([path])[0], model, Path(folder) / "out", settings, progress=False)
        rows: np.ndarray = np.load(Path(folder) / "out" / f"{path.stem}.npy")  # type: ignore[type-arg]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=360)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="pixels of the model's square")
    parser.add_argument("--backend", default="pil", help="how it resizes (data.resize.ResizeBackend)")
    parser.add_argument("--readers", type=int, default=1, help="threads that read the film")
    options = parser.parse_args()
    home.default_readers = lambda device: options.readers
    sizes = {"image_size": options.size, "patch_size": 16, "frames": 16, "width": 64, "depth": 2, "heads": 4}
    module = create_model("videomae-s-classifier", {**sizes, "num_classes": 8})
    clips = Preprocessing(16, options.size, sampler="linspace", resize_backend=options.backend)
    model = VideoModel("videomae-s-classifier", module, preprocessing=clips)
    spent: dict[str, list[tuple[float, float]]] = {"plain loop": [], "extract": []}
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        make_film(film, options.seconds)
        for turn in range(options.rounds):
            found = {}
            for name in sorted(spent, reverse=bool(turn % 2)):
                cpu, wall = time.process_time(), time.perf_counter()
                found[name] = (plain if name == "plain loop" else ours)(film, model)
                spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
            np.testing.assert_allclose(found["extract"], found["plain loop"], atol=1e-4)
    print("| | CPU s | wall s |\n|---|---|---|")
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in spent.items()}
    for name, (cpu, wall) in medians.items():
        print(f"| {name} | {cpu:.2f} | {wall:.2f} |")
    ratios = [a / b for a, b in zip(medians["extract"], medians["plain loop"], strict=True)]
    print(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
