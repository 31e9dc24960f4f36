"""Which facts of the sample world written captions tell rightly: colours, shapes, places and actions.

python scripts/caption_facts.py runs/captioning_test/captioning.npz WORLD/test.jsonl -o facts.json

An action counts by the longest of its phrases (the class name and three verbs) that stands in the sentence.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from internvideo.data.manifest import read_manifest
from internvideo.metrics import bootstrap
from internvideo.sample_world.actions import ACTIONS
from internvideo.sample_world.backgrounds import PLACES
from internvideo.sample_world.language import VERBS
from internvideo.sample_world.scene import COLORS, SHAPES
from internvideo.tasks.table import Predictions

PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {name: (name,) for name in COLORS},
    "shape": {name: (name,) for name in SHAPES},
    "place": {name: (name,) for name in PLACES},
    "action": {name: (name, *VERBS[name]) for name in ACTIONS},
}


def told(sentence: str, phrases: dict[str, tuple[str, ...]]) -> str | None:
    """The value whose longest phrase stands in the sentence; None where none does."""
    padded = f" {sentence} "
    found = [(len(phrase), name) for name, all_of in phrases.items() for phrase in all_of if f" {phrase} " in padded]
    return max(found)[1] if found else None


def main() -> None:
    """Write and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    table = Predictions.load(args.table)
    rows = {row.id: row for row in read_manifest(args.manifest).rows}
    figures: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for fact, phrases in PHRASES.items():
        pairs = zip(table["ids"], table["written"], strict=True)
        right = np.asarray([told(str(said), phrases) == rows[str(name)].attributes[fact] for name, said in pairs])
        figures[fact] = float(right.mean())
        low, high = bootstrap.interval(bootstrap.mean(right), len(right))
        intervals[fact] = [float(low), float(high)]
        spread = f"({100 * low:.1f} to {100 * high:.1f}), chance {100 / len(phrases):.1f}"
        print(f"{fact:8} {100 * figures[fact]:5.1f} {spread}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"figures": figures, "intervals": intervals}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
