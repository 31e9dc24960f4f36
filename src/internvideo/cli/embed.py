"""`internvideo embed`: write one vector per video or window."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli import options
from internvideo.terminal import tell


def embed(
    inputs: options.Inputs,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Output: NAME.parquet, NAME.lance, or NAME.npy with NAME.jsonl.")
    ],
    encoder: options.Encoder,
    weights: options.Weights = None,
    window_seconds: Annotated[
        float | None, typer.Option(help="Length of a window: one vector per window; by default one per video.")
    ] = None,
    stride_seconds: options.StrideSeconds = None,
    recursive: options.Recursive = False,
    normalize: Annotated[bool, typer.Option(help="L2-normalize the vectors.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per batch.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes; 0 decodes in a thread of this process.")] = 0,
    ray: options.Ray = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    device: options.Device = "auto",
    damage: options.Damage = None,
    frame_rate: options.FrameRate = None,
    precision: options.Precision = "float32",
    as_json: options.Json = False,
) -> None:
    """Write one vector per video, or per window of it.

    After an interruption the same command resumes, and later commands skip finished videos (kept in OUTPUT.parts).
    Unreadable files are listed in NAME.skipped.jsonl.
    """
    from internvideo.features.embedding import EmbeddingSettings, embed, plan
    from internvideo.features.video_files import find_videos

    settings = EmbeddingSettings(window_seconds, stride_seconds, normalize, batch_size, workers, ray)
    videos = find_videos(inputs, recursive=recursive)
    if dry_run:
        for line in plan(videos, output, overwrite=overwrite):
            tell({"plan": line}, line)
        return
    model = options.open_model(encoder, weights, device, precision)
    report = embed(videos, model, output, settings, overwrite=overwrite)
    num_read = report.requested - len(report.unreadable)
    resumed = f", {report.resumed} of them resumed" if report.resumed else ""
    vectors = f"{output}: {report.vectors} vectors of dimension {report.dim} from {num_read} videos{resumed}"
    truncated = len(report.truncated)
    summary = f"read: {num_read} of {report.requested} videos" + (f", {truncated} of them in part" if truncated else "")
    skipped = f"; see {output.with_suffix('.skipped.jsonl')}" if truncated or report.unreadable else ""
    speed = (f"speed: {report.throughput}",) if report.throughput else ()
    record = {
        "output": output, "vectors": report.vectors, "dim": report.dim, "videos": report.requested, "read": num_read,
        "resumed": report.resumed, "in_part": truncated, "seconds": report.seconds,
    }  # fmt: skip
    tell(record, vectors, summary + skipped, *speed)
