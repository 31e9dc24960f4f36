"""Export of moments: lists, and clips with exactly the frames of their span."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import odd_video
import pytest

from internvideo.errors import RecipeError, VideoError
from internvideo.search.export import check_list, format_list
from internvideo.search.finding import Moment
from internvideo.video.cut import cut
from internvideo.video.reader import Video, read_video_info

MOMENTS = [
    Moment(1, "/v/=cmd.mp4", 1.0, 3.5, 9.0, 0.5, 0.01, ("a",)),
    Moment(2, "/v/b\nc.mp4", 3600.04, 3601.0, 4000.0, 0.4, None),
]


def test_lists() -> None:
    rows = list(csv.reader(io.StringIO(format_list("csv", MOMENTS))))
    assert rows[1] == ["/v/=cmd.mp4", "1.000", "3.500", "0.500000", "0.01", "a"]
    assert json.loads(format_list("json", MOMENTS))[1]["start"] == 3600.04
    edl = format_list("edl", MOMENTS, "two\nlines").splitlines()
    assert edl[0] == "TITLE: two lines"
    assert edl[3] == "001  CMD      V     C        00:00:01:00 00:00:03:13 00:00:00:00 00:00:02:13"
    assert edl[6] == "002  BC       V     C        01:00:00:01 01:00:01:00 00:00:02:13 00:00:03:12"
    assert all("\n" not in line for line in edl)
    with pytest.raises(RecipeError, match="ends in"):
        check_list(Path("a.txt"))
    formula = [Moment(1, "=1+1.mp4", 0, 1, 1, 0.5, None)]
    assert "'=1+1.mp4" in format_list("csv", formula)


@pytest.mark.parametrize(("start", "copied"), [(0.8, True), (0.0, True), (1.1, False)])
def test_clips_have_the_frames_of_their_span(tmp_path: Path, start: float, copied: bool) -> None:
    """Copied where a key frame begins the span (every 12 frames here), encoded again elsewhere."""
    source = odd_video.encode(tmp_path / "in.mp4", odd_video.moving_frames(45), fps=15, options={"g": "12", "bf": "2"})
    assert cut(source, tmp_path / "deep" / "out.mp4", start, start + 1.0) is copied
    info = read_video_info(tmp_path / "deep" / "out.mp4")
    assert info.frames == pytest.approx(15, abs=2 if copied else 0)
    with Video(source) as whole, Video(tmp_path / "deep" / "out.mp4") as part:
        wanted = whole.frames(np.ceil(start * 15 - 1e-6).astype(int) + np.arange(10)).astype(int)
        found = part.frames(range(10)).astype(int)
    assert np.abs(wanted - found).mean() < (0.01 if copied else 6)
    with pytest.raises(VideoError, match="no frame from"):
        cut(source, tmp_path / "x.mp4", 50, 60)
    assert not (tmp_path / "x.mp4").exists()
