"""Read the video corpora of multimodal pretraining: WebVid and HowTo100M (paper table 1). LAION is in shards.py.

Both list URLs or names of videos that users download themselves; a row whose video is missing is reported by
`internvideo prepare` and counted in training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeFloat

from internvideo.data.sample import Sample
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.reading import AnnotationSource, Name, Record, csv_records, read_json, split_in_name
from internvideo.errors import ManifestError

DURATION = re.compile(r"PT(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?")
"""ISO 8601 duration as in WebVid: PT00H00M17S."""
MIN_CAPTION_SECONDS = 2.0
"""Minimum duration of a caption of HowTo100M; shorter ones are skipped."""


class _WebVid(Record):
    videoid: Name
    name: str = ""
    page_dir: str = ""
    duration: Annotated[str, Field(pattern=rf"^{DURATION.pattern}$")] = "PT0S"
    url: Annotated[str, Field(alias="contentUrl")] = ""


def read_webvid(source: AnnotationSource) -> Annotations:
    """Read WebVid 2M or 10M, `results_2M_train.csv` and the like: videoid, contentUrl, duration, page_dir, name.

    The path of a video is PAGE_DIR/VIDEOID.mp4, its caption the name; rows without one are left out and counted.
    Attributes: "url", and "duration" in seconds.
    Raises ManifestError: no such file, a malformed row, a duplicate video in a split.
    """
    annotations = Annotations()
    num_blank = 0
    files = [path for path in source.files if path.suffix == ".csv"]
    for path in files:
        split = split_in_name(path) or "train"
        for where, row in csv_records(path, _WebVid):
            if not row.name.strip():
                num_blank += 1
                continue
            attributes = {"duration": f"{parse_duration(row.duration):g}"} | ({"url": row.url} if row.url else {})
            folder = f"{row.page_dir.strip('/')}/" if row.page_dir.strip("/") else ""
            sample = Sample(id=row.videoid, path=f"{folder}{row.videoid}.mp4", captions=(row.name.strip(),),
                            split=split, attributes=attributes)  # fmt: skip
            annotations.add(split, sample, where, f"{folder}{row.videoid}", row.videoid)
    annotations.note(num_blank, "rows without a caption were left out")
    expected = "results_2M_train.csv and the like"
    return annotations.ensure_rows(source.path, "no row of WebVid with a caption", expected)


def parse_duration(duration: str) -> float:
    """Convert an ISO 8601 duration of hours, minutes and seconds to seconds. Raises ValueError."""
    match = DURATION.fullmatch(duration)
    if match is None:
        raise ValueError(f"'{duration}' is no duration like PT00H00M17S")
    return sum(float(match[name] or 0) * factor for name, factor in (("hours", 3600), ("minutes", 60), ("seconds", 1)))


class _Video(Record):
    video_id: Name


class _Captions(Record):
    start: tuple[NonNegativeFloat, ...]
    end: tuple[NonNegativeFloat, ...]
    text: tuple[str, ...]


class _Caption(Record):
    start: NonNegativeFloat
    end: NonNegativeFloat
    text: str = ""


def read_howto100m(source: AnnotationSource) -> Annotations:
    """Read HowTo100M: `HowTo100M_v1.csv`, and `caption.json` or one VIDEO.csv or VIDEO.json per video.

    `caption.json` is one object, video -> {"start": [s], "end": [s], "text": [...]}; a file of one video is such an
    object without the key, or has the columns start, end, text. A row is a caption with its span (s) and the path
    VIDEO.mp4. Captions without text or shorter than 2 s are left out and counted, as are videos without captions. The
    pickled captions of the release are not opened; its JSON has the same content.
    Raises ManifestError: no such file, lists of different lengths, a malformed row.
    """
    annotations = Annotations()
    videos_file = source.find_one(r"/howto100m[^/]*\.csv$", "HowTo100M_v1.csv")
    caption_file = source.find_optional(r"/(raw_)?captions?\.json$")
    captions = read_json(caption_file, dict[str, _Captions]) if caption_file else {}
    caption_files = {} if caption_file else {path.stem: path for path in source.files if path != videos_file}
    num_skipped = num_without_captions = 0
    video_ids: set[str] = set()
    for where, video in csv_records(videos_file, _Video):
        if video.video_id in video_ids:
            raise ManifestError(f"{where} video_id", f"'{video.video_id}' again", "each video once")
        video_ids.add(video.video_id)
        video_entry = captions.get(video.video_id)
        file = caption_files.get(video.video_id)
        video_captions: list[_Caption] = []
        if video_entry and caption_file:
            video_captions = list(_captions_of(video_entry, caption_file, video.video_id))
        elif file:
            video_captions = list(_captions_in_file(file))
        num_without_captions += not video_captions
        for number, caption in enumerate(video_captions):
            if not caption.text.strip() or caption.end - caption.start < MIN_CAPTION_SECONDS:
                num_skipped += 1
                continue
            sample = Sample(
                id=f"{video.video_id}_{number:05d}", path=f"{video.video_id}.mp4", span=(caption.start, caption.end),
                captions=(caption.text.strip(),), group=video.video_id, split="train",
            )  # fmt: skip
            annotations.add("train", sample, where)
    annotations.note(num_skipped, f"captions without text or shorter than {MIN_CAPTION_SECONDS:g} s were left out")
    annotations.note(num_without_captions, "videos without captions were left out")
    expected = "caption.json, or VIDEO.csv for each video"
    return annotations.ensure_rows(source.path, "no caption of any video", expected)


def _captions_of(captions: _Captions, path: Path, video: str) -> Iterator[_Caption]:
    if not len(captions.start) == len(captions.end) == len(captions.text):
        lengths = f"{len(captions.start)} starts, {len(captions.end)} ends, {len(captions.text)} texts"
        raise ManifestError(path, f"video '{video}' has {lengths}", "as many of each")
    for start, end, text in zip(captions.start, captions.end, captions.text, strict=True):
        yield _Caption(start=start, end=end, text=text)


def _captions_in_file(path: Path) -> Iterator[_Caption]:
    if path.suffix == ".csv":
        yield from (row for _, row in csv_records(path, _Caption))
    else:
        yield from _captions_of(read_json(path, _Captions), path, path.stem)
