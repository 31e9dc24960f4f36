"""WebVid and HowTo100M: rows of their lists and captions, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvideo.datasets.corpora import parse_duration, read_howto100m, read_webvid
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError

WEBVID = """videoid,contentUrl,duration,page_dir,name
21179416,https://example.org/21179416.mp4,PT00H00M11S,006001_006050,"Aerial shot, winter forest"
5629184,https://example.org/5629184.mp4,PT00H01M29S,071501_071550,Senior couple looking through binoculars
1,https://example.org/1.mp4,PT00H00M02S,071501_071550,
"""
VIDEOS = (
    "video_id,category_1,category_2,rank,task_id\nabc,Food,Recipes,1,10\n-xyz,Home,Tools,2,11\nmute,Home,Tools,3,11\n"
)
CAPTIONS = {
    "abc": {"start": [0.0, 4.5, 9.0], "end": [4.5, 9.0, 9.5], "text": ["cut the onions", "  ", "and stir"]},
    "-xyz": {"start": [1.25], "end": [7.0], "text": ["hold the nail"]},
    "elsewhere": {"start": [0.0], "end": [5.0], "text": ["not in the list"]},
}


def written(folder: Path, **files: str) -> AnnotationSource:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return AnnotationSource(folder)


def test_webvid(tmp_path: Path) -> None:
    made = read_webvid(
        written(tmp_path, results_2M_train_csv=WEBVID, results_2M_val_csv=WEBVID.splitlines()[0] + "\n7,,PT4S,,One\n")
    )
    first, second = made.splits["train"]
    assert (first.id, first.path) == ("21179416", "006001_006050/21179416.mp4")
    assert first.captions == ("Aerial shot, winter forest",)
    assert first.attributes == {"duration": "11", "url": "https://example.org/21179416.mp4"}
    assert second.attributes["duration"] == "89"
    assert made.notes == ["1 rows without a caption were left out"]
    assert [(row.id, row.path) for row in made.splits["val"]] == [("7", "7.mp4")]


def test_durations() -> None:
    assert parse_duration("PT01H02M03.5S") == 3723.5
    assert parse_duration("PT9S") == 9
    with pytest.raises(ValueError, match="duration"):
        parse_duration("9 s")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [("PT00H00M11S", "11", ":2"), ("5629184,", "21179416,", "too"),
     ("videoid", "id", "videoid"), ("29S,071501_071550,", "29S,", "cells")],
)  # fmt: skip
def test_a_malformed_webvid_is_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        read_webvid(written(tmp_path, results_2M_train_csv=WEBVID.replace(old, new, 1)))
    with pytest.raises(ManifestError, match="no row"):
        read_webvid(written(tmp_path / "none", other_json="{}"))


def test_howto100m_with_one_file_of_captions(tmp_path: Path) -> None:
    made = read_howto100m(written(tmp_path, HowTo100M_v1_csv=VIDEOS, caption_json=json.dumps(CAPTIONS)))
    told = [(row.id, row.path, row.span, row.captions, row.group) for row in made.splits["train"]]
    assert told == [
        ("abc_00000", "abc.mp4", (0.0, 4.5), ("cut the onions",), "abc"),
        ("-xyz_00000", "-xyz.mp4", (1.25, 7.0), ("hold the nail",), "-xyz"),
    ]
    assert sorted(made.notes) == ["1 videos without captions were left out",
                                  "2 captions without text or shorter than 2 s were left out"]  # fmt: skip


def test_howto100m_with_a_file_for_each_video(tmp_path: Path) -> None:
    one = ",start,end,text\n0,0.0,4.5,cut the onions\n1,4.5,9.0,\n2,9.0,9.5,and stir\n"
    files = {"HowTo100M_v1_csv": VIDEOS, "captions__abc_csv": one, "captions__-xyz_json": json.dumps(CAPTIONS["-xyz"])}
    made = read_howto100m(written(tmp_path / "single", **files))
    whole = read_howto100m(written(tmp_path / "whole", HowTo100M_v1_csv=VIDEOS, caption_json=json.dumps(CAPTIONS)))
    assert made.splits == whole.splits
    assert made.notes == whole.notes


@pytest.mark.parametrize(
    ("videos", "captions", "told"),
    [
        (VIDEOS + "abc,Food,Recipes,1,10\n", CAPTIONS, "again"),
        (VIDEOS, {"abc": CAPTIONS["abc"] | {"end": [4.5]}}, "1 ends"),
        (VIDEOS, {"abc": CAPTIONS["abc"] | {"start": [-1.0, 0, 0]}}, "abc"),
        (VIDEOS, {"abc": ["text"]}, "abc"),
        (VIDEOS, {}, "no caption"),
        ("id\nabc\n", CAPTIONS, "video_id"),
    ],
)
def test_a_malformed_howto100m_is_told(tmp_path: Path, videos: str, captions: object, told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        read_howto100m(written(tmp_path, HowTo100M_v1_csv=videos, caption_json=json.dumps(captions)))
