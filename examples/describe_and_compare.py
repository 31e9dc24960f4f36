"""Say what a video shows in a sentence, and how alike two videos are.

    python examples/describe_and_compare.py MODEL one.mp4 another.mp4

MODEL needs a caption decoder for the sentence; without one only the cosine is printed.
"""

import argparse

from internvideo import load
from internvideo.errors import InternVideoError


def main() -> None:
    """Read the arguments, caption the first video, compare both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--weights", help="of a model that is given by its name")
    parser.add_argument("--num-beams", type=int, default=1)
    given = parser.parse_args()
    try:
        model = load(given.model, weights=given.weights)
        if "caption" in model.capabilities:
            print(f"{given.first}: {model.caption(given.first, num_beams=given.num_beams)[0]}")
        vectors = model.encode_video([given.first, given.second])
    except InternVideoError as error:
        parser.exit(2, f"{error}\n")
    print(f"cosine {model.similarity(vectors[:1], vectors[1:]).item():.3f}")


if __name__ == "__main__":
    main()
