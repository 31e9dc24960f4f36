"""Find the pieces of videos that a text describes, in the vectors of `internvideo embed` or embed_folder.py.

    python examples/search_text.py MODEL vectors.npy "a red circle falls" --top 5

MODEL is the one that made the vectors, and needs a text tower.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from internvideo import load
from internvideo.errors import InternVideoError


def main() -> None:
    """Read the vectors, encode the text, print the nearest pieces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("vectors", type=Path, help="NAME.npy, with NAME.jsonl beside it")
    parser.add_argument("text")
    parser.add_argument("--weights", help="of a model that is given by its name")
    parser.add_argument("--top", type=int, default=5)
    given = parser.parse_args()
    vectors = np.load(given.vectors, mmap_mode="r")
    rows = [json.loads(line) for line in given.vectors.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    protocol = json.loads(given.vectors.with_suffix(".protocol.json").read_text(encoding="utf-8"))
    try:
        model = load(given.model, weights=given.weights)
        if model.metadata["weights_sha256"] != protocol["weights_sha256"]:
            parser.exit(2, f"{given.vectors} was made by {protocol['model']} with other weights\n")
        query = model.encode_text(given.text)[0].numpy()
    except InternVideoError as error:
        parser.exit(2, f"{error}\n")
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1)
    for place in np.argsort(-cosines)[: given.top]:
        row = rows[place]
        print(f"{cosines[place]:.3f}  {row['path']}  {row['start']:.1f}-{row['end']:.1f} s")


if __name__ == "__main__":
    main()
