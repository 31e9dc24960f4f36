"""How much better one agent walks than another on the same episodes, with intervals over trajectories.

python scripts/navigation_gain.py FIRST/navigation.npz SECOND/navigation.npz -o gain.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from internvideo.metrics import bootstrap
from internvideo.tasks.navigation.predict import compute_walk_metrics, read_walks
from internvideo.tasks.navigation.world.instructions import goal_named_by_motion
from internvideo.tasks.table import Predictions


def main() -> None:
    """Write and print the differences of success and nDTW, and of success where motion alone tells the goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    tables = [Predictions.load(path) for path in (args.first, args.second)]
    agents = [np.flatnonzero(table["agent"] == 0) for table in tables]  # the trained one, before its baselines
    first, second = (table["trajectories"][own] for table, own in zip(tables, agents, strict=True))
    if not np.array_equal(first, second):
        parser.error("the two tables have other episodes")
    walks = [[compute_walk_metrics(*one) for one in read_walks(table)] for table in tables]
    ways = tables[0]["trajectories"][agents[0]]
    motion = np.asarray([goal_named_by_motion(str(text)) for text in tables[0]["instructions"][agents[0]]])
    every = np.ones(len(motion), bool)
    figures, intervals = {}, {}
    for name, key, chosen in (("SR", "SR", every), ("nDTW", "nDTW", every), ("SR_told_by_motion", "SR", motion)):
        ours, theirs = (
            np.asarray([rows[place][key] for place in own]) for rows, own in zip(walks, agents, strict=True)
        )
        gain = (ours - theirs)[chosen]
        figures[name] = float(gain.mean())
        low, high = bootstrap.interval(bootstrap.mean(gain), len(gain), groups=ways[chosen])
        intervals[name] = [float(low), float(high)]
        print(f"{name:18} {100 * figures[name]:+5.1f} ({100 * low:.1f} to {100 * high:.1f}), {len(gain)} episodes")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"figures": figures, "intervals": intervals}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
