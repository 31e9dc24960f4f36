"""Hold whole families of actions out of the sample world: manifests for an open set without relatives of its unknowns.

python scripts/open_set_families.py WORLD OUTPUT

Bouncing, shaking and blinking are left out: no other class moves like them. (Zigzagging goes along a line as moving
does, and every clip begins and ends standing still.) OUTPUT gets train.jsonl of the other 24 classes, and
open_set.jsonl: the test clips, those of the left-out classes without a label (`known`: no, `novelty`: far).
"""

from __future__ import annotations

import sys
from pathlib import Path

from internvideo.data.manifest import Sample, read_manifest, write_manifest
from internvideo.sample_world.actions import ACTIONS

LEFT_OUT = ("bouncing once", "bouncing twice", "shaking", "blinking")
KNOWN = tuple(name for name in ACTIONS if name not in LEFT_OUT)


def main() -> None:
    """Write both manifests; the videos stay where they are."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    world, output = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    for name, source in (("train", "train"), ("open_set", "test")):
        rows = [labelled(row, world) for row in read_manifest(world / f"{source}.jsonl").rows]
        kept = [row for row in rows if row.label is not None or name == "open_set"]
        write_manifest(output / f"{name}.jsonl", kept, KNOWN)
        print(f"{name}: {len(kept)} clips, {sum(row.label is None for row in kept)} of unknown actions")


def labelled(row: Sample, world: Path) -> Sample:
    """The row with the index of its class among the known ones, or none."""
    action = row.attributes["action"]
    known = action in KNOWN
    facts = {"known": "yes"} if known else {"known": "no", "novelty": "far"}
    return row.model_copy(
        update={
            "path": str(world / row.path),
            "label": KNOWN.index(action) if known else None,
            "attributes": {**row.attributes, **facts},
        }
    )


if __name__ == "__main__":
    main()
