"""Draw the backgrounds of the sample world: procedural textures with random offsets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Field = NDArray[np.float64]
Rng = np.random.Generator


def _blend(weight: Field, low: tuple[float, float, float], high: tuple[float, float, float]) -> Field:
    fraction = np.clip(weight, 0, 1)[..., None]
    return np.asarray(np.asarray(low) * (1 - fraction) + np.asarray(high) * fraction, dtype=np.float64)


def _grain(shape: tuple[int, ...], rng: Rng, coarse: int = 1) -> Field:
    """Return blocks of random brightness -1..1, `coarse` pixels wide, of a shape (H, W)."""
    small = rng.uniform(-1, 1, (shape[0] // coarse + 1, shape[1] // coarse + 1))
    blocks: Field = np.repeat(np.repeat(small, coarse, axis=0), coarse, axis=1)
    return blocks[: shape[0], : shape[1]]


def _meadow(x: Field, y: Field, rng: Rng) -> Field:
    blades = np.sin(x * 90 + 3 * np.sin(y * 14 + rng.uniform(0, 6))) * 0.35 + 0.5 + 0.2 * _grain(x.shape, rng, 2)
    return _blend(blades, (0.28, 0.42, 0.18), (0.52, 0.66, 0.32))


def _desert(x: Field, y: Field, rng: Rng) -> Field:
    dunes = np.sin(y * 22 + 2.2 * np.sin(x * 5 + rng.uniform(0, 6)) + rng.uniform(0, 6)) * 0.45 + 0.5
    return _blend(dunes, (0.70, 0.56, 0.36), (0.90, 0.80, 0.58))


def _sea(x: Field, y: Field, rng: Rng) -> Field:
    waves = np.sin(y * 34 + 1.2 * np.sin(x * 16 + rng.uniform(0, 6)) + rng.uniform(0, 6))
    waves += 0.5 * np.sin(y * 15 - x * 6 + rng.uniform(0, 6))
    return _blend(waves * 0.33 + 0.5, (0.16, 0.32, 0.48), (0.36, 0.56, 0.68))


def _night(x: Field, y: Field, rng: Rng) -> Field:
    sky = _blend(y, (0.04, 0.04, 0.12), (0.12, 0.10, 0.24))
    for _ in range(28):
        center, size = rng.uniform(0, 1, 2), rng.uniform(0.006, 0.014)
        sky += 0.75 * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * size**2))[..., None]
    return sky


def _bricks(x: Field, y: Field, rng: Rng) -> Field:
    rows, columns = y * 8 + rng.uniform(0, 1), x * 4 + rng.uniform(0, 1)
    columns = columns + 0.5 * (np.floor(rows) % 2)
    joint = (np.abs(rows % 1 - 0.5) > 0.41) | (np.abs(columns % 1 - 0.5) > 0.455)
    tone = 0.5 + 0.25 * np.sin(np.floor(rows) * 12.9 + np.floor(columns) * 78.2)
    return np.where(joint[..., None], 0.70, _blend(tone, (0.46, 0.26, 0.20), (0.62, 0.36, 0.28)))


def _snow(x: Field, y: Field, rng: Rng) -> Field:
    drift = 0.5 + 0.35 * np.sin(x * 7 + y * 9 + rng.uniform(0, 6)) + 0.25 * _grain(x.shape, rng, 3)
    return _blend(drift, (0.76, 0.80, 0.86), (0.95, 0.96, 0.98))


def _planks(x: Field, y: Field, rng: Rng) -> Field:
    boards = x * 6 + rng.uniform(0, 1)
    joint = np.abs(boards % 1 - 0.5) > 0.46
    veins = 0.5 + 0.3 * np.sin(boards * 14 + 2 * np.sin(y * 7 + np.floor(boards) * 3 + rng.uniform(0, 6)))
    return np.where(joint[..., None], 0.22, _blend(veins, (0.44, 0.31, 0.19), (0.60, 0.44, 0.28)))


def _tiles(x: Field, y: Field, rng: Rng) -> Field:
    columns, rows = np.floor(x * 6 + rng.uniform(0, 1)), np.floor(y * 6 + rng.uniform(0, 1))
    return _blend((columns + rows) % 2, (0.38, 0.40, 0.42), (0.74, 0.76, 0.76))


_DRAWERS: Mapping[str, Callable[[Field, Field, Rng], Field]] = MappingProxyType(
    {
        "meadow": _meadow,
        "desert": _desert,
        "sea": _sea,
        "night sky": _night,
        "brick wall": _bricks,
        "snow": _snow,
        "wooden floor": _planks,
        "tiled floor": _tiles,
    }
)
PLACES: tuple[str, ...] = tuple(_DRAWERS)


def draw_background(place: str, side: int, margin: int, difficulty: float, rng: Rng) -> Image:
    """Draw a dim background, (side + 2 margin, side + 2 margin, 3) float32 in 0..1.

    `difficulty` (0..1) raises the contrast of its texture, and its brightness towards that of the objects.
    """
    steps = (np.arange(side + 2 * margin) - margin + 0.5) / side
    x, y = np.meshgrid(steps, steps)
    image = _DRAWERS[place](x, y, rng)
    mean = image.mean(axis=(0, 1))
    return np.asarray(
        np.clip(mean + (image - mean) * (0.2 + 0.8 * difficulty), 0, 1) * (0.4 + 0.25 * difficulty), dtype=np.float32
    )
