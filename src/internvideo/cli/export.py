"""`internvideo export`: export a model to ONNX or torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from internvideo.cli.options import Json
from internvideo.terminal import tell


def export(
    model: Annotated[str, typer.Argument(help="What `internvideo.load` opens: a folder, a file, a name, an address.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The .onnx or .pt2 file; by default named after the model.")
    ] = None,
    format: Annotated[str, typer.Option(help="onnx, or torch (torch.export).")] = "onnx",
    what: Annotated[
        str, typer.Option(help="video (clips to features), text (ids to features) or classifier (clips to logits).")
    ] = "video",
    weights: Annotated[str | None, typer.Option(help="With the name of a model: file, folder, address.")] = None,
    batch: Annotated[str, typer.Option(help="dynamic (any number of clips) or a number.")] = "dynamic",
    frames: Annotated[
        str, typer.Option(help="auto (any number where the model allows it), dynamic, or a number.")
    ] = "auto",
    opset: Annotated[int | None, typer.Option(help="ONNX operator set; by default the exporter's own.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference from the model, over the largest number of its output.")
    ] = 1e-4,
    int8: Annotated[bool, typer.Option("--int8", help="Also write OUTPUT.int8.onnx with 8-bit weights.")] = False,
    video: Annotated[Path | None, typer.Option(help="A video to compare on, besides random clips.")] = None,
    as_json: Json = False,
) -> None:
    """Export a model to one file, reload it and compare the outputs; beyond the tolerance the file is deleted.

    The file takes clips of 0..255 (batch, 3, frames, size, size) and normalizes them itself. A JSON file beside it
    records inputs, preprocessing, hashes and the measured differences.
    """
    from internvideo.inference.export import ExportSettings
    from internvideo.inference.export import export as write
    from internvideo.inference.loading import load

    settings: Any = {"format": format, "what": what, "opset": opset, "tolerance": tolerance, "int8": int8}
    settings["batch"] = None if batch == "dynamic" else _number(batch, "batch", ("dynamic",))
    settings["frames"] = _number(frames, "frames", ("auto", "dynamic"))
    made = write(load(model, weights=weights, device="cpu"), output, ExportSettings(**settings), video=video)
    checks = [
        f"{check.input} {' x '.join(map(str, check.shape))}: largest difference {check.error:.3g}, output up to "
        f"{check.largest:.3g}"
        for check in made.checks
    ]
    small = [f"int8: {made.int8}, smallest cosine to the model {made.cosine:.5f}"] if made.int8 is not None else []
    record = {
        "model": made.path, "difference": made.worst.relative, "allowed": tolerance, "int8": made.int8,
        "int8_cosine": made.cosine, "description": made.metadata,
    }  # fmt: skip
    worst = f"largest difference {made.worst.relative:.3g} of the largest number, allowed {tolerance:g}"
    tell(record, *checks, worst, f"model: {made.path}", *small, f"description: {made.metadata}")


def _number(text: str, where: str, words: tuple[str, ...]) -> int | str:
    """Parse a number or one of the words. Raises RecipeError for anything else."""
    from internvideo.errors import RecipeError

    if text in words:
        return text
    if not text.isdecimal():
        raise RecipeError(where, repr(text), f"{', '.join(words)} or a number")
    return int(text)
