"""Define the options that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internvideo import untrusted
from internvideo.errors import RecipeError, VideoError
from internvideo.terminal import LOGGER, results_as_json, say

if TYPE_CHECKING:
    from internvideo.features.read_report import ReadReport
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
WindowSeconds = Annotated[
    float | None, typer.Option(help="Length of a window; without it the whole video is one clip.")
]
StrideSeconds = Annotated[float | None, typer.Option(help="From one window to the next; by default its length.")]
Labels = Annotated[str | None, typer.Option(help='Two or more texts: "cooking, playing tennis, a dog".')]
LabelsFile = Annotated[Path | None, typer.Option(help="Text file of labels, one per line; - for standard input.")]
Classifier = Annotated[Path | None, typer.Option(help="A classifier written by `internvideo fit` on this encoder.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Search subfolders too.")]
Damage = Annotated[
    str | None,
    typer.Option(
        help="Policy for damaged frames: skip (leave out up to the next key frame), stop (end the video) or "
        "repeat (the frame before); by default INTERNVIDEO_DAMAGE, else skip.",
        callback=lambda damage: _set_damage(damage),
    ),
]
FrameRate = Annotated[
    float | None,
    typer.Option(
        help="Frames per second of folders of frames (00001.jpg, ...) whose manifest gives none; by default "
        "INTERNVIDEO_FRAME_RATE.",
        callback=lambda rate: _set_frame_rate(rate),
    ),
]
Inputs = Annotated[
    list[Path], typer.Argument(help="Video files, folders of them, or manifests; - reads names from standard input.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Address of a Ray cluster to run on (auto, HOST:PORT, ray://HOST:PORT), or local to start one here."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Recompute finished videos instead of resuming.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the videos that would be read, without reading them.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object per line instead of text.",
        callback=lambda enable: results_as_json(bool(enable)) or enable,
    ),
]


def _set_damage(damage: str | None) -> str | None:
    """Set the policy for this process and its workers. Raises VideoError for an unknown policy."""
    from internvideo.video.damage import ENVIRONMENT, resolve_policy

    if damage is not None:
        os.environ[ENVIRONMENT] = resolve_policy(damage)
    return damage


def _set_frame_rate(rate: float | None) -> float | None:
    """Set the frame rate for this process and its workers. Raises VideoError for an invalid rate."""
    from internvideo.video.frame_folder import ENVIRONMENT, parse_rate

    if rate is not None:
        os.environ[ENVIRONMENT] = str(parse_rate(rate, "--frame-rate"))
    return rate


def open_model(encoder: str, weights: str | None, device: str, precision: str) -> VideoModel:
    """Load the model of the options --encoder and --weights. Raises WeightsError, RecipeError as `internvideo.load`."""
    from internvideo.inference.loading import load

    return load(encoder, weights=weights, device=device, precision=precision)  # type: ignore[arg-type]  # checked there


def read_labels(labels: str | None, labels_file: Path | None) -> list[str] | None:
    """Return the labels of the options --labels or --labels-file, None without. RecipeError for an unreadable file."""
    if labels_file is not None:
        return text_lines(labels_file)
    return None if labels is None else [name.strip() for name in labels.split(",") if name.strip()]


def parse_integers(option: str, text: str) -> tuple[int, ...]:
    """Parse comma-separated integers of 0 or more. Raises RecipeError for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise RecipeError(option, repr(text), "comma-separated whole numbers, such as 4,5,6")
    return tuple(map(int, parts))


def parse_numbers(option: str, text: str, expected: str) -> list[float]:
    """Parse numbers separated by commas or spaces. Raises RecipeError for anything else."""
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise RecipeError(option, repr(text), expected) from error


def refuse_unused(context: typer.Context, required: str, *names: str) -> None:
    """Raise RecipeError for an option on the command line that has no effect without `required`, such as --data."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise RecipeError(f"--{name.replace('_', '-')}", f"without {required} it has no effect", f"with {required}")


def refuse_together(**given: object) -> None:
    """Raise RecipeError if more than one of these options is given."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise RecipeError(names[1], f"together with {names[0]}", "one of them")


def for_each(videos: list[VideoFile], function: Callable[[VideoFile], None]) -> None:
    """Call `function` with every video; unreadable videos, and spans that end after their video, are reported.

    Raises:
        VideoError: the only video cannot be read; of several, at the end, if some could not be.
    """
    from internvideo.features.windows import open_long_video, past_end_message

    num_failed = 0
    for video in videos:
        try:
            if video.end is not None:
                with open_long_video(video.path, fps=video.fps) as opened:
                    if message := past_end_message(opened.info, video.end):
                        LOGGER.warning(f"{video.path}: {message}")
            function(video)
        except VideoError as error:
            if len(videos) == 1:
                raise
            num_failed += 1
            say(f"internvideo: {error}", err=True)
    if num_failed:
        raise VideoError("videos", f"{num_failed} of {len(videos)} could not be read")


def say_failures(report: ReadReport) -> None:
    """Log the videos that were read in part or not at all."""
    for failure in report.truncated:
        LOGGER.warning(f"read in part: {failure.path}: {failure.reason}")
    for failure in report.unreadable:
        LOGGER.error(f"unreadable: {failure.path}: {failure.reason}")


def named_files(files: Sequence[str | Path]) -> list[str]:
    """Return the files, with "-" replaced by the names on standard input, one per line."""
    return [name for file in files for name in (text_lines(Path("-")) if str(file) == "-" else [str(file)])]


def text_lines(path: Path) -> list[str]:
    """Read the lines that are not blank of a text file, "-" for standard input. Raises RecipeError if unreadable."""
    try:
        lines = (sys.stdin.read() if str(path) == "-" else untrusted.read_text(path)).splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(path, f"cannot be read: {reason}", "a text file, one entry per line") from error
    return [line.strip() for line in lines if line.strip()]


def clock(start: float, end: float) -> str:
    """Format a span of seconds: 0:00:02.0-0:00:04.0."""
    return "-".join(_clock_time(seconds) for seconds in (start, end))


def _clock_time(seconds: float) -> str:
    tenths = round(seconds * 10)
    sign, tenths = ("-" if tenths < 0 else ""), abs(tenths)
    return f"{sign}{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"
