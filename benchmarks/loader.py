"""CPU milliseconds per training clip of the loader, beside another version of the package.

    python benchmarks/loader.py [--against SRC] [--data FOLDER] [--videos 48] [--rounds 3] [--workers 0] [--threads 1]

SRC is the `src` folder of another version (`git worktree add ../old COMMIT` makes one). The versions take turns, each
in a process of its own with one torch thread; the table gives the smallest CPU time of all rounds, workers included,
and clips per second and core. Videos of 192 x 144 pixels are made unless a folder of .mp4 files is given. The recipes
are those of masked pretraining (16 frames, every 4th, multi-scale crop of 224) and of fine-tuning (RandAugment m7-n4,
erasing); "cached" is the second epoch with `cache_megabytes`; "on device" is `data.augment.on_device`: what the loader
still does, without the augmentation, beside the whole work of a version that cannot do that. Batches are compared by
their bytes. `--parts` tells where the time of this version goes: CPU milliseconds per clip of each part, without those
of parts inside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

FINETUNED = {"rand_augment": "rand-m7-n4-mstd0.5-inc1", "erasing": 0.25, "flip": True}
CASES: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "masked": ("multi_scale", {}, {}),
    "masked, repeats 4": ("multi_scale", {}, {"repeated_augmentation": 4}),
    "masked, cached": ("multi_scale", {}, {"cache_megabytes": 4000}),
    "masked, on device": ("multi_scale", {"on_device": True}, {}),
    "masked, repeats 4, on device": ("multi_scale", {"on_device": True}, {"repeated_augmentation": 4}),
    "masked, cached, on device": ("multi_scale", {"on_device": True}, {"cache_megabytes": 4000}),
    "RandAugment": ("random_resized", FINETUNED, {}),
    "RandAugment, repeats 2": ("random_resized", FINETUNED, {"repeated_augmentation": 2}),
    "RandAugment, on device": ("random_resized", {**FINETUNED, "on_device": True}, {}),
    "RandAugment, cached": ("random_resized", FINETUNED, {"cache_megabytes": 4000}),
}


WARM_UP = 16
"""Videos that are read before the measured ones."""


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(folder: Path, case: str, workers: int, threads: int) -> dict[str, object]:
    """CPU ms per clip and a hash of the batches of the version that is imported."""
    from internvideo.data.batch import Batch
    from internvideo.data.loader import Loader, LoaderSettings
    from internvideo.data.manifest import Manifest, Sample
    from internvideo.data.sampling import Dense
    from internvideo.data.transforms import TrainTransform

    torch.set_num_threads(1)
    crop, augment, settings = CASES[case]
    names = sorted(path.name for path in folder.glob("*.mp4"))
    chosen = {"batch_size": 8, "workers": workers, **settings}
    if "repeats" in LoaderSettings.__dataclass_fields__ and "repeated_augmentation" in chosen:  # an older version
        chosen["repeats"] = chosen.pop("repeated_augmentation")
    if threads > 1:
        chosen["threads"] = threads
    augment = {name: value for name, value in augment.items() if name in TrainTransform.__dataclass_fields__}
    transform = TrainTransform(224, crop, **augment)  # type: ignore[arg-type] # one row of CASES

    def loader_of(names: list[str]) -> Loader:
        manifest = Manifest(tuple(Sample(id=name, path=name) for name in names), (), folder, folder)
        return Loader(manifest, Dense(frames=16, stride=4), transform, LoaderSettings(**chosen))  # type: ignore[arg-type] # one row of CASES

    for _ in loader_of(names[:WARM_UP]).epoch(0):  # imports, first use of memory
        pass
    loader = loader_of(names[WARM_UP:])
    if "cached" in case:
        for _ in loader.epoch(0):
            pass
    digest, clips, not_counted, began = hashlib.sha256(), 0, 0.0, cpu_seconds()
    for batch in loader.epoch(1):
        clips += len(batch)
        paused = cpu_seconds()
        video = batch.video if isinstance(batch, Batch) else batch.to(torch.device("cpu")).video
        digest.update(video[:, :, ::8, ::32].numpy().tobytes())
        not_counted += cpu_seconds() - paused
    del loader  # ends the workers, whose time is then known
    return {"ms": (cpu_seconds() - began - not_counted) / clips * 1000, "hash": digest.hexdigest()[:12]}


def parts(folder: Path, case: str) -> dict[str, float]:
    """CPU ms a clip of each part, of this version in one thread; "all" beside them."""
    from internvideo.data import rand_augment, transforms
    from internvideo.video import conversion, index, reader, seek

    spent: dict[str, float] = defaultdict(float)
    inner = [0.0]

    def timed(act: Any, part: str) -> Any:
        def call(*given: object, **named: object) -> object:
            began = time.thread_time()
            inner.append(0.0)
            try:
                return act(*given, **named)
            finally:
                taken = time.thread_time() - began
                spent[part] += taken - inner.pop()
                inner[-1] += taken

        return call

    for owner, name, part in (
        (index, "decode", "libavcodec"),
        (seek, "decode", "libavcodec"),
        (conversion.Converter, "_pixels", "colors (swscale)"),
        (reader.Video, "__init__", "opening, indexing"),
        (transforms, "resize_fast", "resizing"),
        (rand_augment.RandAugment, "apply", "RandAugment"),
        (transforms.TrainTransform, "__call__", "layout, flip, erasing"),
    ):
        setattr(owner, name, timed(getattr(owner, name), part))
    total = measure(folder, case, 0, 1)["ms"]
    clips = len(list(folder.glob("*.mp4")))  # those of the warm-up too
    return {**{part: seconds / clips * 1000 for part, seconds in spent.items()}, "all": float(str(total))}


def make_videos(folder: Path, count: int) -> None:
    from internvideo.video.writer import write_video

    rng = np.random.RandomState(0)
    for number in range(count):
        texture = rng.randint(0, 256, (18, 24, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        shifts = range(int(rng.randint(64, 120)))
        frames = (np.roll(texture, (shift, 2 * shift), (0, 1)) for shift in shifts)
        write_video(folder / f"{number:04d}.mp4", frames, 25, gop=25, crf=23)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", type=Path, help="the src folder of another version")
    parser.add_argument("--data", type=Path, help="a folder of .mp4 files instead of generated ones")
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of this version")
    parser.add_argument("--case", choices=CASES, help="measure one and print JSON")
    parser.add_argument("--only", choices=CASES, nargs="*", default=CASES, help="measure these alone")
    parser.add_argument("--parts", action="store_true", help="where the time of this version goes")
    options = parser.parse_args()
    if options.case and options.parts:
        print(json.dumps(parts(options.data, options.case)))
        return
    if options.case:
        print(json.dumps(measure(options.data, options.case, options.workers, options.threads)))
        return
    versions = {"this": Path(__file__).parents[1] / "src"}
    if options.against:
        versions["other"] = options.against
    with tempfile.TemporaryDirectory() as made:
        folder = options.data or Path(made)
        if not options.data:
            make_videos(folder, options.videos + WARM_UP)
        if options.parts:
            for case in ("masked", "RandAugment"):
                command = [sys.executable, __file__, "--parts", "--case", case, "--data", str(folder)]
                environment = {**os.environ, "PYTHONPATH": str(versions["this"]), "OMP_NUM_THREADS": "1"}
                runs = [subprocess.run(command, env=environment, capture_output=True, check=True).stdout
                        for _ in range(options.rounds)]  # fmt: skip
                best = min(map(json.loads, runs), key=lambda run: run["all"])
                print(f"{case}: " + ", ".join(f"{part} {ms:.1f} ms" for part, ms in best.items()), flush=True)
            return
        print("| recipe | version | CPU ms a clip | clips/s a core | this is faster by | same batches |")
        print("|---|---|---|---|---|---|")
        for case in options.only:
            fastest: dict[str, float] = dict.fromkeys(versions, float("inf"))
            hashes = set()
            for _ in range(options.rounds):
                for name, source in versions.items():
                    threads = options.threads if name == "this" else 1
                    command = [sys.executable, __file__, "--case", case, "--data", str(folder), "--workers",
                               str(options.workers), "--threads", str(threads)]  # fmt: skip
                    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
                    told = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
                    fastest[name] = min(fastest[name], told["ms"])
                    hashes.add(told["hash"])
            for name, value in fastest.items():
                ratio, equal = value / fastest["this"], "yes" if len(hashes) == 1 else "no"
                print(f"| {case} | {name} | {value:.1f} | {1000 / value:.0f} | {ratio:.2f}x | {equal} |", flush=True)


if __name__ == "__main__":
    main()
