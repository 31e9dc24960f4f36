"""Name videos with a classifier of one's own, which `internvideo fit` has written; "unknown" is an answer too.

internvideo fit my_folders -e MODEL -o mine
python examples/own_classes.py MODEL mine/classifier.safetensors one.mp4 two.mp4
"""

import argparse
from pathlib import Path

from internvideo import load
from internvideo.errors import InternVideoError
from internvideo.probing.probe import Probe


def main() -> None:
    """Read the arguments, check that classifier and model belong together, print the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("classifier", type=Path)
    parser.add_argument("videos", nargs="+")
    given = parser.parse_args()
    try:
        answers = Probe.load(given.classifier).classify(load(given.model), given.videos)
    except InternVideoError as error:
        parser.exit(2, f"{error}\n")
    for video, answer in zip(given.videos, answers, strict=True):
        label, share = next(iter(answer.items()))
        print(f"{video}: {label} {share:.2f}")


if __name__ == "__main__":
    main()
