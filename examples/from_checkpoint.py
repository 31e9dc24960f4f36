"""Take a published checkpoint into use: convert it without trusting it, open it, keep it as a folder of one's own.

python examples/from_checkpoint.py InternVideo-MM-L-14.ckpt mm --licence apache-2.0
"""

import argparse
from pathlib import Path

from internvideo import load
from internvideo.errors import InternVideoError
from internvideo.weights.convert import convert


def main() -> None:
    """Read the arguments, convert, load strictly, save in the hub's layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a .pth, .pt, .bin or .ckpt file")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--licence", help="for the model card; by default what the publisher of such files states")
    given = parser.parse_args()
    try:
        converted = convert(given.checkpoint, given.folder.with_suffix(".safetensors"))
        model = load(converted.output)
        if given.licence:
            model.metadata |= {"licence": given.licence, "licence_stated": "as given"}
        model.save_pretrained(given.folder)
    except InternVideoError as error:
        parser.exit(2, f"{error}\n")
    print(f"{given.folder}: {model.name}, {converted.tensors} tensors; it can {', '.join(sorted(model.capabilities))}")


if __name__ == "__main__":
    main()
