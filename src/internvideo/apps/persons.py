"""Detect persons at key frames with a detector of the transformers package.

Spatio-temporal localization is tested on a file of boxes, and any will do (AlphAction: a detector trained on
COCO, boxes from a score of 0.8 on); this makes one. The DETR family needs no suppression, no torchvision and no code of
its own: `pip install internvideo[persons]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from internvideo import untrusted
from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.manifest import Manifest
from internvideo.errors import VideoError, WeightsError
from internvideo.extras import require
from internvideo.storage import write_text
from internvideo.tasks.spatio_temporal_localization.data import KeyFrame, centered_positions, key_frames
from internvideo.terminal import bars_disabled

SOFT_MAX = ("detr", "yolos")
"""Families whose last class is "nothing"."""
SIGMOID = ("rt_detr", "rt_detr_v2", "d_fine", "conditional_detr", "deformable_detr")
"""Families that score every class by itself."""
HUB = "hf://"
AT_ONCE = 8
"""Frames in memory at a time."""

Floats = NDArray[np.float64]


class PersonDetector:
    """Person detector of the transformers package.

    Args:
        source: a folder that transformers' `save_pretrained` wrote, or hf://ORGANISATION/REPOSITORY.
        device: where it runs.

    Raises:
        ExtraError: transformers is not installed. WeightsError: no such detector, no safetensors, or one of another
            family or without the class "person".
    """

    def __init__(self, source: str, device: torch.device) -> None:
        require("persons", "person detection")
        from transformers import AutoConfig, AutoModelForObjectDetection

        place, away = source.removeprefix(HUB), source.startswith(HUB)
        if not away and not (Path(source) / "config.json").is_file():
            raise WeightsError(source, "holds no config.json", f"a detector's folder, or {HUB}ORGANISATION/REPOSITORY")
        how: dict[str, Any] = {"local_files_only": not away, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(place, **how)
            self.family = str(config.model_type)
            if self.family not in SOFT_MAX + SIGMOID:
                raise WeightsError(source, f"a '{self.family}'", ", ".join(SOFT_MAX + SIGMOID))
            # Pickled weights are never opened: convert them first.
            self.model = AutoModelForObjectDetection.from_pretrained(place, use_safetensors=True, **how)
        except (OSError, ValueError, KeyError) as error:
            raise WeightsError(source, f"cannot be loaded: {str(error).splitlines()[0]}", "safetensors") from error
        names = {str(name).lower(): int(index) for index, name in config.id2label.items()}
        if "person" not in names:
            raise WeightsError(source, "its classes have no 'person'", "a detector trained on COCO")
        self.person, self.device = names["person"], device
        self.model.to(device).eval()
        self.form = _form(Path(place) if not away else _downloaded(place))

    @torch.inference_mode()
    def find(self, frames: Tensor) -> list[Floats]:
        """Detect persons in frames (N, H, W, 3) uint8 -> (K, 5) each: x1, y1, x2, y2 (fractions), score; best first."""
        pixels = self.form.prepare(frames.to(self.device))
        output = self.model(pixel_values=pixels)
        logits, boxes = output.logits.float(), output.pred_boxes.float()
        scores = logits.softmax(-1) if self.family in SOFT_MAX else logits.sigmoid()
        center, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat([center - half, center + half], dim=-1).clamp(0.0, 1.0)
        rows = torch.cat([corners, scores[..., self.person, None]], dim=-1).double().cpu().numpy()
        return [own[np.argsort(-own[:, 4], kind="stable")] for own in rows]


@dataclass(frozen=True)
class _Form:
    """Preprocessing of frames; the published defaults of DETR."""

    shortest: int = 800
    longest: int = 1333
    fixed: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def prepare(self, frames: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, h, w) float32."""
        height, width = frames.shape[1:3]
        ratio = min(self.shortest / min(height, width), self.longest / max(height, width))
        size = self.fixed or (round(height * ratio), round(width * ratio))
        pixels = frames.permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (self.mean, self.std))
        return (pixels * self.scale - mean) / std


def _form(folder: Path) -> _Form:
    """Read preprocessor_config.json, or return the defaults. Raises WeightsError."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return _Form()
    try:
        config = untrusted.read_json(path, untrusted.MAX_SETTINGS_BYTES)
        size = config.get("size", {})
        if not config.get("do_normalize", True):
            config = {**config, "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
        return _Form(
            int(size.get("shortest_edge", 800)),
            int(size.get("longest_edge", 1333)),
            (int(size["height"]), int(size["width"])) if "height" in size else None,
            float(config.get("rescale_factor", 1 / 255)),
            tuple(map(float, config.get("image_mean", _Form.mean))),
            tuple(map(float, config.get("image_std", _Form.std))),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(path, f"cannot be read: {error}", "a preprocessor_config.json of transformers") from error


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download  # comes with transformers

    return Path(snapshot_download(name, allow_patterns=["*.json"]))


@dataclass
class Persons:
    """Detected boxes (video, time, x1, y1, x2, y2, score), number of key frames read, unreadable videos with reasons,
    and spans that end after their video."""

    rows: list[tuple[str, float, float, float, float, float, float]] = field(default_factory=list)
    read: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    late: list[str] = field(default_factory=list)


def find_persons(manifest: Manifest, detector: PersonDetector, *, score_threshold: float = 0.1) -> Persons:
    """Detect persons at all key frames of a manifest.

    Args:
        manifest: rows with boxes, whose times are the key frames. detector: see `PersonDetector`.
        score_threshold: boxes below this score are left out; the task has a threshold of its own.

    Raises:
        ManifestError: no row has boxes.
    """
    frames, reader, found = key_frames(manifest), ManifestClipDecoder(manifest), Persons()
    with tqdm(total=len(frames), desc="persons", unit="frame", disable=bars_disabled()) as bar:
        for _, group in groupby(frames, key=lambda frame: frame.row.id):
            own = list(group)
            try:
                for part, pictures in _pictures(reader, own, found):
                    for frame, boxes in zip(part, detector.find(pictures), strict=True):
                        found.rows += _rows(frame, boxes[boxes[:, 4] >= score_threshold])
                    found.read += len(part)
            except VideoError as error:
                found.unreadable.append((own[0].row.path, str(error)))
            found.late += reader.take_truncated_spans()
            bar.update(len(own))
    return found


def _pictures(
    reader: ManifestClipDecoder, frames: Sequence[KeyFrame], found: Persons
) -> Iterator[tuple[list[KeyFrame], Tensor]]:
    """Decode the key frames of one video; those outside it are recorded as unreadable."""
    for start in range(0, len(frames), AT_ONCE):
        part: list[KeyFrame] = []

        def choose(
            times: NDArray[np.float64], start: int = start, part: list[KeyFrame] = part
        ) -> list[NDArray[np.int64]]:
            places = []
            for frame in frames[start : start + AT_ONCE]:
                try:  # of two raw frames around the key frame the second one is the key frame itself
                    places.append(centered_positions(times, frame, frames=1, stride=2).round().astype(np.int64))
                    part.append(frame)
                except VideoError as error:
                    found.unreadable.append((frame.row.path, str(error)))
            return places or [np.zeros(0, dtype=np.int64)]

        pictures = torch.cat(reader.clips(frames[start].row, choose))
        if part:
            yield part, pictures


def _rows(frame: KeyFrame, boxes: Floats) -> list[tuple[str, float, float, float, float, float, float]]:
    corners = boxes.round(5)
    kept = corners[(corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])]
    return [(frame.video, frame.time, x1, y1, x2, y2, score) for x1, y1, x2, y2, score in kept.tolist()]


def write_persons(found: Persons, path: Path) -> None:
    """Write `video,time,x1,y1,x2,y2,,score`, which `--persons` of the evaluation reads. Raises RunError."""
    lines = []
    for video, time, *corners, score in found.rows:
        second = f"{time:.6f}".rstrip("0").rstrip(".")
        lines.append(",".join([video, second, *(f"{corner:.5f}" for corner in corners), "", f"{score:.5f}"]))
    write_text(path, "".join(f"{line}\n" for line in lines))
