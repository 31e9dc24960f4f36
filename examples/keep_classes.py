"""Cut a classifier's head to the classes of another set, by name: Kinetics-710 -> Kinetics-400, 600 or 700.

    python examples/keep_classes.py runs/supervised_masked/model.safetensors k400_classes.txt k400_head.safetensors

The result starts a fine-tuning: `init.weights=k400_head.safetensors`. The heads are `head` (VideoMAE) and `proj.linear`
(UniFormerV2, the default where it is found). `--fresh` gives classes that are not in the old head a small random row.
"""

import argparse
import json
from pathlib import Path

import torch

from internvideo.errors import InternVideoError, WeightsError
from internvideo.storage import read_safetensors, write_safetensors
from internvideo.weights.state import select_head_rows


def cut_head(source: Path, names: list[str], output: Path, *, fresh: bool = False) -> int:
    """Write `source` with a head of the classes `names`, in their order; returns how many of them were drawn afresh.

    Raises WeightsError: a class that the old head does not know (unless `fresh`), or no head at all.
    """
    state, metadata = read_safetensors(source)
    old = {name: row for row, name in enumerate(json.loads(metadata.get("classes", "[]")))}
    head = "proj.linear" if "proj.linear.weight" in state else "head"
    unknown = [name for name in names if name not in old]
    if unknown and not fresh:
        raise WeightsError(
            source, f"{len(unknown)} classes are not in the head, such as '{unknown[0]}'", "", "add --fresh"
        )
    chosen = select_head_rows(state, [old.get(name, 0) for name in names], head)
    for row, name in enumerate(names):
        if name not in old:
            torch.nn.init.normal_(chosen[f"{head}.weight"][row], std=0.02)
            chosen[f"{head}.bias"][row] = 0.0
    write_safetensors(output, chosen, {**metadata, "classes": json.dumps(names)})
    return len(unknown)


def main() -> None:
    """Read the arguments, cut the head, say what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a model.safetensors written by `internvideo train`")
    parser.add_argument("classes", type=Path, help="text file, one class name a line, in the order of the new labels")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument("--fresh", action="store_true", help="draw the rows of unknown classes afresh")
    given = parser.parse_args()
    names = [line.strip() for line in given.classes.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        drawn = cut_head(given.weights, names, given.output, fresh=given.fresh)
    except InternVideoError as error:
        parser.exit(2, f"{error}\n")
    print(f"{given.output}: {len(names)} classes, {drawn} of them drawn afresh")


if __name__ == "__main__":
    main()
