"""Clips before a contact with where both hands will be: rows of future hands -> HandBatch (arXiv 2211.09529).

A row has the attribute "hands" (JSON, as the reader of Ego4D writes it): for each of five moments its frame and the
positions of the visible hands in pixels; "fps" (30 where missing) tells what a frame is, "size" (WIDTHxHEIGHT) what the
pixels belong to, else the video is asked. The clip is what lies before the first moment.
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
"""Frames a second of Ego4D's clips."""
BEFORE = dict(zip(HAND_FRAMES, (1.5, 1.0, 0.5, 0.1, 0.0), strict=True))
"""Seconds before the contact of a moment that is not annotated; the released sets tell the frame of almost all."""
OUTPUTS = tuple(f"{moment} {hand} {axis}" for moment in HAND_FRAMES for hand in HANDS for axis in "xy")
"""What the 20 values of a model are, in their order."""
_MIRROR = 4  # purpose of a random stream, beside those of data/dataset.py


class HandSettings(Settings):
    """What of a clip is observed."""

    seconds: float = Field(2.0, gt=0.0, description="length of the clip, which ends before the first moment")


@dataclass(frozen=True)
class HandTargets:
    """What is true of N rows.

    Attributes:
        positions: (N, 5, 2, 2) pixels, zeros for a hand that is not visible. size: (N, 2) width and height.
        seen: (N, 2, 2, 2) last observed positions and the way of a frame up to there, both zeros where not known.
        steps: (N, 5) frames of the moments, from the last observed frame on.
    """

    positions: Floats
    size: Floats
    seen: Floats
    steps: Floats


def observed(manifest: Manifest, settings: HandSettings) -> tuple[Manifest, HandTargets]:
    """The rows, each with the span that is observed, and what is true of them.

    Raises:
        ManifestError: a row without hands, or with hands that cannot be read.
        VideoError: a video, whose size is not told, cannot be read.
    """
    rows, positions, sizes, seen, steps = [], [], [], [], []
    probed: dict[str, tuple[int, int]] = {}
    for row in manifest.rows:
        where = f"{manifest.source}: row '{row.id}'"
        moments, fps = _told(row, "hands", where), _number(row, where)
        if not isinstance(moments, dict) or not set(moments) & set(HAND_FRAMES):
            raise ManifestError(where, "no attribute 'hands' with a moment", ", ".join(HAND_FRAMES))
        frames = _frames(moments, fps, where)
        end = max((frames[0] - 0.5) / fps, 0.5 / fps)  # the frame of the first moment is not observed
        rows.append(row.model_copy(update={"span": (max(end - settings.seconds, 0.0), end)}))
        positions.append([_pair(moments.get(name, {}), where) for name in HAND_FRAMES])
        before = _told(row, "seen", where) if "seen" in row.attributes else []
        seen.append(_seen(before, where) if before else np.zeros((2, 2, 2)))
        steps.append(frames - (frames[0] - 1))
        if "size" in row.attributes:
            sizes.append(frame_size(row, where))
            continue
        if row.path not in probed:
            info = read_video_info(manifest.video_path(row), fps=row.frame_rate)
            probed[row.path] = (info.width, info.height)
        sizes.append(probed[row.path])
    arrays = (np.asarray(values, dtype=np.float64) for values in (positions, sizes, seen, steps))
    return replace(manifest, rows=tuple(rows)), HandTargets(*arrays)


def _told(row: Sample, name: str, where: object) -> Any:
    try:
        return untrusted.parse_json(row.attributes.get(name, "null"))
    except ValueError as error:
        raise ManifestError(where, f"attribute '{name}' is no JSON ({error})") from error


def _number(row: Sample, where: object) -> float:
    try:
        fps = float(row.attributes.get("fps", FPS))
    except ValueError:
        fps = float("nan")
    if not 0 < fps < 1e4:
        raise ManifestError(where, f"fps '{row.attributes['fps']}'", "frames a second")
    return fps


def _frames(moments: dict[str, Any], fps: float, where: object) -> Floats:
    """(5,) frames of the moments; one that is not annotated lies where the others say that it does."""
    try:
        known = {name: float(moments[name]["frame"]) for name in HAND_FRAMES if name in moments}
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(where, f"a moment without its frame ({error})", '{"frame": NUMBER, ...}') from error
    last = list(known)[-1]
    return np.asarray([known.get(name, known[last] + (BEFORE[last] - BEFORE[name]) * fps) for name in HAND_FRAMES])


def _pair(moment: Any, where: object) -> Floats:
    """(2, 2) positions of both hands, zeros for one that is not there."""
    try:
        pair = np.asarray([moment.get(hand, (0.0, 0.0)) for hand in HANDS], dtype=np.float64)
    except (AttributeError, TypeError, ValueError) as error:
        raise ManifestError(where, f"hands {moment!r}", '{"left_hand": [x, y], ...}') from error
    if pair.shape != (2, 2) or not np.isfinite(pair).all():
        raise ManifestError(where, f"hands {moment!r}", '{"left_hand": [x, y], ...}')
    return pair


def _seen(entries: Any, where: object) -> Floats:
    """(2, 2, 2): positions in the last of some observed frames, and the way of a frame from the first of them on."""
    try:
        frames = [float(entries[place]["frame"]) for place in (0, -1)]
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise ManifestError(where, f"attribute 'seen' ({error})", '[{"frame": NUMBER, ...}, ...]') from error
    first, last = (_pair(entries[place], where) for place in (0, -1))
    there = ((first != 0) & (last != 0)).any(axis=-1, keepdims=True)
    return np.stack([last, np.where(there, (last - first) / max(frames[1] - frames[0], 1.0), 0.0)])


class HandLoader(WrappedLoader[Loader]):
    """Batches of a loader with what is true of them; mirrored ones have their hands exchanged.

    Args:
        loader: over the rows of `observed`, its clips showing the whole frame. targets: of the same rows.
        mirror: every second clip is mirrored. seed: of those choices.
    """

    def __init__(self, loader: Loader, targets: HandTargets, *, mirror: bool = False, seed: int = 0) -> None:
        super().__init__(loader)
        self.targets, self.mirror, self.seed = targets, mirror, seed
        self._place = {row.id: number for number, row in enumerate(loader.manifest.rows)}

    def epoch(self, k: int, start: int = 0) -> Iterator[HandBatch]:
        """Batches `start`, `start + 1`, ... of epoch `k`; mirroring depends on (seed, k, row) alone."""
        for batch in self.loader.epoch(k, start):
            places = [self._place[name] for name in batch.ids]
            positions, size = self.targets.positions[places], self.targets.size[places]
            video = batch.video
            mirrored = self._mirrored(k, places)
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

    def _mirrored(self, epoch: int, places: Sequence[int]) -> list[int]:
        if not self.mirror:
            return []
        draws = [random_stream(_MIRROR, self.seed, epoch, place).rand() for place in places]
        return [row for row, draw in enumerate(draws) if draw < 0.5]


def mirror_hands(positions: Floats, size: Floats) -> Floats:
    """Positions (B, 5, 2, 2) in mirrored frames of widths size[:, 0]: the left hand is then the right one."""
    visible = (positions != 0).any(axis=-1, keepdims=True)
    turned = positions.copy()
    turned[..., 0] = size[:, None, None, 0] - positions[..., 0]
    result: Floats = np.where(visible, turned, 0.0)[:, :, ::-1].copy()
    return result
