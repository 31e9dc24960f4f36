"""Export a model to ONNX and embed a video with ONNX Runtime, as a program without this package would.

python examples/export_onnx.py MODEL VIDEO encoder.onnx       MODEL: a folder or .safetensors file, hf://..., https://...
"""

import argparse
import json
from pathlib import Path

import numpy as np

import internvideo
from internvideo.errors import InternVideoError
from internvideo.inference.export import ExportSettings, export


def main() -> None:
    """Export, describe, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `internvideo.load` opens")
    parser.add_argument("video", type=Path, help="a video file")
    parser.add_argument("output", type=Path, help="the .onnx file to write")
    given = parser.parse_args()

    try:
        model = internvideo.load(given.model, device="cpu")
        made = export(model, given.output, ExportSettings(format="onnx", int8=True), video=given.video)
    except InternVideoError as error:
        parser.exit(2, f"{error}\n")
    print(f"{made.path}: at most {made.worst.relative:.1e} of the largest number away from the model")
    print(f"{made.int8}: cosine to the model at least {made.cosine:.4f}")

    # From here on only the file and its description are needed, and clips cut by the same rule.
    about = json.loads(made.metadata.read_text(encoding="utf-8"))
    print(f"input {about['input']}, output {about['output']}")
    clip = next(iter(model.read(given.video))).numpy()  # (1, 3, T, S, S), pixels 0..255
    import onnxruntime  # without it `export` has told the command that installs it

    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    (features,) = session.run([about["output"]["name"]], {about["input"]["name"]: np.concatenate([clip, clip])})
    features /= np.linalg.norm(features, axis=1, keepdims=True)

    own = model.encode_video(given.video).numpy()
    print(f"cosine of ONNX Runtime's embedding with the model's: {float(features[0] @ own[0]):.6f}")


if __name__ == "__main__":
    main()
