"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internvideo.errors import RecipeError

if TYPE_CHECKING:
    from internvideo.apps.video_model import VideoModel

Encoder = Annotated[
    str,
    typer.Option(
        "--encoder",
        "-e",
        help="The model: a folder or .safetensors file, hf://ORGANISATION/REPOSITORY, or a name of "
        "`internvideo list models` with --weights.",
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="With the name of a model: its .safetensors file, hf:// or https://.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Window = Annotated[float | None, typer.Option(help="Seconds; without it the whole video is one clip.")]
Stride = Annotated[float | None, typer.Option(help="Seconds from one window to the next; by default the window.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")]


def open_model(encoder: str, weights: str | None, device: str, precision: str) -> VideoModel:
    """The model that the options name. Raises WeightsError and RecipeError as `internvideo.load`."""
    from internvideo.apps.door import load

    return load(encoder, weights=weights, device=device, precision=precision)  # type: ignore[arg-type]  # checked there


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises RecipeError when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text"
        raise RecipeError(path, f"cannot be read: {reason}", "a text file, one label a line") from error
    return [line.strip() for line in lines if line.strip()]


def clock(start: float, end: float) -> str:
    """A piece of a video for people: 0:00:02.0-0:00:04.0."""
    return "-".join(_moment(seconds) for seconds in (start, end))


def _moment(seconds: float) -> str:
    tenths = round(seconds * 10)
    sign, tenths = ("-" if tenths < 0 else ""), abs(tenths)
    return f"{sign}{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"
