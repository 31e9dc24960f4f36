"""`internvideo prepare` and `internvideo pack`: annotation files to manifests, and their videos to tar shards."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import Json, refuse_unused
from internvideo.terminal import say, tell


def prepare(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="A name of `internvideo list benchmarks`.")],
    annotations: Annotated[Path, typer.Option(help="The official annotation file, or the folder of them.")],
    videos: Annotated[
        Path | None, typer.Option(help="The folder of the videos; by default none are searched for.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the manifests; by default runs/prepare/BENCHMARK.")
    ] = None,
    check_videos: Annotated[bool, typer.Option("--check-videos", help="Open every video too.")] = False,
    offset: Annotated[
        float,
        typer.Option(
            min=0.0, help="Start of the video files within the original films, in seconds (AVA's often start at 900)."
        ),
    ] = 0.0,
    frame_rate: Annotated[
        float | None, typer.Option(help="Frames per second of folders of frames; by default as published.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that open videos; by default a few.")] = None,
    as_json: Json = False,
) -> None:
    """Write the manifests of a benchmark, one per split, from its official annotation files.

    Prints the numbers of present, missing and unreadable videos, a fingerprint of each split, and all differences from
    the official release.
    """
    from internvideo.datasets.prepare import prepare as prepare_benchmark

    if videos is None:
        refuse_unused(context, "--videos", "check_videos", "workers")
    folder = output or Path("runs/prepare") / benchmark
    report = prepare_benchmark(
        benchmark, annotations, folder, videos=videos, check_videos=check_videos, offset=offset,
        frame_rate=frame_rate, workers=workers, log=say,
    )  # fmt: skip
    tell({"manifests": folder, **asdict(report)}, f"manifests: {folder}")


def pack(
    manifest: Annotated[Path, typer.Argument(help="A manifest, a list, a table or a folder of videos.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the shards and of their manifest.")],
    split: Annotated[str | None, typer.Option(help="Only rows of this split.")] = None,
    short_side: Annotated[
        int | None, typer.Option(min=16, max=8192, help="Transcode: pixels of the shorter side at most.")
    ] = None,
    key_frames: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Transcode: frames between key frames at most.")
    ] = None,
    crf: Annotated[
        int | None,
        typer.Option(min=0, max=51, help="Constant quality of x264 for transcoding, 0 is best; by default 20."),
    ] = None,
    shard_mib: Annotated[
        float, typer.Option("--shard-mib", "--shard-megabytes", min=0.001, help="Size at which a shard ends, in MiB.")
    ] = 512.0,
    shard_url: Annotated[
        str | None,
        typer.Option(
            "--shard-url", "--address", help="URL of the folder to which the shards will be moved: s3://bucket/folder."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Threads that read and transcode videos.")] = 2,
    as_json: Json = False,
) -> None:
    """Pack the videos of a manifest into tar shards (webdataset's layout) that the loaders read.

    Without --short-side and --key-frames videos are packed unchanged, and batches equal those of the files. Writes
    manifest.jsonl, report.json and, if videos cannot be read, unreadable.jsonl. An interrupted command resumes.
    """
    from internvideo.data.manifest import read_manifest
    from internvideo.data.packing.pack import PackSettings
    from internvideo.data.packing.pack import pack as pack_videos
    from internvideo.errors import RecipeError

    if crf is not None and short_side is None and key_frames is None:
        raise RecipeError("--crf", str(crf), "with --short-side or --key-frames", "nothing is transcoded without them")
    rows = read_manifest(manifest).with_notes_logged()
    settings = PackSettings(short_side, key_frames, 20 if crf is None else crf, shard_mib, shard_url)
    report = pack_videos(rows if split is None else rows.subset(split), output, settings, workers=workers, log=say)
    failed = f"; {len(report.unreadable)} rows unreadable: {output / 'unreadable.jsonl'}" if report.unreadable else ""
    kept = f", {report.kept} not (variable frame rate, or a first frame after 0 s)" if report.kept else ""
    packed = f"{report.videos} videos ({report.transcoded} transcoded{kept}) in {report.shards} shards"
    line = f"{output / 'manifest.jsonl'}: {report.rows} rows, {packed}, {report.bytes_written / 2**20:.1f} MiB{failed}"
    tell({"manifest": output / "manifest.jsonl", **asdict(report)}, line)
