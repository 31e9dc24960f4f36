"""Load clips before a contact with the future positions of both hands: manifest rows -> HandBatch (arXiv 2211.09529).

A row has the attribute "hands" (JSON, as the Ego4D reader writes it): for each of five key frames its index and the
positions of the visible hands in pixels; "fps" is the frame rate of these indices (default 30), "size" (WIDTHxHEIGHT)
the frame size, by default that of the video. The clip ends before the first key frame.
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

DEFAULT_FPS = 30.0
"""Frames per second of Ego4D's clips."""
SECONDS_BEFORE_CONTACT = dict(zip(HAND_FRAMES, (1.5, 1.0, 0.5, 0.1, 0.0), strict=True))
"""Seconds before the contact of the key frames without annotation, of which the released sets have few."""
OUTPUTS = tuple(f"{moment} {hand} {axis}" for moment in HAND_FRAMES for hand in HANDS for axis in "xy")
"""Names of the 20 outputs of a model, in order."""
_HFLIP_STREAM = 4
"""Id of a random stream (`data.epoch_plan.random_stream`)."""


class HandSettings(Settings):
    """Settings of the observed clip."""

    seconds: float = Field(2.0, gt=0.0, description="duration of the clip, which ends before the first key frame")


@dataclass(frozen=True)
class HandTargets:
    """Ground truth of N rows.

    Attributes:
        positions: (N, 5, 2, 2) pixels, zeros for a hand that is not visible. size: (N, 2) width and height.
        last_motion: (N, 2, 2, 2) last observed positions (pixels) and velocities (pixels per frame), 0 if unknown.
        frame_offsets: (N, 5) frames from the last observed frame to each key frame, not always integers.
    """

    positions: Floats
    size: Floats
    last_motion: Floats
    frame_offsets: Floats


def make_rows_and_targets(manifest: Manifest, settings: HandSettings) -> tuple[Manifest, HandTargets]:
    """Return the rows with the observed span, and their ground truth.

    Raises:
        ManifestError: a row without hands, or with a malformed attribute.
        VideoError: the video of a row without the attribute "size" cannot be read.
    """
    rows, positions, sizes, motion, frame_offsets = [], [], [], [], []
    sizes_of_files: dict[str, tuple[int, int]] = {}
    for row in manifest.rows:
        where = f"{manifest.source}: row '{row.id}'"
        key_frames, fps = _parse_attribute(row, "hands", where), _annotation_fps(row, where)
        if not isinstance(key_frames, dict) or not set(key_frames) & set(HAND_FRAMES):
            raise ManifestError(where, "no attribute 'hands' with a key frame", ", ".join(HAND_FRAMES))
        frames = _key_frame_indices(key_frames, fps, where)
        end = max((frames[0] - 0.5) / fps, 0.5 / fps)  # the first key frame is not observed
        rows.append(row.model_copy(update={"span": (max(end - settings.seconds, 0.0), end)}))
        positions.append([_hand_positions(key_frames.get(name, {}), where) for name in HAND_FRAMES])
        entries = _parse_attribute(row, "seen", where) if "seen" in row.attributes else []
        motion.append(_last_motion(entries, where) if entries else np.zeros((2, 2, 2)))
        frame_offsets.append(frames - (frames[0] - 1))
        if "size" in row.attributes:
            sizes.append(frame_size(row, where))
            continue
        if row.path not in sizes_of_files:
            info = read_video_info(manifest.video_path(row), fps=row.frame_rate)
            sizes_of_files[row.path] = (info.width, info.height)
        sizes.append(sizes_of_files[row.path])
    arrays = (np.asarray(values, dtype=np.float64) for values in (positions, sizes, motion, frame_offsets))
    return replace(manifest, rows=tuple(rows)), HandTargets(*arrays)


def _parse_attribute(row: Sample, name: str, where: object) -> Any:
    try:
        return untrusted.parse_json(row.attributes.get(name, "null"))
    except ValueError as error:
        raise ManifestError(where, f"attribute '{name}' is no JSON ({error})") from error


def _annotation_fps(row: Sample, where: object) -> float:
    fps = DEFAULT_FPS if row.frame_rate is None else row.frame_rate
    if not 0 < fps < 1e4:  # NaN for an attribute that is not a number
        raise ManifestError(where, f"fps '{row.attributes.get('fps', row.fps)}'", "frames per second")
    return fps


def _key_frame_indices(key_frames: dict[str, Any], fps: float, where: object) -> Floats:
    """Return the frame indices (5,) of the key frames; those not annotated are computed from the last annotated one."""
    try:
        annotated = {name: float(key_frames[name]["frame"]) for name in HAND_FRAMES if name in key_frames}
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(where, f"a key frame without index ({error})", '{"frame": NUMBER, ...}') from error
    last_name = list(annotated)[-1]
    return np.asarray(
        [
            annotated.get(
                name, annotated[last_name] + (SECONDS_BEFORE_CONTACT[last_name] - SECONDS_BEFORE_CONTACT[name]) * fps
            )
            for name in HAND_FRAMES
        ]
    )


def _hand_positions(key_frame: Any, where: object) -> Floats:
    """Return the positions (2, 2) of both hands, zeros for a missing one."""
    try:
        positions = np.asarray([key_frame.get(hand, (0.0, 0.0)) for hand in HANDS], dtype=np.float64)
    except (AttributeError, TypeError, ValueError) as error:
        raise ManifestError(where, f"hands {key_frame!r}", '{"left_hand": [x, y], ...}') from error
    if positions.shape != (2, 2) or not np.isfinite(positions).all():
        raise ManifestError(where, f"hands {key_frame!r}", '{"left_hand": [x, y], ...}')
    return positions


def _last_motion(entries: Any, where: object) -> Floats:
    """Return (2, 2, 2): positions in the last observed frame, and mean velocity per frame since the first entry."""
    try:
        frames = [float(entries[index]["frame"]) for index in (0, -1)]
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise ManifestError(where, f"attribute 'seen' ({error})", '[{"frame": NUMBER, ...}, ...]') from error
    first, last = (_hand_positions(entries[index], where) for index in (0, -1))
    both_visible = ((first != 0) & (last != 0)).any(axis=-1, keepdims=True)
    return np.stack([last, np.where(both_visible, (last - first) / max(frames[1] - frames[0], 1.0), 0.0)])


class HandLoader(WrappedLoader[Loader]):
    """Add the hand positions to the batches of a loader, and flip clips horizontally at random.

    Args:
        loader: of the rows of `make_rows_and_targets`, with clips of the whole frame. targets: of the same rows.
        hflip: flip each clip with probability 1/2. seed: of the flips.
    """

    def __init__(self, loader: Loader, targets: HandTargets, *, hflip: bool = False, seed: int = 0) -> None:
        super().__init__(loader)
        self.targets, self.hflip, self.seed = targets, hflip, seed
        self._row_index = {row.id: index for index, row in enumerate(loader.manifest.rows)}

    def epoch(self, k: int, start: int = 0) -> Iterator[HandBatch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`; a flip depends only on (seed, k, row)."""
        for batch in self.loader.epoch(k, start):
            rows = [self._row_index[name] for name in batch.ids]
            positions, size = self.targets.positions[rows], self.targets.size[rows]
            video = batch.video
            flipped = self._flipped_positions(k, rows)
            if len(flipped):
                video = video.clone()
                video[flipped] = video[flipped].flip(-1)
                positions[flipped] = hflip_hands(positions[flipped], size[flipped])
            yield HandBatch(
                video,
                batch.ids,
                positions=torch.from_numpy(positions).float(),
                visible=torch.from_numpy((positions != 0).any(axis=-1)),
                size=torch.from_numpy(size).float(),
            )

    def _flipped_positions(self, epoch: int, rows: Sequence[int]) -> list[int]:
        if not self.hflip:
            return []
        draws = [random_stream(_HFLIP_STREAM, self.seed, epoch, row).rand() for row in rows]
        return [position for position, draw in enumerate(draws) if draw < 0.5]


def hflip_hands(positions: Floats, size: Floats) -> Floats:
    """Flip positions (B, 5, 2, 2) horizontally in frames of width size[:, 0], and exchange left and right hand."""
    visible = (positions != 0).any(axis=-1, keepdims=True)
    flipped = positions.copy()
    flipped[..., 0] = size[:, None, None, 0] - positions[..., 0]
    result: Floats = np.where(visible, flipped, 0.0)[:, :, ::-1].copy()
    return result
