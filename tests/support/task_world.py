"""A tiny stand-in world for the tasks: models that read the answer from the pixels, a loader of given tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from internvideo.data.batch import Batch
from internvideo.data.manifest import Manifest
from internvideo.data.sample import Choice, Sample
from internvideo.tasks.protocol import ClipProtocol

CLASSES = ("jump", "run", "sit", "spin", "wave", "walk")
CLIPS = ClipProtocol(frames=2, size=4)
CPU = torch.device("cpu")


def manifest(videos: int, **changes: Any) -> Manifest:
    """Video i has class i % 6 and captions that name it and its number."""
    rows = []
    for i in range(videos):
        name = CLASSES[i % 6]
        fields: dict[str, Any] = {
            "id": f"clip{i}",
            "path": f"{i}.mp4",
            "label": i % 6,
            "split": "test",
            "captions": (f"{name} {i}", f"again {name} {i}"),
            "choices": Choice(options=tuple(f"{CLASSES[(i + k) % 6]} {i}" for k in range(3 + i % 3)), answer=0),
        }
        rows.append(Sample(**{**fields, **changes}))
    return Manifest(tuple(rows), CLASSES, Path("/nowhere"), Path("/nowhere/clips.jsonl"))


class Source:
    """Clips whose pixels all hold the number of the video; `shift` moves the number of single (video, view) pairs."""

    def __init__(
        self,
        rows: Manifest,
        clips: ClipProtocol = CLIPS,
        *,
        unreadable: Sequence[int] = (),
        shift: dict[tuple[int, int], int] | None = None,
        leave_out: Sequence[tuple[int, int]] = (),
        batch: int = 5,
    ) -> None:
        self.rows, self.clips, self.shift, self.batch = rows, clips, shift or {}, batch
        self.lost, self.leave_out = set(unreadable), set(leave_out)
        self.unreadable: list[tuple[str, str, str]] = []

    def __iter__(self) -> Iterator[tuple[Batch, np.ndarray]]:
        self.unreadable = [(self.rows.rows[i].id, f"{i}.mp4", "no frame") for i in sorted(self.lost)]
        pairs = [
            (i, v)
            for i in range(len(self.rows))
            for v in range(self.clips.num_views)
            if i not in self.lost and (i, v) not in self.leave_out
        ]
        for start in range(0, len(pairs), self.batch):
            part = pairs[start : start + self.batch]
            values = torch.tensor([i + self.shift.get((i, v), 0) for i, v in part], dtype=torch.uint8)
            video = values.view(-1, 1, 1, 1, 1).expand(-1, 3, self.clips.frames, self.clips.size, self.clips.size)
            yield (
                Batch(video.contiguous(), tuple(self.rows.rows[i].id for i, _ in part)),
                np.asarray([v for _, v in part]),
            )


class Reader(nn.Module):
    """A classifier that says class = number % 6."""

    def __init__(self, classes: int = 6, strength: float = 9.0) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))
        self.classes = classes

    def normalize(self, video: Tensor) -> Tensor:
        return video.float()

    def forward(self, video: Tensor) -> Tensor:
        assert not self.training
        number = video.mean(dim=(1, 2, 3, 4)).round().long()
        return self.strength * nn.functional.one_hot(number % self.classes, self.classes).float()


class TwoReaders(nn.Module):
    """An interaction of two readers; counts the frames that each saw."""

    def __init__(self) -> None:
        super().__init__()
        self.masked, self.multimodal = Reader(strength=0.0), Reader()
        self.frames: list[tuple[int, int]] = []

    def forward(self, masked: Tensor, multimodal: Tensor) -> Any:
        self.frames.append((masked.shape[2], multimodal.shape[2]))
        one, two = self.masked(masked), self.multimodal(multimodal)
        return SimpleNamespace(masked=one, multimodal=two, fused=(one + two) / 2)


class Words:
    """Tokens: [class + 1, number + 1, length] with 0 for what a text does not say."""

    def encode(self, texts: str | Sequence[str]) -> Tensor:
        rows = []
        for text in [texts] if isinstance(texts, str) else texts:
            named = [index for index, name in enumerate(CLASSES) if name in text]
            numbers = [int(word) for word in text.split() if word.isdecimal()]
            rows.append([named[0] + 1 if named else 0, numbers[0] + 1 if numbers else 0, len(text)])
        return torch.tensor(rows)


class Towers(nn.Module):
    """A video-text model with a class part (6) and a number part (32) of its joint space."""

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(scale).log())
        self.broken = False

    @property
    def scale(self) -> Tensor:
        return self.logit_scale.exp()

    def normalize(self, video: Tensor) -> Tensor:
        return video.float()

    def encode_video(self, video: Tensor) -> Tensor:
        number = video.mean(dim=(1, 2, 3, 4)).round().long()
        features = self._join(number % 6, number)
        return features * float("nan") if self.broken else features

    def encode_text(self, tokens: Tensor) -> Tensor:
        known = torch.cat([(tokens[:, :1] > 0).expand(-1, 6), (tokens[:, 1:2] > 0).expand(-1, 32)], dim=1)
        return self._join((tokens[:, 0] - 1).clamp(min=0), (tokens[:, 1] - 1).clamp(min=0)) * known + 0.01

    @staticmethod
    def _join(kind: Tensor, number: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot
        return torch.cat([2 * one_hot(kind, 6), one_hot(number, 32)], dim=1).float()
