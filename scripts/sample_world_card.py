"""Draw docs/sample_world.jpg: six frames of every class of the sample world.

python scripts/sample_world_card.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from internvideo.sample_world.actions import ACTIONS, CATALOGUE, FAR_CLASSES, HELD_OUT_CLASSES, Part
from internvideo.sample_world.generate import WorldSettings, plan, render

TARGET = Path(__file__).parents[1] / "docs" / "sample_world.jpg"
SIDE, SHOWN, COLUMNS, LINE, GAP = 48, 6, 4, 14, 6


def strip(name: str, number: int) -> np.ndarray:
    """(SIDE, SHOWN * SIDE, 3) uint8: a clip of the class, of its own look and place."""
    clip = plan(WorldSettings(size=64, seed=1, difficulty=0.15), "train", number)
    (actor,) = clip.scene.actors
    parts = tuple(Part((name,), part.start, part.stop) for part in actor.parts)
    frames, _ = render(replace(clip.scene, actors=(replace(actor, parts=parts),)))
    chosen = frames[np.linspace(1, len(frames) - 2, SHOWN).astype(int)]
    return np.concatenate([np.asarray(Image.fromarray(frame).resize((SIDE, SIDE))) for frame in chosen], axis=1)


def main() -> None:
    """Write the picture."""
    names = list(CATALOGUE)
    rows = -(-len(names) // COLUMNS)
    width, height = SHOWN * SIDE + GAP, SIDE + LINE + GAP
    page = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for number, name in enumerate(names):
        kind = "" if name in ACTIONS else " (unseen, near)" if name in HELD_OUT_CLASSES else " (unseen, far)"
        assert name in ACTIONS or name in HELD_OUT_CLASSES or name in FAR_CLASSES
        x, y = number % COLUMNS * width, number // COLUMNS * height
        draw.text((x, y), name + kind, fill="black")
        page.paste(Image.fromarray(strip(name, number)), (x, y + LINE))
    page.save(TARGET, quality=72)
    print(f"{TARGET}: {TARGET.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
