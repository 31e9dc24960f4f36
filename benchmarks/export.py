"""Exported graphs against the model they were made from: torch.export, ONNX Runtime, ONNX Runtime with 8-bit weights.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/export.py [--model internvideo-mm-b16 videomae-b-classifier] [--rounds 3]
        [--batch 1] [--threads 1] [--opset N]

Each model is drawn at random, exported, compared with itself (`internvideo.inference.export` does that) and then run in
turns with its exported forms on the same uint8 clips, on the CPU. Medians of wall-clock and CPU seconds. Cosines of
8-bit weights on random models say that nothing is broken; trained weights have their own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from embed import SEED, measure, randomise
from internvideo.inference import onnx_file
from internvideo.inference.export import ExportSettings, Graph, export
from internvideo.inference.loading import load
from train_step import commit


def encoders(
    name: str, folder: Path, opset: int | None, batch: int
) -> tuple[dict[str, Callable[[Tensor], Tensor]], Tensor]:
    """The eager graph and its exported forms, and clips for them; prints what the export found."""
    torch.manual_seed(SEED)
    model = load(name, weights="random", device="cpu")
    randomise(getattr(model.module, "visual", model.module))
    graph = Graph(model, "video").eval()
    found: dict[str, Callable[[Tensor], Tensor]] = {"ours": graph}
    begun = time.perf_counter()
    program = export(model, folder / "model.pt2", ExportSettings(format="torch"))
    middle = time.perf_counter()
    made = export(model, folder / "model.onnx", ExportSettings(opset=opset, int8=True))
    assert made.int8 is not None
    large, small = (path.stat().st_size / 2**20 for path in (made.path, made.int8))
    print(
        f"{name}: torch.export {middle - begun:.0f} s, largest difference {program.worst.relative:.1e}; "
        f"ONNX {time.perf_counter() - middle:.0f} s, {made.worst.relative:.1e}, {large:.0f} MiB; "
        f"int8 smallest cosine {made.cosine:.4f}, {small:.0f} MiB"
    )
    found["torch.export"] = torch.export.load(program.path).module()
    found["ONNX Runtime"] = onnx_file.create_session(made.path)
    found["ONNX Runtime int8"] = onnx_file.create_session(made.int8)
    cut = model.preprocessing
    clips = torch.randint(0, 256, (batch, 3, cut.frames, cut.size, cut.size), dtype=torch.uint8)
    return found, clips.float() if cut.resize_backend == "torch" else clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=["internvideo-mm-b16", "videomae-b-classifier"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--opset", type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    packages = {"torch": torch.__version__, **onnx_file.package_versions()}
    print(", ".join(f"{name} {number}" for name, number in packages.items()))
    print(f"{options.threads} threads, batch {options.batch}, {options.rounds} rounds, commit {commit()}\n")
    for name in options.model:
        with tempfile.TemporaryDirectory() as folder:
            found, clips = encoders(name, Path(folder), options.opset, options.batch)
            times = measure(found, clips, options.rounds, exact=("ours", "torch.export", "ONNX Runtime"))
        print("\n| model | form | wall s | CPU s | embeddings a CPU second | eager's time over it (CPU) | range |")
        print("|---|---|---|---|---|---|---|")
        for form, taken in times.items():
            wall, cpu = (sorted(t[i] for t in taken)[len(taken) // 2] for i in (0, 1))
            ratios = [own[1] / other[1] for own, other in zip(times["ours"], taken, strict=True)]
            middle = sorted(ratios)[len(ratios) // 2]
            cells = (
                name,
                "eager" if form == "ours" else form,
                f"{wall:.3f}",
                f"{cpu:.3f}",
                f"{options.batch / cpu:.3f}",
            )
            print(f"| {' | '.join(cells)} | **{middle:.2f}x** | {min(ratios):.2f} to {max(ratios):.2f} |", flush=True)
        print()


if __name__ == "__main__":
    main()
