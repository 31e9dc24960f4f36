"""Load clips before a contact with the future positions of both hands: manifest rows -> HandBatch (arXiv 2211.09529).

A row has the attribute "hands" (JSON, as the Ego4D reader writes it): for each of five key frames its index and the
positions of the visible hands in pixels; "fps" (default 30) is the frame rate, "size" (WIDTHxHEIGHT) the frame size, by
default that of the video. The clip ends before the first key frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from internvideo import untrusted
from internvideo.data.batch import HandBatch, WrappedLoader
from internvideo.data.epoch_plan import random_stream
from internvideo.data.loader import Loader
from internvideo.data.manifest import Manifest
from internvideo.data.sample import Sample, frame_size
from internvideo.data.settings import Settings
from internvideo.datasets.ego4d import HAND_FRAMES, HANDS
from internvideo.errors import ManifestError
from internvideo.video.reader import read_video_info

Floats = NDArray[np.float64]

FPS = 30.0
"""Frames per second of Ego4D's clips."""
BEFORE = dict(zip(HAND_FRAMES, (1.5, 1.0, 0.5, 0.1, 0.0), strict=True))
"""Seconds before the contact, for key frames without annotation; the released sets annotate almost all of them."""
OUTPUTS = tuple(f"{moment} {hand} {axis}" for moment in HAND_FRAMES for hand in HANDS for axis in "xy")
"""Names of the 20 outputs of a model, in order."""
_MIRROR = 4  # purpose of a random stream, beside those of data/dataset.py


class HandSettings(Settings):
    """Settings of the observed clip."""

    seconds: float = Field(2.0, gt=0.0, description="duration of the clip, which ends before the first key frame")


@dataclass(frozen=True)
class HandTargets:
    """Ground truth of N rows.

    Attributes:
        positions: (N, 5, 2, 2) pixels, zeros for a hand that is not visible. size: (N, 2) width and height.
        seen: (N, 2, 2, 2) last observed positions (pixels) and velocities (pixels per frame), zeros where unknown.
        steps: (N, 5) frames from the last observed frame to each key frame.
    """

    positions: Floats
    size: Floats
    seen: Floats
    steps: Floats


def observed(manifest: Manifest, settings: HandSettings) -> tuple[Manifest, HandTargets]:
    """Return the rows, with the observed span set, and their ground truth.

    Raises:
        ManifestError: a row without hands, or with a malformed attribute.
        VideoError: a video without the attribute "size" cannot be read.
    """
    rows, positions, sizes, motion, steps = [], [], [], [], []
    sizes_of_files: dict[str, tuple[int, int]] = {}
    for row in manifest.rows:
        where = f"{manifest.source}: row '{row.id}'"
        key_frames, fps = _parse_attribute(row, "hands", where), _frame_rate(row, where)
        if not isinstance(key_frames, dict) or not set(key_frames) & set(HAND_FRAMES):
            raise ManifestError(where, "no attribute 'hands' with a key frame", ", ".join(HAND_FRAMES))
        frames = _frames(key_frames, fps, where)
        end = max((frames[0] - 0.5) / fps, 0.5 / fps)  # the first key frame is not observed
        rows.append(row.model_copy(update={"span": (max(end - settings.seconds, 0.0), end)}))
        positions.append([_pair(key_frames.get(name, {}), where) for name in HAND_FRAMES])
        entries = _parse_attribute(row, "seen", where) if "seen" in row.attributes else []
        motion.append(_last_motion(entries, where) if entries else np.zeros((2, 2, 2)))
        steps.append(frames - (frames[0] - 1))
        if "size" in row.attributes:
            sizes.append(frame_size(row, where))
            continue
        if row.path not in sizes_of_files:
            info = read_video_info(manifest.video_path(row), fps=row.frame_rate)
            sizes_of_files[row.path] = (info.width, info.height)
        sizes.append(sizes_of_files[row.path])
    arrays = (np.asarray(values, dtype=np.float64) for values in (positions, sizes, motion, steps))
    return replace(manifest, rows=tuple(rows)), HandTargets(*arrays)


def _parse_attribute(row: Sample, name: str, where: object) -> Any:
    try:
        return untrusted.parse_json(row.attributes.get(name, "null"))
    except ValueError as error:
        raise ManifestError(where, f"attribute '{name}' is no JSON ({error})") from error


def _frame_rate(row: Sample, where: object) -> float:
    fps = FPS if row.frame_rate is None else row.frame_rate
    if not 0 < fps < 1e4:  # nan where it is no number
        raise ManifestError(where, f"fps '{row.attributes.get('fps', row.fps)}'", "frames per second")
    return fps


def _frames(key_frames: dict[str, Any], fps: float, where: object) -> Floats:
    """Return the indices (5,) of the key frames; those without annotation are computed from the last annotated one."""
    try:
        known = {name: float(key_frames[name]["frame"]) for name in HAND_FRAMES if name in key_frames}
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(where, f"a key frame without index ({error})", '{"frame": NUMBER, ...}') from error
    last = list(known)[-1]
    return np.asarray([known.get(name, known[last] + (BEFORE[last] - BEFORE[name]) * fps) for name in HAND_FRAMES])


def _pair(key_frame: Any, where: object) -> Floats:
    """Return the positions (2, 2) of both hands, zeros for a missing one."""
    try:
        pair = np.asarray([key_frame.get(hand, (0.0, 0.0)) for hand in HANDS], dtype=np.float64)
    except (AttributeError, TypeError, ValueError) as error:
        raise ManifestError(where, f"hands {key_frame!r}", '{"left_hand": [x, y], ...}') from error
    if pair.shape != (2, 2) or not np.isfinite(pair).all():
        raise ManifestError(where, f"hands {key_frame!r}", '{"left_hand": [x, y], ...}')
    return pair


def _last_motion(entries: Any, where: object) -> Floats:
    """Return (2, 2, 2): positions in the last observed frame, and mean velocity per frame since the first entry."""
    try:
        frames = [float(entries[index]["frame"]) for index in (0, -1)]
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise ManifestError(where, f"attribute 'seen' ({error})", '[{"frame": NUMBER, ...}, ...]') from error
    first, last = (_pair(entries[index], where) for index in (0, -1))
    both_visible = ((first != 0) & (last != 0)).any(axis=-1, keepdims=True)
    return np.stack([last, np.where(both_visible, (last - first) / max(frames[1] - frames[0], 1.0), 0.0)])


class HandLoader(WrappedLoader[Loader]):
    """Add the hand positions to the batches of a loader, and mirror clips at random.

    Args:
        loader: loads the rows of `observed` with clips of the whole frame. targets: ground truth of the same rows.
        mirror: mirror each clip with probability 1/2. seed: seed of these choices.
    """

    def __init__(self, loader: Loader, targets: HandTargets, *, mirror: bool = False, seed: int = 0) -> None:
        super().__init__(loader)
        self.targets, self.mirror, self.seed = targets, mirror, seed
        self._row_index = {row.id: index for index, row in enumerate(loader.manifest.rows)}

    def epoch(self, k: int, start: int = 0) -> Iterator[HandBatch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`; mirroring depends only on (seed, k, row)."""
        for batch in self.loader.epoch(k, start):
            rows = [self._row_index[name] for name in batch.ids]
            positions, size = self.targets.positions[rows], self.targets.size[rows]
            video = batch.video
            mirrored = self._mirrored(k, rows)
            if len(mirrored):
                video = video.clone()
                video[mirrored] = video[mirrored].flip(-1)
                positions[mirrored] = mirror_hands(positions[mirrored], size[mirrored])
            yield HandBatch(
                video,
                batch.ids,
                positions=torch.from_numpy(positions).float(),
                visible=torch.from_numpy((positions != 0).any(axis=-1)),
                size=torch.from_numpy(size).float(),
            )

    def _mirrored(self, epoch: int, rows: Sequence[int]) -> list[int]:
        if not self.mirror:
            return []
        draws = [random_stream(_MIRROR, self.seed, epoch, row).rand() for row in rows]
        return [position for position, draw in enumerate(draws) if draw < 0.5]


def mirror_hands(positions: Floats, size: Floats) -> Floats:
    """Mirror positions (B, 5, 2, 2) in frames of width size[:, 0], and exchange left and right hand."""
    visible = (positions != 0).any(axis=-1, keepdims=True)
    mirrored = positions.copy()
    mirrored[..., 0] = size[:, None, None, 0] - positions[..., 0]
    result: Floats = np.where(visible, mirrored, 0.0)[:, :, ::-1].copy()
    return result
