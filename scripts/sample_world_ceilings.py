"""Measure what pixels of the sample world tell without any pretraining: the ceilings of docs/sample_world.md.

python scripts/sample_world_ceilings.py WORLD -o ceilings.json

For every fact of a clip: chance, a ridge on gray pixels, a small convolutional network that sees single frames of 32 px
(the mean of four), and the same network that sees eight frames at once. Beside them, how often a retrieval that knows
all facts finds the clip of a caption. About six minutes of a core.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.sampling import linspace_frames
from internvideo.metrics import bootstrap
from internvideo.probing.pixel_ridge import pixel_ridge
from internvideo.video.reader import Video

FACTS = ("place", "colour", "shape", "texture", "size", "action", "speed")
SIDE, FRAMES, EPOCHS, BATCH = 32, 8, 15, 64


def main() -> None:
    """Write and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("world", type=Path, help="folder that internvideo sample-world or the demo wrote")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    train, test = (read_manifest(args.world / f"{name}.jsonl") for name in ("train", "test"))
    values = {fact: sorted({row.attributes[fact] for row in train.rows}) for fact in FACTS}
    labels = {
        part: torch.tensor([[values[fact].index(row.attributes[fact]) for fact in FACTS] for row in manifest.rows])
        for part, manifest in (("train", train), ("test", test))
    }
    clips = [pixels(manifest) for manifest in (train, test)]
    figures: dict[str, dict[str, object]] = {}
    for index, fact in enumerate(FACTS):
        known = [labelled(m, labels[p][:, index], values[fact]) for p, m in (("train", train), ("test", test))]
        guesses = torch.from_numpy(pixel_ridge(*known).scores).argmax(dim=1)
        figures[fact] = {"chance": 1 / len(values[fact]), "ridge": share(guesses == labels["test"][:, index])}
    for name, frames in (("frame", 1), ("clip", FRAMES)):
        guesses = learned(clips[0], labels["train"], clips[1], frames, [len(values[fact]) for fact in FACTS])
        for index, fact in enumerate(FACTS):
            figures[fact][name] = share(guesses[:, index] == labels["test"][:, index])
    same = Counter(tuple(row.attributes[fact] for fact in ("place", "colour", "shape", "action")) for row in test.rows)
    result = {"facts": figures, "retrieval": {"oracle": len(same) / len(test.rows), "chance": 1 / len(test.rows)}}
    args.output.write_text(json.dumps(result, indent=1), "utf-8")
    print(json.dumps(result, indent=1))


def pixels(manifest: Manifest) -> Tensor:
    """Frames of all clips in -1..1, (N, T, 3, S, S) float32."""
    found = []
    for row in manifest.rows:
        with Video(manifest.video_path(row)) as video:
            found.append(torch.from_numpy(video.frames(linspace_frames(video.info.frames, FRAMES).tolist())))
    frames = torch.stack(found).permute(0, 1, 4, 2, 3).float()
    return (
        F.interpolate(frames.flatten(0, 1), size=SIDE, mode="area").view(len(found), FRAMES, 3, SIDE, SIDE) / 127.5 - 1
    )


def labelled(manifest: Manifest, labels: Tensor, classes: list[str]) -> Manifest:
    """The manifest with a fact in place of the action."""
    rows = [row.model_copy(update={"label": label}) for row, label in zip(manifest.rows, labels.tolist(), strict=True)]
    return replace(manifest, rows=rows, classes=tuple(classes))


def share(right: Tensor) -> dict[str, object]:
    """The share of right answers with its 95 % interval over clips."""
    hits = right.numpy().astype(np.float64)
    return {
        "top1": hits.mean(),
        "interval": [float(edge) for edge in bootstrap.interval(bootstrap.mean(hits), len(hits))],
    }


class Network(nn.Module):
    """Six convolutions of 3 x 3, the maximum over places, a linear map."""

    def __init__(self, frames: int, outputs: int) -> None:
        super().__init__()
        sizes = ((3 * frames, 24, 1), (24, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1))
        layers = [
            nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())
            for inner, outer, stride in sizes
        ]
        self.layers = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(96, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3 * frames, S, S) -> (B, outputs)."""
        return self.layers(x)  # type: ignore[no-any-return]  # torch types a Sequential's result as Any


def learned(clips: Tensor, labels: Tensor, asked: Tensor, frames: int, sizes: list[int]) -> Tensor:
    """Train on all facts at once with a cosine schedule; the facts (N, F) of the asked clips."""
    torch.manual_seed(0)
    network = Network(frames, sum(sizes))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    steps = EPOCHS * (len(clips) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.07)
    for step in range(steps):
        if step % (len(clips) // BATCH) == 0:
            order = torch.randperm(len(clips))
            print(
                f"{'frame' if frames == 1 else 'clip'}s: epoch {step // (len(clips) // BATCH) + 1} of {EPOCHS}",
                flush=True,
            )
        chosen = order[:BATCH]
        order = order[BATCH:]
        seen = clips[chosen, torch.randint(FRAMES, chosen.shape)] if frames == 1 else clips[chosen].flatten(1, 2)
        parts = torch.split(network(seen), sizes, dim=1)
        loss = torch.stack([F.cross_entropy(part, labels[chosen, index]) for index, part in enumerate(parts)]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.inference_mode():
        views = [asked[:, time] for time in range(0, FRAMES, 2)] if frames == 1 else [asked.flatten(1, 2)]
        outputs = torch.stack([torch.cat([network(part) for part in torch.split(view, 128)]) for view in views]).mean(
            dim=0
        )
    return torch.stack([part.argmax(dim=1) for part in torch.split(outputs, sizes, dim=1)], dim=1)


if __name__ == "__main__":
    main()
