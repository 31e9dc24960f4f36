"""One vector for every window of every video in a folder, from Python; `internvideo embed` does the same.

    python examples/embed_folder.py MODEL videos/ vectors.npy --window-seconds 2

MODEL is a folder, a .safetensors file, hf://ORGANISATION/REPOSITORY, or a name of `internvideo list models` with
--weights. Run it again after adding videos: only the new ones are read. `examples/search_text.py` searches the result.
"""

import argparse
from pathlib import Path

from internvideo import load
from internvideo.errors import InternVideoError
from internvideo.features.embedding import EmbeddingSettings, embed
from internvideo.features.video_files import find_videos


def main() -> None:
    """Read the arguments, embed, say what was read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("videos", type=Path, help="a folder, a file or a manifest")
    parser.add_argument("output", type=Path, help="NAME.npy (with NAME.jsonl) or NAME.parquet")
    parser.add_argument("--weights", help="of a model that is given by its name")
    parser.add_argument("--window-seconds", type=float, help="without it one vector per video")
    given = parser.parse_args()
    try:
        model = load(given.model, weights=given.weights)
        videos = find_videos([given.videos], recursive=True)
        report = embed(videos, model, given.output, EmbeddingSettings(window_seconds=given.window_seconds))
    except InternVideoError as error:
        parser.exit(2, f"{error}\n")
    print(f"{report.vectors} vectors of {report.requested - len(report.unreadable)} videos in {given.output}")
    for lost in report.unreadable:
        print(f"not read: {lost.path}: {lost.reason}")


if __name__ == "__main__":
    main()
