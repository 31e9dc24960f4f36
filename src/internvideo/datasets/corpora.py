"""Corpora that the multimodal stage learns from: WebVid and HowTo100M (paper table 1). LAION is in shards.py.

Both list addresses or names of videos that everybody fetches for themselves; a row whose video is not there is told by
`internvideo prepare` and, in training, counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from internvideo.data.sample import Sample
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.reading import AnnotationSource, Name, Record, csv_records, read_json, split_of
from internvideo.errors import ManifestError

DURATION = re.compile(r"PT(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?")
"""ISO 8601, as WebVid writes it: PT00H00M17S."""
MODEST = 2.0
"""Seconds: a caption of HowTo100M that is shorter than this shows too little to be learned."""


class _WebVid(Record):
    videoid: Name
    name: str = ""
    page_dir: str = ""
    duration: Annotated[str, Field(pattern=rf"^{DURATION.pattern}$")] = "PT0S"
    url: Annotated[str, Field(alias="contentUrl")] = ""


def read_webvid(source: AnnotationSource) -> Annotations:
    """WebVid 2M and 10M: `results_2M_train.csv` and the like: videoid, contentUrl, duration, page_dir, name.

    The videos lie as PAGE_DIR/VIDEOID.mp4. Attributes: "url", and "duration" in seconds. Rows without a name, which is
    the caption, are left out and counted.

    Raises:
        ManifestError: no such file, a malformed row, a video twice in a split.
    """
    made = Annotations()
    blank = 0
    files = [path for path in source.files if path.suffix == ".csv"]
    for path in files:
        split = split_of(path) or "train"
        for line, row in csv_records(path, _WebVid):
            if not row.name.strip():
                blank += 1
                continue
            told = {"duration": f"{seconds_of(row.duration):g}"} | ({"url": row.url} if row.url else {})
            where = f"{row.page_dir.strip('/')}/" if row.page_dir.strip("/") else ""
            sample = Sample(id=row.videoid, path=f"{where}{row.videoid}.mp4", captions=(row.name.strip(),),
                            split=split, attributes=told)  # fmt: skip
            made.add(split, sample, f"{path}:{line}", f"{where}{row.videoid}", row.videoid)
    if not made.splits:
        raise ManifestError(source.path, "no row of WebVid with a caption", "results_2M_train.csv and the like")
    made.note(blank, "rows without a caption were left out")
    return made


def seconds_of(duration: str) -> float:
    """Seconds of an ISO 8601 duration of hours, minutes and seconds. Raises ValueError."""
    found = DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(f"'{duration}' is no duration like PT00H00M17S")
    return sum(float(found[name] or 0) * factor for name, factor in (("hours", 3600), ("minutes", 60), ("seconds", 1)))


class _Video(Record):
    video_id: Name


class _Captions(Record):
    start: tuple[Annotated[float, Field(ge=0)], ...]
    end: tuple[Annotated[float, Field(ge=0)], ...]
    text: tuple[str, ...]


class _Caption(Record):
    start: Annotated[float, Field(ge=0)]
    end: Annotated[float, Field(ge=0)]
    text: str = ""


def read_howto100m(source: AnnotationSource) -> Annotations:
    """HowTo100M: `HowTo100M_v1.csv` and its captions: `caption.json`, or a VIDEO.csv or VIDEO.json each.

    `caption.json` is one object, video -> {"start": [s], "end": [s], "text": [...]}; a file of one video holds that
    object alone, or the columns start, end, text. A row is a caption: its span the video's seconds, its path VIDEO.mp4.
    Captions without a text or shorter than 2 s are left out and counted, as are videos without captions. The pickled
    captions of the release are not opened: its JSON holds the same.

    Raises:
        ManifestError: no such file, lists of different lengths, a malformed row.
    """
    made = Annotations()
    videos_file = source.one(r"/howto100m[^/]*\.csv$", "HowTo100M_v1.csv")
    whole = source.maybe(r"/(raw_)?captions?\.json$")
    captions = read_json(whole, dict[str, _Captions]) if whole else {}
    single = {} if whole else {path.stem: path for path in source.files if path != videos_file}
    left = silent = 0
    known: set[str] = set()
    for line, video in csv_records(videos_file, _Video):
        if video.video_id in known:
            raise ManifestError(f"{videos_file}:{line} video_id", f"'{video.video_id}' again", "each video once")
        known.add(video.video_id)
        told = captions.get(video.video_id)
        found = single.get(video.video_id)
        spoken = list(_listed(told, whole, video.video_id)) if told and whole else list(_single(found)) if found else []
        silent += not spoken
        for number, caption in enumerate(spoken):
            if not caption.text.strip() or caption.end - caption.start < MODEST:
                left += 1
                continue
            sample = Sample(
                id=f"{video.video_id}_{number:05d}", path=f"{video.video_id}.mp4", span=(caption.start, caption.end),
                captions=(caption.text.strip(),), group=video.video_id, split="train",
            )  # fmt: skip
            made.add("train", sample, f"{videos_file}:{line}")
    if not made.splits:
        raise ManifestError(source.path, "no caption of any video", "caption.json, or VIDEO.csv for each video")
    made.note(left, f"captions without text or shorter than {MODEST:g} s were left out")
    made.note(silent, "videos without captions were left out")
    return made


def _listed(told: _Captions, path: Path, video: str) -> Iterator[_Caption]:
    if not len(told.start) == len(told.end) == len(told.text):
        lengths = f"{len(told.start)} starts, {len(told.end)} ends, {len(told.text)} texts"
        raise ManifestError(path, f"video '{video}' has {lengths}", "as many of each")
    for start, end, text in zip(told.start, told.end, told.text, strict=True):
        yield _Caption(start=start, end=end, text=text)


def _single(path: Path) -> Iterator[_Caption]:
    if path.suffix == ".csv":
        yield from (row for _, row in csv_records(path, _Caption))
    else:
        yield from _listed(read_json(path, _Captions), path, path.stem)
