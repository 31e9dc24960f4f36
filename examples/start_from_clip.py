"""Write the starting weights of a multimodal encoder from a CLIP checkpoint, for `init.weights=` of a recipe.

internvideo convert ViT-L-14.pt -o clip.safetensors
python examples/start_from_clip.py clip.safetensors clip_l14.safetensors
python examples/start_from_clip.py clip.safetensors clip_l14_ssv2.safetensors --model uniformerv2-l14-ssv2 --classes 174
"""

import argparse
from pathlib import Path

from internvideo.errors import InternVideoError
from internvideo.model_table import create_model
from internvideo.storage import read_safetensors
from internvideo.weights.clip_import import from_clip
from internvideo.weights.state import save_model


def main() -> None:
    """Read the arguments, build the model, fill it from CLIP, save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, help="CLIP's weights, converted to safetensors")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument(
        "--model", default="internvideo-mm-l14-caption", help="a multimodal name of `internvideo list models`"
    )
    parser.add_argument("--classes", type=int, help="of a classifier; its head stays as drawn")
    given = parser.parse_args()
    try:
        model = create_model(given.model, {"num_classes": given.classes} if given.classes else None)
        told = from_clip(model, read_safetensors(given.clip)[0], where=given.clip)
        save_model(given.output, model)
    except InternVideoError as error:
        parser.exit(2, f"{error}\n")
    print(told)


if __name__ == "__main__":
    main()
