"""Ridge regression on tiny gray pixels: the baseline that any encoder must beat on a small set.

Shapes: n videos, T frames, S side, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internvideo.data.manifest import Manifest, Sample
from internvideo.data.sampling import linspace_frames
from internvideo.errors import VideoError
from internvideo.video.reader import Video

FRAMES, SIDE = 8, 16
REGULARIZATION = tuple(10.0**power for power in range(-2, 6))

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class PixelRidge:
    """Scores (n, C) on the readable test videos, their row indices, and the selected regularization."""

    scores: Floats
    rows: list[int]
    regularization: float


def tiny_pixels(manifest: Manifest, row: Sample) -> Floats:
    """Read evenly spaced frames as gray values 0..1, averaged to S x S, (T * S * S,). Raises VideoError."""
    with Video(manifest.video_path(row), short_side=2 * SIDE, fps=row.frame_rate) as video:
        info = video.info
        inside = np.arange(info.frames) if row.span is None else info.within(*row.span)
        if not len(inside):
            raise VideoError(info.path, f"no frame inside the span of '{row.id}'")
        frames = video.frames(inside[linspace_frames(len(inside), FRAMES)].tolist()).mean(axis=-1)
    parts = [np.array_split(np.arange(length), SIDE) for length in frames.shape[1:]]
    rows = np.stack([frames[:, part].mean(axis=1) for part in parts[0]], axis=1)
    return np.stack([rows[:, :, part].mean(axis=2) for part in parts[1]], axis=2).reshape(-1) / 255


def pixel_ridge(train: Manifest, test: Manifest) -> PixelRidge:
    """Fit on the labeled videos of `train`, with the best regularization of leave-one-out, and score those of `test`.

    Unreadable videos are left out. Raises VideoError when no training video can be read.
    """
    x, known = _read(train)
    test_x, read = _read(test)
    if not known:
        raise VideoError(train.source, "no video can be read")
    targets = np.eye(len(train.classes))[[train.rows[index].label or 0 for index in known]]
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
    x, test_x = (x - mean) / scale, (test_x - mean) / scale
    offset = targets.mean(axis=0)
    kernel = x @ x.T / x.shape[1]
    values, vectors = np.linalg.eigh(kernel)
    rotated = vectors.T @ (targets - offset)
    best: tuple[float, float, Floats] | None = None
    for penalty in REGULARIZATION:
        inverse = vectors / (values.clip(0) + penalty / len(x))
        weights = inverse @ rotated
        # Leave-one-out residuals of kernel ridge: dual weights over the diagonal of the inverse.
        residual = weights / (inverse * vectors).sum(axis=1)[:, None]
        error = float((residual**2).mean())
        if best is None or error < best[0]:
            best = error, penalty, weights
    assert best is not None
    return PixelRidge(test_x @ x.T / x.shape[1] @ best[2] + offset, read, best[1])


def _read(manifest: Manifest) -> tuple[Floats, list[int]]:
    found, rows = [], []
    for index, row in enumerate(manifest.rows):
        try:
            found.append(tiny_pixels(manifest, row))
        except VideoError:
            continue
        rows.append(index)
    return np.asarray(found).reshape(len(rows), FRAMES * SIDE * SIDE), rows
