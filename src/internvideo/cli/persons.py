"""`internvideo persons`: detect persons at key frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import Damage, Device, FrameRate, Json
from internvideo.terminal import LOGGER, tell


def persons(
    manifest: Annotated[Path, typer.Argument(help="Manifest with key frames: its rows have boxes.")],
    detector: Annotated[
        str,
        typer.Option(
            "--detector", "-d", help="Folder of a transformers detector (DETR family), or hf://ORG/REPOSITORY."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="CSV of boxes, for `evaluate spatio_temporal_localization`.")
    ],
    split: Annotated[str | None, typer.Option(help="Only rows of this split.")] = None,
    score_threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out boxes below this score.")] = 0.1,
    device: Device = "auto",
    damage: Damage = None,
    frame_rate: FrameRate = None,
    as_json: Json = False,
) -> None:
    """Detect persons at the key frames of a manifest with a detector of the transformers package."""
    from internvideo.apps.persons import PersonDetector, find_persons, write_persons
    from internvideo.data.manifest import read_manifest
    from internvideo.distributed import choose_device
    from internvideo.errors import VideoError

    rows = read_manifest(manifest).with_notes_logged()
    if split is not None:
        rows = rows.subset(split=split)
    found = find_persons(rows, PersonDetector(detector, choose_device(device)), score_threshold=score_threshold)
    for path, reason in found.unreadable:
        LOGGER.error(f"unreadable: {path}: {reason}")
    for name in found.late:
        LOGGER.warning(f"the span of {name} ends after its video and is read up to its end")
    if not found.read:
        raise VideoError(manifest, "not one key frame could be read", "", "check that the videos lie there")
    write_persons(found, output)
    lost = f"{len(found.unreadable)} videos unreadable"
    record = {"output": output, "boxes": len(found.rows), "key_frames": found.read, "unreadable": len(found.unreadable)}
    tell(record, f"{output}: {len(found.rows)} boxes at {found.read} key frames, {lost}")
