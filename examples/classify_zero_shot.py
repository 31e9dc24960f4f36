"""Say which of some texts fits each video best; nothing is trained.

    python examples/classify_zero_shot.py MODEL "juggling, playing chess, a dog" one.mp4 two.mp4

MODEL needs a text tower. Each label is put into the 16 sentences of the published test, whose probabilities are
averaged. They say which of these labels, not whether any of them: add one for "something else".
"""

import argparse

from internvideo import load
from internvideo.errors import InternVideoError


def main() -> None:
    """Read the arguments, classify, print the likeliest labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("labels", help="at least two, with commas between")
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--weights", help="of a model that is given by its name")
    parser.add_argument("--top", type=int, default=3)
    given = parser.parse_args()
    labels = [label.strip() for label in given.labels.split(",") if label.strip()]
    try:
        model = load(given.model, weights=given.weights)
        answers = model.classify(given.videos, labels)
    except InternVideoError as error:
        parser.exit(2, f"{error}\n")
    for video, answer in zip(given.videos, answers, strict=True):
        likeliest = list(answer.items())[: given.top]
        print(f"{video}: " + ", ".join(f"{label} {share:.2f}" for label, share in likeliest))


if __name__ == "__main__":
    main()
