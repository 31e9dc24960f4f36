"""What many processes and large batches cost, on CPUs: one measurement for each word.

    python benchmarks/scale.py first        # CPU s of `import internvideo; load; first embedding` of a tiny model
    python benchmarks/scale.py contrastive  # the contrastive loss of 14,336 pairs: seconds, counted memory
    python benchmarks/scale.py checkpoint   # how long training stands still for a checkpoint
    python benchmarks/scale.py processes    # CPU s of an optimizer step of 1, 2 and 3 processes

Counted memory is that of the tensors kept for the backward pass (`training/memory.py`), the same on every machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = """
import resource, sys
import internvideo
model = internvideo.load(sys.argv[1], device="cpu")
model.encode_video(sys.argv[2])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""
NAME = "videomae-s-pretrain"
TINY = {"width": 64, "depth": 2, "heads": 2, "image_size": 64, "frames": 8}
GLOBAL_BATCH = 12
STEPS = 4


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "src")}


def first(rounds: int = 5) -> None:
    """The smallest of some processes of one torch thread."""
    import numpy as np

    from internvideo.data.preprocessing import Preprocessing
    from internvideo.inference.create import create_model
    from internvideo.inference.video_model import VideoModel
    from internvideo.video.writer import write_video

    with tempfile.TemporaryDirectory() as made:
        folder, video = Path(made) / "model", Path(made) / "clip.mp4"
        module = create_model(NAME, TINY)
        VideoModel(NAME, module, preprocessing=Preprocessing(8, 64)).save_pretrained(folder)
        write_video(video, np.random.default_rng(0).integers(0, 256, (32, 96, 128, 3), np.uint8), 25)
        command = [sys.executable, "-c", CHILD, str(folder), str(video)]
        runs = [subprocess.run(command, env=environment(), capture_output=True, check=True) for _ in range(rounds)]
    print(f"first embedding: {min(float(run.stdout) for run in runs):.2f} CPU s")


def contrastive(pairs: int = 14_336, dim: int = 512) -> None:
    """Forward and backward of one process that holds all pairs, as `torch` has it and in chunks of rows."""
    import torch

    from internvideo.objectives.contrastive import symmetric_contrastive
    from internvideo.training.memory import GIB, count_activations

    torch.manual_seed(0)
    features = [torch.randn(pairs, dim, requires_grad=True) for _ in range(2)]
    print("| similarities held | CPU s | kept for the backward pass | loss |\n|---|---|---|---|")
    for chunk in (None, 1024, 256):
        for feature in features:
            feature.grad = None
        began = time.process_time()
        with count_activations(features) as kept:
            loss = symmetric_contrastive(features[0], features[1], 1 / 0.07, chunk)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        cpu = time.process_time() - began
        rows = "all rows" if chunk is None else f"{chunk} rows"
        print(f"| {rows} | {cpu:.1f} | {kept.peak_bytes / GIB:.2f} GiB | {loss.item():.6f} |", flush=True)


def checkpoint(mebibytes: int = 1024) -> None:
    """One process: `sharded_checkpoint.Writer` until it returns, and until the files are there."""
    import torch
    import torch.distributed as dist

    from internvideo.storage import write_safetensors
    from internvideo.training.sharded_checkpoint import Writer

    tensors = {f"layer.{number}": torch.randn(2**20, 4) for number in range(mebibytes // 16)}
    with tempfile.TemporaryDirectory() as made:
        dist.init_process_group("gloo", init_method=f"file://{made}/group", rank=0, world_size=1)
        writer = Writer()
        for name in ("warm-up", "async"):
            began = time.perf_counter()
            writer.write(Path(made) / name, tensors, {"step": 0}, lambda: None)
            stall = time.perf_counter() - began
            writer.finish()
            whole = time.perf_counter() - began
        began = time.perf_counter()
        write_safetensors(Path(made) / "one.safetensors", tensors, {})
        one = time.perf_counter() - began
        dist.destroy_process_group()
    print(f"{mebibytes} MiB: training stands still for {stall:.2f} s of {whole:.2f} s; one file at once: {one:.2f} s")


def processes() -> None:
    """DDP steps of the same global batch; CPU seconds of all processes together."""
    print("| processes | CPU s a step | over one process | loss |\n|---|---|---|---|")
    alone = 0.0
    for count in (1, 2, 3):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        done = subprocess.run([*command, __file__, "worker"], env=environment(), capture_output=True, check=True)
        cpu, loss = map(float, done.stdout.split())
        alone = alone or cpu
        print(f"| {count} | {cpu:.2f} | {cpu / alone:.2f}x | {loss:.6f} |", flush=True)


def worker() -> None:
    """A process of `processes`: a small masked model, its part of the batch."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from internvideo import distributed
    from internvideo.data.batch import Batch
    from internvideo.inference.create import create_model
    from internvideo.pretraining.masked import MaskedSettings, MaskedStage

    torch.manual_seed(0)
    with distributed.process_group(torch.device("cpu")):
        model = create_model(NAME, {"image_size": 112, "depth": 6})
        stage = MaskedStage(model, MaskedSettings(ratio=0.9))  # type: ignore[arg-type]  # of this name
        step = DistributedDataParallel(stage)
        optimizer = torch.optim.SGD(stage.parameters(), 0.01)
        shape = (GLOBAL_BATCH, 3, 16, 112, 112)
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        own = clips.chunk(distributed.world_size())[distributed.rank()]
        for number in range(STEPS + 1):
            if number == 1:  # the first is not counted
                began = time.process_time()
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(number)
            loss = step(Batch(own, ("x",) * len(own)), generator)["loss"]
            loss.backward()
            optimizer.step()
        cpu = distributed.sum_over_processes(time.process_time() - began) / STEPS
        mean = distributed.sum_over_processes(loss.item()) / distributed.world_size()
        if distributed.rank() == 0:
            print(cpu, mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words = {act.__name__: act for act in (first, contrastive, checkpoint, processes, worker)}
    parser.add_argument("word", choices=words)
    words[parser.parse_args().word]()


if __name__ == "__main__":
    main()
