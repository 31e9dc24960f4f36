"""Detect persons at key frames with a detector of the transformers package.

The evaluation of spatio-temporal localization reads a file of person boxes (AlphAction: of a detector trained on COCO,
with scores of 0.8 or more); this module writes one. Detectors of the DETR family need neither non-maximum suppression
nor torchvision: `pip install internvideo[persons]`.
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

SOFTMAX_FAMILIES = ("detr", "yolos")
"""Families with a softmax over the classes and "no object", the last output."""
SIGMOID_FAMILIES = ("rt_detr", "rt_detr_v2", "d_fine", "conditional_detr", "deformable_detr")
"""Families with a sigmoid per class."""
HUB = "hf://"
CHUNK_FRAMES = 8
"""Frames in memory at a time."""

Floats = NDArray[np.float64]


class PersonDetector:
    """Person detector of the transformers package.

    Args:
        source: a folder that transformers' `save_pretrained` wrote, or hf://ORGANISATION/REPOSITORY.
        device: of the model.

    Raises:
        ExtraError: transformers is not installed. WeightsError: no such detector, no safetensors, or one of another
            family or without the class "person".
    """

    def __init__(self, source: str, device: torch.device) -> None:
        require("persons", "person detection")
        from transformers import AutoConfig, AutoModelForObjectDetection

        name_or_path, is_remote = source.removeprefix(HUB), source.startswith(HUB)
        if not is_remote and not (Path(source) / "config.json").is_file():
            raise WeightsError(source, "holds no config.json", f"a detector's folder, or {HUB}ORGANISATION/REPOSITORY")
        load_options: dict[str, Any] = {"local_files_only": not is_remote, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(name_or_path, **load_options)
            self.family = str(config.model_type)
            if self.family not in SOFTMAX_FAMILIES + SIGMOID_FAMILIES:
                raise WeightsError(source, f"a '{self.family}'", ", ".join(SOFTMAX_FAMILIES + SIGMOID_FAMILIES))
            # Pickled weights are never opened: convert them first.
            self.model = AutoModelForObjectDetection.from_pretrained(name_or_path, use_safetensors=True, **load_options)
        except (OSError, ValueError, KeyError) as error:
            raise WeightsError(source, f"cannot be loaded: {str(error).splitlines()[0]}", "safetensors") from error
        names = {str(name).lower(): int(index) for index, name in config.id2label.items()}
        if "person" not in names:
            raise WeightsError(source, "its classes have no 'person'", "a detector trained on COCO")
        self.person, self.device = names["person"], device
        self.model.to(device).eval()
        self.preprocessing = _read_preprocessing(
            Path(name_or_path) if not is_remote else _download_configs(name_or_path)
        )

    @torch.inference_mode()
    def find(self, frames: Tensor) -> list[Floats]:
        """Detect persons in frames (N, H, W, 3) uint8 -> (K, 5) each: x1, y1, x2, y2 (fractions), score; best first."""
        pixels = self.preprocessing.prepare(frames.to(self.device))
        output = self.model(pixel_values=pixels)
        logits, boxes = output.logits.float(), output.pred_boxes.float()
        scores = logits.softmax(-1) if self.family in SOFTMAX_FAMILIES else logits.sigmoid()
        center, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat([center - half, center + half], dim=-1).clamp(0.0, 1.0)
        rows = torch.cat([corners, scores[..., self.person, None]], dim=-1).double().cpu().numpy()
        return [video_frames[np.argsort(-video_frames[:, 4], kind="stable")] for video_frames in rows]


@dataclass(frozen=True)
class _DetectorPreprocessing:
    """Preprocessing of frames; the defaults are those of DETR."""

    shortest: int = 800
    longest: int = 1333
    fixed: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def prepare(self, frames: Tensor) -> Tensor:
        """Resize and normalize frames (N, H, W, 3) uint8 -> (N, 3, h, w) float32."""
        height, width = frames.shape[1:3]
        ratio = min(self.shortest / min(height, width), self.longest / max(height, width))
        size = self.fixed or (round(height * ratio), round(width * ratio))
        pixels = frames.permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (self.mean, self.std))
        return (pixels * self.scale - mean) / std


def _read_preprocessing(folder: Path) -> _DetectorPreprocessing:
    """Read preprocessor_config.json, or return the defaults. Raises WeightsError."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return _DetectorPreprocessing()
    try:
        config = untrusted.read_json(path, untrusted.MAX_SETTINGS_BYTES)
        size = config.get("size", {})
        if not config.get("do_normalize", True):
            config = {**config, "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
        return _DetectorPreprocessing(
            int(size.get("shortest_edge", 800)),
            int(size.get("longest_edge", 1333)),
            (int(size["height"]), int(size["width"])) if "height" in size else None,
            float(config.get("rescale_factor", 1 / 255)),
            tuple(map(float, config.get("image_mean", _DetectorPreprocessing.mean))),
            tuple(map(float, config.get("image_std", _DetectorPreprocessing.std))),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(path, f"cannot be read: {error}", "a preprocessor_config.json of transformers") from error


def _download_configs(name: str) -> Path:
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
            video_frames = list(group)
            try:
                for chunk, images in _decode_key_frames(reader, video_frames, found):
                    for frame, boxes in zip(chunk, detector.find(images), strict=True):
                        found.rows += _rows(frame, boxes[boxes[:, 4] >= score_threshold])
                    found.read += len(chunk)
            except VideoError as error:
                found.unreadable.append((video_frames[0].row.path, str(error)))
            found.late += reader.take_truncated_spans()
            bar.update(len(video_frames))
    return found


def _decode_key_frames(
    reader: ManifestClipDecoder, frames: Sequence[KeyFrame], found: Persons
) -> Iterator[tuple[list[KeyFrame], Tensor]]:
    """Decode the key frames of one video; those outside it are recorded as unreadable."""
    for start in range(0, len(frames), CHUNK_FRAMES):
        chunk: list[KeyFrame] = []

        def choose(
            times: NDArray[np.float64], start: int = start, chunk: list[KeyFrame] = chunk
        ) -> list[NDArray[np.int64]]:
            positions = []
            for frame in frames[start : start + CHUNK_FRAMES]:
                try:  # of two raw frames around the key frame the second one is the key frame itself
                    positions.append(centered_positions(times, frame, frames=1, stride=2).round().astype(np.int64))
                    chunk.append(frame)
                except VideoError as error:
                    found.unreadable.append((frame.row.path, str(error)))
            return positions or [np.zeros(0, dtype=np.int64)]

        images = torch.cat(reader.clips(frames[start].row, choose))
        if chunk:
            yield chunk, images


def _rows(frame: KeyFrame, boxes: Floats) -> list[tuple[str, float, float, float, float, float, float]]:
    corners = boxes.round(5)
    valid = corners[(corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])]
    return [(frame.video, frame.time, x1, y1, x2, y2, score) for x1, y1, x2, y2, score in valid.tolist()]


def write_persons(found: Persons, path: Path) -> None:
    """Write `video,time,x1,y1,x2,y2,,score`, which `--persons` of the evaluation reads. Raises RunError."""
    lines = []
    for video, time, *corners, score in found.rows:
        time_text = f"{time:.6f}".rstrip("0").rstrip(".")
        lines.append(",".join([video, time_text, *(f"{corner:.5f}" for corner in corners), "", f"{score:.5f}"]))
    write_text(path, "".join(f"{line}\n" for line in lines))
