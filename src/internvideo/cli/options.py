"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internvideo import untrusted
from internvideo.errors import RecipeError, VideoError
from internvideo.terminal import say

if TYPE_CHECKING:
    from internvideo.features.video_files import VideoFile
    from internvideo.inference.video_model import VideoModel

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
Labels = Annotated[str | None, typer.Option(help='Any texts, at least two: "cooking, playing tennis, a dog".')]
LabelsFile = Annotated[Path | None, typer.Option(help="Labels from a text file, one a line.")]
Classifier = Annotated[Path | None, typer.Option(help="A classifier written by `internvideo fit` on this encoder.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Also the folders inside folders.")]
Damage = Annotated[
    str | None,
    typer.Option(
        help="What becomes of damaged pictures: skip (left out, up to the next key frame), stop (the video ends), "
        "repeat (the picture before stands); by default INTERNVIDEO_DAMAGE, else skip.",
        callback=lambda damage: _hand_on(damage),
    ),
]
FrameRate = Annotated[
    float | None,
    typer.Option(
        help="Frames a second of folders of frames (00001.jpg, ...) that have no rate of their own in a manifest; by "
        "default INTERNVIDEO_FRAME_RATE.",
        callback=lambda rate: _hand_on_rate(rate),
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")]


def _hand_on(damage: str | None) -> str | None:
    """Tell the readers of this process and of its workers. Raises VideoError for another word."""
    from internvideo.video.damage import ENVIRONMENT, resolve_policy

    if damage is not None:
        os.environ[ENVIRONMENT] = resolve_policy(damage)
    return damage


def _hand_on_rate(rate: float | None) -> float | None:
    """Tell the readers of this process and of its workers. Raises VideoError for what is no rate."""
    from internvideo.video.frame_folder import ENVIRONMENT, parse_rate

    if rate is not None:
        os.environ[ENVIRONMENT] = str(parse_rate(rate, "--frame-rate"))
    return rate


def open_model(encoder: str, weights: str | None, device: str, precision: str) -> VideoModel:
    """The model that the options name. Raises WeightsError and RecipeError as `internvideo.load`."""
    from internvideo.inference.loading import load

    return load(encoder, weights=weights, device=device, precision=precision)  # type: ignore[arg-type]  # checked there


def read_labels(labels: str | None, labels_file: Path | None) -> list[str] | None:
    """The labels that were given, None for none. Raises RecipeError for a file that cannot be read."""
    if labels_file is not None:
        return text_lines(labels_file)
    return None if labels is None else [name.strip() for name in labels.split(",") if name.strip()]


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Numbers between commas. Raises RecipeError for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise RecipeError(option, repr(text), "whole numbers between commas, such as 4,5,6")
    return tuple(map(int, parts))


def unread(context: typer.Context, lacking: str, *names: str) -> None:
    """Raise RecipeError for an option that was given though what it belongs to is `lacking`, such as --data."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise RecipeError(f"--{name.replace('_', '-')}", f"without {lacking} it has no effect", f"with {lacking}")


def one_of(**given: object) -> None:
    """Raise RecipeError when more than one of some options is there."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise RecipeError(names[1], f"together with {names[0]}", "one of them")


def for_each(videos: list[VideoFile], do: Callable[[VideoFile], None]) -> None:
    """Do something with every video; one that cannot be read is told and does not stop the others.

    A piece that ends behind its video is told too.

    Raises:
        VideoError: at the end, when some could not be read.
    """
    from internvideo.features.windows import behind, open_long

    lost = 0
    for video in videos:
        try:
            if video.end is not None:
                with open_long(video.path, fps=video.fps) as opened:
                    if told := behind(opened.info, video.end):
                        say(f"{video.path}: {told}", err=True)
            do(video)
        except VideoError as error:
            if len(videos) == 1:
                raise
            lost += 1
            say(f"internvideo: {error}", err=True)
    if lost:
        raise VideoError("videos", f"{lost} of {len(videos)} could not be read")


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises RecipeError when it cannot be read."""
    try:
        lines = untrusted.read_text(path).splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(path, f"cannot be read: {reason}", "a text file, one label a line") from error
    return [line.strip() for line in lines if line.strip()]


def clock(start: float, end: float) -> str:
    """A piece of a video for people: 0:00:02.0-0:00:04.0."""
    return "-".join(_moment(seconds) for seconds in (start, end))


def _moment(seconds: float) -> str:
    tenths = round(seconds * 10)
    sign, tenths = ("-" if tenths < 0 else ""), abs(tenths)
    return f"{sign}{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"
