"""`internvideo compare`: print the cosine similarity of two videos, or of a video and a text."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from internvideo.cli.options import Damage, Device, Encoder, FrameRate, Json, Precision, Weights, open_model
from internvideo.errors import VideoError
from internvideo.terminal import tell

VIDEOS = "1 is the same to the model, 0 unrelated; what counts as alike, tell from a few pairs that you know"
MIXED = "a text and its video are far below 1 as a rule: compare several texts instead of reading one number alone"


def compare(
    first: Annotated[str, typer.Argument(help="A video file, or with --text a text.")],
    second: Annotated[str, typer.Argument(help="The same.")],
    encoder: Encoder,
    weights: Weights = None,
    text: Annotated[bool, typer.Option("--text", help="Treat an argument that is not a file as text.")] = False,
    as_json: Json = False,
    device: Device = "auto",
    damage: Damage = None,
    frame_rate: FrameRate = None,
    precision: Precision = "float32",
) -> None:
    """Print the cosine of two embeddings: of two videos, or with --text of a video and a text, or of two texts."""
    from internvideo.data.lists import holds_frames
    from internvideo.inference.video_model import VideoModel

    sides = (first, second)
    # Unlike Path's, isfile knows a long text for no file.
    files = [os.path.isfile(side) or (os.path.isdir(side) and holds_frames(side, os.listdir(side))) for side in sides]
    if not text and not all(files):
        side = sides[files.index(False)]
        if os.path.isdir(side):
            raise VideoError(side, "is a folder", "two video files, or folders of frames")
        raise VideoError(side, "no such file", "", "for texts add --text")
    model: VideoModel = open_model(encoder, weights, device, precision)
    one, other = (
        model.encode_video(side) if is_file else model.encode_text(side)
        for side, is_file in zip(sides, files, strict=True)
    )
    cosine = float(one[0] @ other[0])
    kinds = ["video" if is_file else "text" for is_file in files]
    record = {"first": first, "second": second, "kinds": kinds, "cosine": cosine}
    about = VIDEOS if kinds[0] == kinds[1] else MIXED
    tell(record, f"cosine of {kinds[0]} and {kinds[1]}: {cosine:.4f} ({about})")
