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
    """Scores (n, C) of the readable test videos, their rows in the manifest, and the selected regularization."""

    scores: Floats
    row_index: list[int]
    regularization: float


def tiny_pixels(manifest: Manifest, row: Sample) -> Floats:
    """Read evenly spaced frames as gray values 0..1, averaged to S x S, (T * S * S,). Raises VideoError."""
    with Video(manifest.video_path(row), short_side=2 * SIDE, fps=row.frame_rate) as video:
        info = video.info
        frame_index = np.arange(info.frames) if row.span is None else info.within(*row.span)
        if not len(frame_index):
            raise VideoError(info.path, f"no frame inside the span of '{row.id}'")
        frames = video.frames(frame_index[linspace_frames(len(frame_index), FRAMES)].tolist()).mean(axis=-1)
    bins = [np.array_split(np.arange(length), SIDE) for length in frames.shape[1:]]
    row_means = np.stack([frames[:, bin_index].mean(axis=1) for bin_index in bins[0]], axis=1)
    return np.stack([row_means[:, :, bin_index].mean(axis=2) for bin_index in bins[1]], axis=2).reshape(-1) / 255


def pixel_ridge(train: Manifest, test: Manifest) -> PixelRidge:
    """Fit on the videos of `train`, select the regularization by leave-one-out, and score the videos of `test`.

    Unreadable videos are skipped. Raises VideoError if no training video can be read.
    """
    train_x, train_rows = _read_pixels(train)
    test_x, test_rows = _read_pixels(test)
    if not train_rows:
        raise VideoError(train.source, "no video can be read")
    targets = np.eye(len(train.classes))[[train.rows[index].label or 0 for index in train_rows]]
    mean, scale = train_x.mean(axis=0), train_x.std(axis=0) + 1e-3
    train_x, test_x = (train_x - mean) / scale, (test_x - mean) / scale
    offset = targets.mean(axis=0)
    kernel = train_x @ train_x.T / train_x.shape[1]
    eigenvalues, eigenvectors = np.linalg.eigh(kernel)
    rotated = eigenvectors.T @ (targets - offset)
    best: tuple[float, float, Floats] | None = None
    for penalty in REGULARIZATION:
        inverse = eigenvectors / (eigenvalues.clip(0) + penalty / len(train_x))
        weights = inverse @ rotated
        # Leave-one-out residuals of kernel ridge: dual weights over the diagonal of the inverse.
        residual = weights / (inverse * eigenvectors).sum(axis=1)[:, None]
        error = float((residual**2).mean())
        if best is None or error < best[0]:
            best = error, penalty, weights
    assert best is not None
    return PixelRidge(test_x @ train_x.T / train_x.shape[1] @ best[2] + offset, test_rows, best[1])


def _read_pixels(manifest: Manifest) -> tuple[Floats, list[int]]:
    pixels, row_index = [], []
    for index, row in enumerate(manifest.rows):
        try:
            pixels.append(tiny_pixels(manifest, row))
        except VideoError:
            continue
        row_index.append(index)
    return np.asarray(pixels).reshape(len(row_index), FRAMES * SIDE * SIDE), row_index
