"""Odd videos found in the wild: a folder with a manifest.csv, named by INTERNVIDEO_ODD; nothing is here without it.

Columns used: file, expect (ok: decodes to the end; partial: some frames, then an error; reject: no frame can be had),
width, height, frames, frames_skipping_errors, first_t, last_t (of `frames`), rotation (degrees, counter-clockwise).
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from internvideo.errors import VideoError
from internvideo.video.reader import Video, read_video_info

FOLDER = os.environ.get("INTERNVIDEO_ODD", "")
ROWS: list[dict[str, str]] = []
if FOLDER:
    with (Path(FOLDER) / "manifest.csv").open(encoding="utf-8", newline="") as table:
        ROWS = list(csv.DictReader(table))

# Where this reader does something else than the manifest's plain decoding, and why.
DEVIATIONS = {
    "derived/bitflips.mp4": (
        {"damaged": "23"},
        "the damaged pictures, and all that are built on them up to the next key frame, are refused instead of given",
    ),
    "derived/theora.ogv": (
        {"expect": "ok", "frames": "29", "last_t": "1.9333", "frames_skipping_errors": ""},
        "an empty packet means 'as before' in Theora; it is passed over (as ffprobe does) instead of being an error",
    ),
    "wild/block_ends_beyond_cluster.mkv": (
        {"expect": "reject"},
        "its one picture is predicted from a key frame that is not there: a grey one comes out",
    ),
    "wild/cbcs.mp4": ({"expect": "reject"}, "encrypted: the decoder makes 182 green pictures of it"),
    "wild/no_timescale.mp4": (
        {"expect": "reject"},
        "its first picture is damaged and the rest builds on it: what decodes is one green rectangle",
    ),
}


def check_refusal(path: Path) -> None:
    with pytest.raises(VideoError) as error:
        read_video_info(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def check_video(path: Path, row: dict[str, str]) -> None:
    """What plain decoding up to the first error gives with `stop`, all that can be decoded with `skip`."""
    partial = row["expect"] == "partial"
    with Video(path, damage="stop" if partial else None) as video:
        info = video.info
        assert info.frames == int(row["frames"])
        stored = (int(row["width"]), int(row["height"]))
        assert (info.width, info.height) == (stored[::-1] if info.rotation in (90, 270) else stored)
        turn = float(row["rotation"] or 0)
        assert info.rotation == (-turn % 360 if abs(turn) <= 360 else 0)
        if row["first_t"]:
            assert info.start == pytest.approx(float(row["first_t"]), abs=2e-3)
            assert info.start + info.times[-1] == pytest.approx(float(row["last_t"]), abs=2e-3)
        assert (np.diff(info.times) >= 0).all()
        assert bool(info.truncation_reason) == partial
        with pytest.raises(VideoError, match="readable are"):
            video.frames([info.frames])
        shape = (info.frames, info.height, info.width, 3)
        if "damaged" not in row:
            assert video.frames(range(info.frames)).shape == shape
        else:
            assert sum(is_damaged(video, index) for index in range(info.frames)) == int(row["damaged"])
    with Video(path, damage="skip") as video:
        assert video.info.frames == int(row["frames_skipping_errors"] or row["frames"])
        given = sum(not is_damaged(video, index) for index in range(video.info.frames))
        assert bool(video.damage_report) == (partial or "damaged" in row)
    assert given >= info.frames - int(row.get("damaged", 0))
    with Video(path, damage="repeat") as video:
        assert len(video.frames(range(video.info.frames))) == video.info.frames


def is_damaged(video: Video, index: int) -> bool:
    try:
        video.frames([index])
    except VideoError as error:
        return "is damaged at" in str(error)
    return False


if ROWS:

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
    def test_as_the_manifest_says(row: dict[str, str]) -> None:
        row = row | DEVIATIONS.get(row["file"], ({}, ""))[0]
        path = Path(FOLDER) / row["file"]
        if row["expect"] == "reject":
            check_refusal(path)
        else:
            check_video(path, row)

    def test_deviations_are_of_this_folder() -> None:
        assert set(DEVIATIONS) <= {row["file"] for row in ROWS}
