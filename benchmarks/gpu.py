"""Speed, memory and equality of training on one device, as JSON, within minutes; `--device cpu --tiny` tries it out.

Measured per size: the masked stage's step in bfloat16, on CUDA with and without compiled layers (clips/s, peak memory,
waits of the host), and its loss on the device against that of the CPU. Then the contrastive loss of
14,336 pairs, whole and in chunks of rows (seconds, bytes kept for the backward pass); embeddings of the encoders
(clips/s in bfloat16 and float32); and augmentation on the device (`data.augment.on_device`): seconds per batch and how
far its pixels are from the CPU's. `pytest -m gpu` compares a step of every stage with the CPU.

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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.decoding.decoded_batch import DecodedBatch, DrawnClip
from internvideo.data.transforms import TrainTransform
from internvideo.distributed import choose_device
from internvideo.inference.video_model import VideoModel
from internvideo.model_table import MODELS, create_model
from internvideo.models.videomae import VideoMAEPretrain
from internvideo.models.videomae_config import VideoMAEConfig
from internvideo.objectives.contrastive import symmetric_contrastive
from internvideo.objectives.reconstruction import reconstruction_loss
from internvideo.pretraining.masked import MaskedSettings, MaskedStage
from internvideo.training.memory import count_activations
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
        mask = stage.sample_mask(2, torch.Generator().manual_seed(0)).to(where)
        video = few.to(where).video
        with torch.no_grad():
            predicted = stage.model(stage.model.normalize(video), mask, config.num_tokens - stage.num_masked)
            losses.append(reconstruction_loss(predicted, stage.targets(video, mask)).item())
    row: dict[str, Any] = {"loss_on_device": losses[0], "loss_on_cpu": losses[1], "batch_size": batch_size}
    batch = clips(config, batch_size).to(device)
    for compile_ in ("none", "blocks") if device.type == "cuda" else ("none",):
        step = stepper(config, device, compile_, "bfloat16")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = timed(partial(step, [batch], 1e-4), device, repeats)
        row[f"clips_per_second_{compile_}"] = round(batch_size / seconds, 2)
        if device.type == "cuda":
            row[f"peak_mib_{compile_}"] = torch.cuda.max_memory_allocated(device) >> 20
        row[f"host_waits_{compile_}"] = host_waits(partial(step, [batch], 1e-4), device)
    return row


def contrastive(device: torch.device, pairs: int) -> dict[str, Any]:
    """The loss of the paper's batch, whole and in chunks."""
    drawn = torch.Generator().manual_seed(0)
    video, text = (torch.randn(pairs, JOINT, generator=drawn).to(device).requires_grad_() for _ in range(2))
    found: dict[str, Any] = {"pairs": pairs}

    def loss(chunk: int | None) -> Tensor:
        return symmetric_contrastive(video, text, 20.0, chunk)

    def gradients(chunk: int | None) -> object:
        return torch.autograd.grad(loss(chunk), (video, text))

    for chunk in (None, 512):
        with count_activations(()) as kept:
            value = loss(chunk)
        seconds = timed(partial(gradients, chunk), device, 1)
        found[f"chunk_{chunk}"] = {
            "loss": value.item(),
            "seconds": round(seconds, 3),
            "kept_mib": kept.peak_bytes >> 20,
        }
    return found


def embedding(name: str, overrides: dict[str, Any], device: torch.device, count: int, repeats: int) -> dict[str, Any]:
    """Clips per second of an encoder, from uint8 clips on the device to vectors on the host."""
    torch.manual_seed(0)
    module = create_model(name, overrides)
    found: dict[str, Any] = {"batch_size": count}
    for precision in ("bfloat16", "float32"):
        model = VideoModel(name, module, device=device, precision=precision)
        size, frames = model.preprocessing.size, model.preprocessing.frames
        video = torch.randint(0, 256, (count, 3, frames, size, size), dtype=torch.uint8).to(device)
        seconds = timed(partial(model.encode_clips, video), device, repeats)
        found[f"clips_per_second_{precision}"] = round(count / seconds, 2)
    return found


def augmentation(device: torch.device, count: int, repeats: int, size: int) -> dict[str, Any]:
    """Fine-tuning's augmentation of `count` clips of 16 frames of 320 x 256 pixels, drawn as the loader draws."""
    transform = TrainTransform(
        size, "random_resized", flip=True, rand_augment="rand-m7-n4-mstd0.5-inc1", erasing=0.25, on_device=True
    )
    rng = np.random.RandomState(0)
    drawn = tuple(DrawnClip((16, 256, 320), (transform.draw(256, 320, rng),)) for _ in range(count))
    coarse = torch.randint(0, 256, (count * 16, 3, 32, 40), generator=torch.Generator().manual_seed(0)).float()
    frames = torch.nn.functional.interpolate(coarse, (256, 320), mode="bilinear").byte().permute(0, 2, 3, 1)
    batch = DecodedBatch(
        pixels=frames.reshape(-1), clips=drawn, transform=transform, padded=None, ids=tuple(map(str, range(count)))
    )
    here = replace(batch, pixels=batch.pixels.to(device))
    seconds = timed(lambda: here.to(device), device, repeats)
    away = (here.to(device).video.cpu().int() - batch.to(torch.device("cpu")).video.int()).abs()
    return {
        "batch_size": count,
        "seconds_per_batch": round(seconds, 4),
        "host_waits": host_waits(lambda: here.to(device), device),
        "share_of_pixels_more_than_2_levels_away": round((away > 2).float().mean().item(), 5),
    }


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
    small: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 2}
    for name, overrides in (
        ("videomae-b-classifier", {**small, "frames": 4} if given.tiny else {}),
        ("uniformerv2-b16", {**small, "frames": 4, "global_layers": [1]} if given.tiny else {}),
        ("uniformerv2-l14", {**small, "frames": 4, "global_layers": [1]} if given.tiny else {}),
    ):
        told[f"embedding_{name}"] = embedding(name, overrides, device, 2 if given.tiny else 32, given.repeats)
    told["augmentation"] = augmentation(device, 2 if given.tiny else 32, given.repeats, 32 if given.tiny else 224)
    given.output.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
