"""Clips that tell what they are, and stand-ins for transform and tokenizer, for the tests of the loader.

The left half of frame f has the grey level 16 + 8 f, the right half of clip c 16 + 20 c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.loader import Loader, LoaderSettings
from internvideo.data.manifest import Manifest, Sample
from internvideo.data.sampling import Sparse
from internvideo.errors import TextError
from internvideo.video.writer import write_video

CLIPS, FRAMES, SIDE, FPS = 11, 24, 32, 10
BYTES = FRAMES * SIDE * SIDE * 3


class Noisy:
    """A random crop with noise, so that any two draws differ."""

    def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
        top, left = rng.randint(0, 17, size=2)
        crop = clip[:, top : top + 16, left : left + 16].permute(3, 0, 1, 2)
        return (crop + torch.from_numpy(rng.randint(0, 3, size=crop.shape).astype(np.uint8))).contiguous()


class Plain:
    """The clip as it is; two views in evaluation, the clip and its mirror image."""

    def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
        return clip.permute(3, 0, 1, 2).contiguous()

    def crop_clip(self, clip: Tensor) -> list[Tensor]:
        whole = clip.permute(3, 0, 1, 2).contiguous()
        return [whole, whole.flip(-1)]


class Letters:
    """A tokenizer that is easy to read back; refuses the text "bad"."""

    def encode(self, texts: Sequence[str], /) -> Tensor:
        if "bad" in texts:
            raise TextError("caption", "bad")
        return torch.tensor([[ord(letter) for letter in text.ljust(4)[:4]] for text in texts])


def grey_clips(root: Path) -> Manifest:
    """Write the clips and a file that is broken off; the manifest of the clips."""
    for clip in range(CLIPS):
        frames = np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8)
        frames[:, :, : SIDE // 2] = (16 + 8 * np.arange(FRAMES))[:, None, None, None]
        frames[:, :, SIDE // 2 :] = 16 + 20 * clip
        write_video(root / f"{clip}.mp4", frames, FPS)
    (root / "broken.mp4").write_bytes((root / "0.mp4").read_bytes()[:200])
    rows = [Sample(id=str(c), path=f"{c}.mp4", label=c % 3, captions=(f"a{c}", f"b{c}")) for c in range(CLIPS)]
    return Manifest(tuple(rows), ("x", "y", "z"), root, root / "m.jsonl")


def with_broken(manifest: Manifest, count: int) -> Manifest:
    rows = list(manifest.rows)
    for place in range(count):
        rows[2 * place] = rows[2 * place].model_copy(update={"path": "broken.mp4"})
    return dataclasses.replace(manifest, rows=tuple(rows))


def loader(manifest: Manifest, transform: object = None, **settings: object) -> Loader:
    extra = {key: settings.pop(key) for key in ("tokenizer", "caption", "skipped") if key in settings}
    chosen = LoaderSettings(**{"batch_size": 2, "seed": 5, **settings})  # type: ignore[arg-type] # free keys in tests
    return Loader(manifest, Sparse(frames=4), transform or Noisy(), chosen, **extra)  # type: ignore[arg-type] # as above


def same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> bool:
    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))

    return len(ours) == len(theirs) and all(
        a.ids == b.ids and equal(a.video, b.video) and equal(a.labels, b.labels) and equal(a.text_ids, b.text_ids)
        for a, b in zip(ours, theirs, strict=True)
    )


def frames_of(video: Tensor) -> list[list[int]]:
    """(B, 3, T, S, S) of `Plain` -> frame numbers by the left half."""
    return ((video[:, 1, :, 16, 8].double() - 16) / 8).round().int().tolist()


def clips_of(video: Tensor) -> list[int]:
    return ((video[:, 1, 0, 16, 24].double() - 16) / 20).round().int().tolist()
