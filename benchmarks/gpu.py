"""Speed, memory and equality of training on one device, as JSON, within minutes; `--device cpu --tiny` tries it out.

Measured per size: the masked stage's step in bfloat16, on CUDA with and without compiled layers (clips/s, peak memory,
waits of the host), and its loss on the device against that of the CPU. Then the contrastive loss of
14,336 pairs, whole and in chunks of rows (seconds, bytes kept for the backward pass).

    python benchmarks/gpu.py -o gpu.json                      # one GPU
    python benchmarks/gpu.py --device cpu --tiny -o cpu.json  # a dry run
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.distributed import choose_device
from internvideo.model_table import MODELS
from internvideo.models.videomae import VideoMAEPretrain
from internvideo.models.videomae_config import VideoMAEConfig
from internvideo.objectives.contrastive import symmetric_contrastive
from internvideo.objectives.reconstruction import reconstruction_loss
from internvideo.pretraining.masked import MaskedSettings, MaskedStage
from internvideo.training.memory import counted_activations
from internvideo.training.settings import TrainingSettings
from internvideo.training.step import TrainStep

PAIRS, JOINT = 14_336, 512
"""Of the paper's multimodal batch (section 4.2.1) and its joint space."""


def timed(act: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds per call, after one call that warms up."""
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / repeats


def clips(config: VideoMAEConfig, count: int) -> Batch:
    """Random pixels."""
    drawn = torch.Generator().manual_seed(0)
    shape = (count, 3, config.frames, config.image_size, config.image_size)
    return Batch(torch.randint(0, 256, shape, generator=drawn, dtype=torch.uint8), tuple(map(str, range(count))))


def stepper(config: VideoMAEConfig, device: torch.device, compile_: str, precision: str) -> TrainStep:
    """The masked stage as the loop trains it."""
    torch.manual_seed(0)
    stage = MaskedStage(VideoMAEPretrain(config), MaskedSettings()).to(device).train()
    settings = TrainingSettings.model_validate(
        {
            "optimizer": {"base_lr": 1e-4},
            "schedule": {"steps": 100},
            "loop": {"precision": precision, "compile": compile_, "max_grad_norm": 1.0},
        }
    )
    return TrainStep(stage, settings, 100, device, torch.Generator(device).manual_seed(0))


def host_waits(act: Callable[[], object], device: torch.device) -> int | None:
    """How often the host waits for the device in one call; None where there is none to wait for."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            act()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def masked(config: VideoMAEConfig, device: torch.device, batch_size: int, repeats: int) -> dict[str, Any]:
    """One size: equality of the first loss, speed with and without compiled layers."""
    few = clips(config, 2)
    losses = []
    for where in (device, torch.device("cpu")):  # masks are drawn on the host, so both see the same
        stage = stepper(config, where, "none", "float32").stage
        assert isinstance(stage, MaskedStage)
        mask = stage.draw_mask(2, torch.Generator().manual_seed(0)).to(where)
        video = few.to(where).video
        with torch.no_grad():
            predicted = stage.model(stage.model.normalize(video), mask, config.tokens - stage.masked)
            losses.append(reconstruction_loss(predicted, stage.targets(video, mask)).item())
    row: dict[str, Any] = {"loss_on_device": losses[0], "loss_on_cpu": losses[1], "batch_size": batch_size}
    batch = clips(config, batch_size).to(device)
    for compile_ in ("none", "blocks") if device.type == "cuda" else ("none",):
        step = stepper(config, device, compile_, "bfloat16")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = timed(lambda step=step: step([batch], 1e-4), device, repeats)
        row[f"clips_per_second_{compile_}"] = round(batch_size / seconds, 2)
        if device.type == "cuda":
            row[f"peak_mib_{compile_}"] = torch.cuda.max_memory_allocated(device) >> 20
        row[f"host_waits_{compile_}"] = host_waits(lambda step=step: step([batch], 1e-4), device)
    return row


def contrastive(device: torch.device, pairs: int) -> dict[str, Any]:
    """The loss of the paper's batch, whole and in chunks."""
    drawn = torch.Generator().manual_seed(0)
    video, text = (torch.randn(pairs, JOINT, generator=drawn).to(device).requires_grad_() for _ in range(2))
    found: dict[str, Any] = {"pairs": pairs}
    for chunk in (None, 512):

        def loss(chunk: int | None = chunk) -> Tensor:
            return symmetric_contrastive(video, text, 20.0, chunk)

        with counted_activations(()) as kept:
            value = loss()
        seconds = timed(lambda loss=loss: torch.autograd.grad(loss(), (video, text)), device, 1)
        found[f"chunk_{chunk}"] = {"loss": value.item(), "seconds": round(seconds, 3), "kept_mib": kept.bytes >> 20}
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--sizes", nargs="+", default=["b", "l", "h"])
    parser.add_argument("--tiny", action="store_true", help="a model and batches for a dry run")
    given = parser.parse_args()
    device = choose_device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    told: dict[str, Any] = {"date": datetime.now(UTC).isoformat(), "device": name, "torch": torch.__version__}
    tiny: dict[str, Any] = {"image_size": 32, "patch_size": 8, "frames": 4, "width": 48, "depth": 2, "heads": 2}
    tiny |= {f"decoder_{name}": value for name, value in {"width": 24, "heads": 2, "depth": 1}.items()}
    for size in given.sizes[:1] if given.tiny else given.sizes:
        config: Any = MODELS[f"videomae-{size}-pretrain"].config
        if given.tiny:
            config = replace(config, **tiny)
        batch_size, repeats = (2, 1) if given.tiny else (given.batch_size, given.repeats)
        told[f"masked_{size}"] = masked(config, device, batch_size, repeats)
        given.output.write_text(json.dumps(told, indent=1) + "\n")  # what is measured is kept, whatever comes
    told["contrastive"] = contrastive(device, 64 if given.tiny else PAIRS)
    given.output.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
