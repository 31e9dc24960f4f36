"""Read captions of videos: MSR-VTT, MSVD, LSMDC, ActivityNet Captions, DiDeMo, VATEX (Video-Text-Retrieval).

A row is a video with all its captions; for paragraph retrieval (ActivityNet, DiDeMo) it has one caption, its sentences
joined.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, TypeAdapter, ValidationError

from internvideo.data.sample import Sample, Sentence
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.reading import (
    AnnotationSource,
    JsonLocation,
    Name,
    Record,
    SplitName,
    csv_records,
    json_records,
    numbered_lines,
    read_json,
    split_in_name,
)
from internvideo.errors import ManifestError

DIDEMO_SECONDS = 31.0
"""Only this first part of a DiDeMo video is used."""
LSMDC_TIMES = ("start_aligned", "end_aligned", "start_extracted", "end_extracted")
_CLOCK = r"^\d+:\d\d:\d\d([.,]\d+)?$"


class _Video(Record):
    video_id: Name
    split: SplitName
    start: Annotated[float, Field(ge=0, alias="start time")] = 0.0
    end: Annotated[float, Field(ge=0, alias="end time")] = 0.0


class _Sentence(Record):
    caption: str
    video_id: Name


class _MsrVtt(Record):
    videos: tuple[_Video, ...] = ()
    sentences: tuple[_Sentence, ...]


class _VideoId(Record):
    video_id: Name


class _Pair(Record):
    video_id: Name
    sentence: Sentence


class Film(Record):
    """The columns that both LSMDC tasks have."""

    clip: Name
    start_aligned: Annotated[str, Field(pattern=_CLOCK)]
    end_aligned: Annotated[str, Field(pattern=_CLOCK)]
    start_extracted: Annotated[str, Field(pattern=_CLOCK)]
    end_extracted: Annotated[str, Field(pattern=_CLOCK)]

    @property
    def path(self) -> str:
        """FILM/CLIP.avi, as in the release."""
        film = re.sub(r"_\d\d\.\d\d\.\d\d\.\d{3}-.*$", "", self.clip)
        return f"{film}/{self.clip}.avi"


class _FilmSentence(Film):
    sentence: Sentence


class _Paragraph(Record):
    duration: PositiveFloat
    timestamps: tuple[tuple[NonNegativeFloat, NonNegativeFloat], ...]
    sentences: tuple[str, ...]


class _Moment(Record):
    description: Sentence
    video: Name
    times: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()


class _Vatex(Record):
    video: Annotated[Name, Field(alias="videoID")]
    english: tuple[Sentence, ...] = Field(alias="enCap", min_length=1)


def _ids(path: Path) -> dict[str, str]:
    """Read video ids, one per line -> "FILE:LINE". Raises ManifestError: a duplicate id."""
    lines: dict[str, str] = {}
    for where, line in numbered_lines(path):
        if line in lines:
            raise ManifestError(f"{where} id", f"'{line}', which {lines[line]} has too", "each video once")
        lines[line] = where
    return lines


def _row(video: str, captions: Iterable[str], split: str, path: str = "", **fields: Any) -> Sample:
    return Sample(id=video, path=path or f"{video}.mp4", captions=tuple(captions), split=split, **fields)


def read_msrvtt(source: AnnotationSource) -> Annotations:
    """Read MSR-VTT 9k/1k-A: `MSRVTT_train.9k.csv`, `MSRVTT_JSFUSION_test.csv` and the captions of `MSRVTT_data.json`.

    A training video has all its captions, a test video the one of the test list. One of the csv files suffices.
    Raises ManifestError: no csv file, a malformed row, a video without captions, a duplicate video.
    """
    annotations = Annotations()
    train, test = source.find_optional(r"train[^/]*9k[^/]*\.csv$"), source.find_optional(r"jsfusion[^/]*\.csv$")
    if train is None and test is None:
        expected = "MSRVTT_train.9k.csv, MSRVTT_JSFUSION_test.csv"
        raise ManifestError(source.path, "no annotation file of MSR-VTT 1k-A", expected)
    if train is not None:
        captions = _msrvtt_captions(read_json(source.find_one(r"msrvtt_data\.json$", "MSRVTT_data.json"), _MsrVtt))
        for where, row in csv_records(train, _VideoId):
            if row.video_id not in captions:
                found = f"no sentence for '{row.video_id}'"
                raise ManifestError(f"{where} video_id", found, "videos of MSRVTT_data.json")
            annotations.add("train", _row(row.video_id, captions[row.video_id], "train"), where, row.video_id)
    if test is not None:
        for where, pair in csv_records(test, _Pair):
            annotations.add("test", _row(pair.video_id, (pair.sentence,), "test"), where, pair.video_id)
    return annotations


def read_msrvtt_full(source: AnnotationSource) -> Annotations:
    """Read MSR-VTT with the released splits of `MSRVTT_data.json` (6,513 / 497 / 2,990 videos), all captions per video.

    Raises ManifestError: no such file, a malformed entry, a video without captions, a duplicate video.
    """
    path = source.find_one(r"(msrvtt_data|videodatainfo)[^/]*\.json$", "MSRVTT_data.json")
    content, annotations = read_json(path, _MsrVtt), Annotations()
    captions = _msrvtt_captions(content)
    for number, video in enumerate(content.videos):
        where = JsonLocation(path, ("videos", number, "video_id"))
        if video.video_id not in captions:
            raise ManifestError(where, f"no sentence for '{video.video_id}'", "at least one")
        annotations.add(video.split, _row(video.video_id, captions[video.video_id], video.split), where, video.video_id)
    return annotations.ensure_rows(f"{path}:1 videos", "no video in it", "at least one")


def _msrvtt_captions(content: _MsrVtt) -> dict[str, list[str]]:
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for sentence in content.sentences:
        if sentence.caption.strip():
            captions[sentence.video_id].append(sentence.caption)
    return captions


def read_msvd(source: AnnotationSource) -> Annotations:
    """Read MSVD: `train_list.txt`, `val_list.txt`, `test_list.txt` and `raw-captions.pkl` (video -> lists of words) or
    `raw-captions.json`. `youtube_mapping.txt` (`ID vidN`) gives alternative names of the videos.

    Raises ManifestError: no list, no captions, a pickle with anything but plain containers, a video without captions.
    """
    lists = list(source.find(r"(train|val|test)_list\.txt$"))
    if not lists:
        raise ManifestError(source.path, "no annotation file of MSVD", "train_list.txt, val_list.txt, test_list.txt")
    captions, annotations, alternative_names = _msvd_captions(source), Annotations(), mapping(source)
    for path in lists:
        split = split_in_name(path) or ""
        for video, where in _ids(path).items():
            if video not in captions:
                raise ManifestError(f"{where} id", f"no captions for '{video}'", "videos of raw-captions.pkl")
            names = (video, *([alternative_names[video]] if video in alternative_names else ()))
            sentences = [" ".join(words) for words in captions[video] if " ".join(words).strip()]
            annotations.add(split, _row(video, sentences, split, f"{video}.avi"), where, *names)
    return annotations


def _msvd_captions(source: AnnotationSource) -> dict[str, list[list[str]]]:
    expected = dict[str, list[list[str]]]
    path = source.find_optional(r"raw-captions\.pkl$")
    if path is not None and source.unpickle is not None:
        try:
            return TypeAdapter(expected).validate_python(source.unpickle(path))
        except ValidationError as error:
            location = ".".join(map(str, error.errors()[0]["loc"]))
            raise ManifestError(f"{path} {location}".rstrip(), "no list of words", "video -> lists of words") from None
    return read_json(source.find_one(r"raw-captions[^/]*\.json$", "raw-captions.pkl or raw-captions.json"), expected)


def mapping(source: AnnotationSource) -> dict[str, str]:
    """Read `ID vidN` lines of `*youtube_mapping.txt` as id -> name; {} without the file. Raises ManifestError."""
    path, names = source.find_optional(r"youtube_mapping\.txt$"), dict[str, str]()
    for where, line in () if path is None else numbered_lines(path):
        cells = line.split()
        if len(cells) != 2 or cells[0] in names:
            raise ManifestError(f"{where} id", f"'{line[:80]}'", "'ID vidN', each id once")
        names[cells[0]] = cells[1]
    return names


def read_lsmdc(source: AnnotationSource) -> Annotations:
    """Read LSMDC: tab-separated `LSMDC16_annos_training.csv`, `*_val.csv`, `LSMDC16_challenge_1000_publictect.csv`; six
    columns without header. Times are relative to the movie and become attributes.

    Raises ManifestError: no such file, a malformed row, a duplicate clip.
    """
    annotations = Annotations()
    patterns = {
        "train": r"annos_training[^/]*\.csv$",
        "val": r"annos_val[^/]*\.csv$",
        "test": r"challenge_1000[^/]*\.csv$",
    }
    for split, pattern in patterns.items():
        for path in source.find(pattern):
            columns = ("clip", *LSMDC_TIMES, "sentence")
            for where, row in csv_records(path, _FilmSentence, columns=columns, delimiter="\t", quoted=False):
                times = {name: getattr(row, name) for name in LSMDC_TIMES}
                sample = _row(row.clip, (row.sentence,), split, row.path, attributes=times)
                annotations.add(split, sample, where, row.clip)
    return annotations.ensure_rows(source.path, "no annotation file of LSMDC", "LSMDC16_annos_training.csv and so on")


def read_activitynet_captions(source: AnnotationSource) -> Annotations:
    """Read ActivityNet Captions as paragraphs: `train.json`, `val_1.json` (the test set of retrieval, split "val").

    `train_ids.json` and `val_ids.json`, if present, serve only to count the videos without sentences.
    Raises ManifestError: no such file, a malformed entry, different numbers of sentences and times, a duplicate video.
    """
    annotations, reversed_times = Annotations(), 0
    for split, pattern in (("train", r"/train\.json$"), ("val", r"/val_1\.json$")):
        path = source.find_optional(pattern)
        if path is None:
            continue
        for video, entry in read_json(path, dict[Name, _Paragraph]).items():
            where = JsonLocation(path, (video, "sentences"))
            if len(entry.sentences) != len(entry.timestamps):
                found = f"{len(entry.sentences)} sentences for {len(entry.timestamps)} times"
                raise ManifestError(where, found, "one for each")
            reversed_times += sum(start > end for start, end in entry.timestamps)
            paragraph = " ".join(sentence.strip() for sentence in entry.sentences if sentence.strip())
            if not paragraph:
                raise ManifestError(where, "no sentence that is not blank", "at least one")
            sample = _row(video, (paragraph,), split, attributes={"duration": f"{entry.duration:g}"})
            annotations.add(split, sample, where, video, video.removeprefix("v_"))
        ids = source.find_optional(rf"/{split}_ids\.json$")
        lacking = set(read_json(ids, list[str])) - {row.id for row in annotations.splits.get(split, ())} if ids else ()
        annotations.note(len(lacking), f"videos of {split}_ids.json have no sentences")
    annotations.note(reversed_times, "times end before they start (retrieval by paragraph does not use them)")
    found = "no annotation file of ActivityNet Captions"
    return annotations.ensure_rows(source.path, found, "train.json and val_1.json")


def read_didemo(source: AnnotationSource) -> Annotations:
    """Read DiDeMo as paragraphs: `train_data.json`, `val_data.json`, `test_data.json`; the first 31 s of each video.

    All sentences of a video are joined. A list `*_list.txt` of a split, if present, selects and orders its videos.
    Raises ManifestError: no such file, a malformed entry, a listed video without sentences.
    """
    annotations = Annotations()
    for path in source.find(r"(train|val|test)_data\.json$"):
        split = split_in_name(Path(path.name.removesuffix("_data.json"))) or ""
        sentences: dict[str, list[str]] = {}
        first_lines: dict[str, str] = {}
        for where, moment in json_records(path, _Moment):
            sentences.setdefault(moment.video, []).append(moment.description.strip())
            first_lines.setdefault(moment.video, where)
        listed = source.find_optional(rf"/{split}_list\.txt$")
        for video, where in (_ids(listed) if listed else first_lines).items():
            if video not in sentences:
                raise ManifestError(f"{where} id", f"no sentence for '{video}'", f"videos of {path.name}")
            sample = _row(video, (" ".join(sentences[video]),), split, span=(0.0, DIDEMO_SECONDS))
            annotations.add(split, sample, where, video, video.rsplit(".", 1)[0])
    expected = "train_data.json, val_data.json, test_data.json"
    return annotations.ensure_rows(source.path, "no annotation file of DiDeMo", expected)


def read_vatex(source: AnnotationSource) -> Annotations:
    """Read VATEX, English: `vatex_training_v1.0.json` and `vatex_validation_v1.0.json`. `test_list.txt` and
    `val_list.txt` split the validation videos; without `val_list.txt`, val is all videos that test does not list.

    Raises ManifestError: no such file, a malformed entry, a listed video without captions, a duplicate video.
    """
    annotations = Annotations()
    patterns = (("train", r"training[^/]*\.json$"), ("val", r"validation[^/]*\.json$"))
    for split, path in ((split, source.find_optional(pattern)) for split, pattern in patterns):
        if path is None:
            continue
        rows = {}
        for where, entry in json_records(path, _Vatex):
            if entry.video in rows:
                raise ManifestError(f"{where} videoID", f"'{entry.video}' a second time", "each video once")
            rows[entry.video] = (where, entry.english)
        lists = {
            name: source.find_optional(rf"/{name}_list\.txt$") for name in (("test", "val") if split == "val" else ())
        }
        split_ids = {name: _ids(listed) for name, listed in lists.items() if listed is not None}
        listed_ids = {video for part in split_ids.values() for video in part}
        if split not in split_ids:
            split_ids[split] = {video: where for video, (where, _) in rows.items() if video not in listed_ids}
        for part, videos in split_ids.items():
            for video, where in videos.items():
                if video not in rows:
                    raise ManifestError(f"{where} id", f"no captions for '{video}'", f"videos of {path.name}")
                annotations.add(part, _row(video, rows[video][1], part), where, video)
    expected = "vatex_validation_v1.0.json and test_list.txt"
    return annotations.ensure_rows(source.path, "no annotation file of VATEX", expected)
