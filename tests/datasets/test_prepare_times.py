"""Times of annotations beside the files: times after the end are reported, an offset is suggested and applied."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.manifest import Sample, read_manifest
from internvideo.datasets.annotation_times import compare, shift_times
from internvideo.datasets.prepare import Prepared, prepare
from internvideo.errors import ManifestError, VideoError
from internvideo.tasks.spatio_temporal_localization.box_transforms import BoxedTransform
from internvideo.tasks.spatio_temporal_localization.data import KeyFrameClipSettings, key_frames, read_clip
from internvideo.video.writer import write_video

FORM = KeyFrameClipSettings(4, 2, BoxedTransform(size=16, short=16, longest=40, hue=0, saturation=0, value=0), 80)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Annotations of two films cut at 15:00, of which 6 s are there, frame n of grey 4 n."""
    (tmp_path / "a").mkdir()
    (tmp_path / "v").mkdir()
    rows = ["aaaaaaaaaaa,0902", "aaaaaaaaaaa,0904", "bbbbbbbbbbb,0903"]
    (tmp_path / "a" / "ava_train_v2.2.csv").write_text("".join(f"{row},0.1,0.1,0.5,0.9,12,0\n" for row in rows))
    for name in "ab":
        frames = (np.full((32, 48, 3), 4 * number, np.uint8) for number in range(60))
        write_video(tmp_path / "v" / f"{name * 11}.mp4", frames, 10, crf=1)
    return tmp_path


def prepared(folder: Path, **options: object) -> tuple[Prepared, list[str]]:
    said: list[str] = []
    made = prepare("ava", folder / "a", folder / "o", videos=folder / "v", log=said.append, **options)  # type: ignore[arg-type]  # any
    return made, said


@pytest.mark.parametrize("check", [True, False])
def test_times_behind_the_end_are_told_with_an_offset(films: Path, check: bool) -> None:
    made, said = prepared(films, check_videos=check)
    (warning,) = [line for line in made.warnings if "after the end" in line]
    assert warning == (
        "train: 3 of 3 rows have times after the end of their video, such as 'aaaaaaaaaaa_0902': 902 s in a file of "
        "6.0 s; if the files start at second 900 of the annotated videos, add --offset 900"
    )
    assert f"warning: {warning}" in said
    listed = (films / "o" / "outside.tsv").read_text().splitlines()
    assert listed[0] == "train\taaaaaaaaaaa_0902\t902\t6.000"
    assert len(listed) == 3
    reader = ManifestClipDecoder(read_manifest(films / "o" / "train.jsonl"))
    for frame in key_frames(reader.manifest):
        with pytest.raises(VideoError, match="no frame at"):
            read_clip(reader, frame, FORM)


def test_the_offset_is_honoured_and_times_of_the_film_stay_known(films: Path) -> None:
    made, _ = prepared(films, offset=900.0, check_videos=True)
    assert not [line for line in made.warnings if "after the end" in line]
    assert not (films / "o" / "outside.tsv").exists()
    reader = ManifestClipDecoder(read_manifest(films / "o" / "train.jsonl"))
    frames = key_frames(reader.manifest)
    assert [(frame.time, frame.seconds) for frame in frames] == [(902.0, 2.0), (904.0, 4.0), (903.0, 3.0)]
    for frame in frames:
        grey = read_clip(reader, frame, FORM)[:, 16, 24, 0].float().mean().item()
        assert grey == pytest.approx(40 * frame.seconds, abs=8)
    assert made.splits["train"].fingerprint == prepared(films)[0].splits["train"].fingerprint


def test_rows_before_the_offset_are_left_out_and_told(films: Path) -> None:
    made, _ = prepared(films, offset=903.0)
    assert made.splits["train"].written == 2
    assert "1 rows before second 903, where the files start, left out" in made.notes
    assert json.loads((films / "o" / "prepared.json").read_text())["notes"] == made.notes


def test_an_offset_needs_videos(films: Path) -> None:
    with pytest.raises(ManifestError, match="900 s without videos"):
        prepare("ava", films / "a", films / "o", offset=900.0)


def test_spans_and_segments_count_too() -> None:
    part = {"start": 620.0, "end": 630.0, "label": 0}
    rows = [
        Sample.model_validate({"id": "a", "path": "a", "span": (605.0, 640.0)}),
        Sample.model_validate({"id": "b", "path": "b", "segments": [part]}),
        Sample.model_validate({"id": "c", "path": "c"}),
        Sample.model_validate({"id": "d", "path": "unknown", "span": (1e6, 2e6)}),
    ]
    seconds = {"a": 60.0, "b": 60.0, "c": 60.0}
    late = compare(rows, seconds)
    assert ([name for name, _, _ in late.rows], late.num_compared, late.offset) == (["a", "b"], 2, 600.0)
    moved = [shift_times(row, 600.0) for row in rows[:3]]
    assert moved[0] is not None
    assert moved[1] is not None
    assert (moved[0].span, moved[0].segments) == ((5.0, 40.0), ())
    assert (moved[1].segments[0].start, moved[1].segments[0].end) == (20.0, 30.0)
    assert moved[2] == rows[2]
    assert compare([row for row in moved if row], seconds).rows == ()
    far = [*rows, Sample.model_validate({"id": "e", "path": "c", "span": (1.0, 2.0)})]
    assert compare(far, seconds).offset is None  # no beginning fits all
    assert "training and evaluation will refuse them" in compare(far, seconds).warning
