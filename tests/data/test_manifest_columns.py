"""Columns of csv manifests and names of classes: understood, told or refused, never skipped in silence."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from internvideo.data.dataset import with_row_stride
from internvideo.data.manifest import Manifest, Sample, read_manifest
from internvideo.data.sampling import Dense
from internvideo.errors import ManifestError
from internvideo.tasks.class_rows import map_labels_to_classes


def written(folder: Path, text: str, name: str = "m.csv") -> Manifest:
    (folder / name).write_text(text)
    return read_manifest(folder / name)


# ------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    "header",
    ["start,end", "Start,End", "time_start,time_end", "start_time,end_time", "startTime,endTime", "begin_sec,end_sec",
     "t_start,t_end", "START,STOP", "onset,offset", "starttime,endtime", "STARTSEC,ENDSEC", "begin_time,finish_time",
     "start_in_seconds,end_in_seconds", "beg,end"],
)  # fmt: skip
def test_times_in_seconds_are_a_span_however_they_are_called(tmp_path: Path, header: str) -> None:
    manifest = written(tmp_path, f"path,label,{header}\na.mp4,run,10,20.5\nb.mp4,run,,\n")
    assert [row.span for row in manifest.rows] == [(10, 20.5), None]
    assert manifest.notes == ()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("path,label,start,end\na.mp4,run,10,\n", "m.csv:2 end: empty beside start 10"),
        ("path,label,start,end\na.mp4,run,,10\n", "m.csv:2 start: empty beside end 10"),
        ("path,label,start\na.mp4,run,10\n", "m.csv:1: column 'start' without its counterpart"),
        ("path,label,end_time\na.mp4,run,10\n", "column 'end_time' without"),
        ("path,label,start_frame,end_frame\na.mp4,run,10,20\n", "column 'start_frame'"),
        ("path,label,start_ms,end_ms\na.mp4,run,10,20\n", "column 'start_ms'"),
        ("path,label,start_timestamp,stop_timestamp\na.mp4,run,00:10,00:20\n", "column 'start_timestamp'"),
        ("path,label,start_hour,end_hour\na.mp4,run,10,20\n", "column 'start_hour'"),
        ("path,label,startframe,endframe\na.mp4,run,10,20\n", "column 'startframe'"),
        ("path,label,start1,end1\na.mp4,run,10,20\n", "column 'start1'"),
        ("path,label,Start,start_time,end\na.mp4,run,1,2,3\n", "'Start' and 'start_time'"),
        ("path,Label,LABEL\na.mp4,run,walk\n", "'Label' and 'LABEL'"),
        ("a.mp4,run,10,20\n", "'run,10,20' after a.mp4"),
        ("a.mp4,10.5,20.5,run\n", "'10.5,20.5,run' after a.mp4"),
        ("a.mp4 run 10 20\n", "'run 10 20' after a.mp4"),
    ],
)
def test_times_that_are_not_clear_are_refused(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ManifestError) as caught:
        written(tmp_path, text)
    assert part in str(caught.value)


def test_the_spelling_of_a_column_does_not_matter(tmp_path: Path) -> None:
    text = "path,ID,Label,Split,Caption,Question,Answer\na.mp4,one,run,test,he runs,who?,he\n"
    (row,) = written(tmp_path, text).rows
    assert (row.id, row.label, row.split, row.captions) == ("one", 0, "test", ("he runs",))
    assert (row.qa[0].question, row.qa[0].answer) == ("who?", "he")
    exact = written(tmp_path, "path,label,Label\na.mp4,run,loud\n")
    assert (exact.classes, exact.rows[0].attributes) == (("run",), {"Label": "loud"})


def test_columns_without_a_meaning_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = "".join(f",c{number}" for number in range(10))
    manifest = written(tmp_path, f",path,class,weekend,question,answer{columns}\n0,a.mp4,run,no,who?,{',' * 10}\n")
    assert manifest.rows[0].attributes == {"class": "run", "weekend": "no"}
    assert manifest.notes == (
        "columns that a manifest does not define, kept as attributes: 'class', 'weekend', 'c0', 'c1', 'c2', 'c3', "
        "'c4', 'c5' and 4 more",
        "a column without a name skipped",
        "1 questions without an answer, or answers without a question, left out",
    )
    with caplog.at_level(logging.WARNING):
        assert manifest.with_notes_logged() is manifest
    assert len(caplog.messages) == 3
    assert caplog.messages[0].startswith(f"{tmp_path / 'm.csv'}: columns that a manifest does not define")


def test_a_column_called_stride_changes_no_sampling(tmp_path: Path) -> None:
    (row,), sampler = written(tmp_path, "path,label,stride\na.mp4,a,7\n").rows, Dense(frames=4, stride=2)
    assert with_row_stride(row, sampler) == sampler
    assert "stride" in read_manifest(tmp_path / "m.csv").notes[0]
    own = Sample(id="a", path="a.mp4", attributes={"stride": "7"})  # of a mixture: meant
    assert with_row_stride(own, sampler) == Dense(frames=4, stride=7)
    for odd in ("wide", "0", "-1", "2.5"):
        with pytest.raises(ManifestError, match=r"attributes\.stride"):
            with_row_stride(own.model_copy(update={"attributes": {"stride": odd}}), sampler)


# ------------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("names", [("007", "7", "12"), ("1", "2", "3"), ("0", "2"), ("-1", "1.0", "1")])
def test_folders_that_look_like_numbers_are_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()
    manifest = read_manifest(tmp_path)
    assert manifest.classes == tuple(sorted(names))
    assert manifest.notes == ()
    assert [manifest.classes[row.label or 0] for row in manifest.rows] == [
        row.path.split("/")[0] for row in manifest.rows
    ]


def test_texts_of_json_are_names_and_its_numbers_indices(tmp_path: Path) -> None:
    texts = written(
        tmp_path, '{"id": "a", "path": "a", "label": "3"}\n{"id": "b", "path": "b", "label": "10"}\n', "m.jsonl"
    )
    assert (texts.classes, [row.label for row in texts.rows]) == (("10", "3"), [1, 0])
    (tmp_path / "classes.txt").write_text("5\n3\n10\nx\n")
    assert [row.label for row in read_manifest(tmp_path / "m.jsonl").rows] == [1, 2]
    number = written(tmp_path, '{"id": "a", "path": "a", "label": 3}\n', "n.jsonl")
    assert number.rows[0].label == 3


@pytest.mark.parametrize("form", ["list", "csv"])
def test_zeros_in_front_belong_to_the_name(tmp_path: Path, form: str) -> None:
    lines = {"list": "a.mp4 007\nb.mp4 7\nc.mp4 12\n", "csv": "path,label\na.mp4,007\nb.mp4,7\nc.mp4,12\n"}[form]
    manifest = written(tmp_path, lines)
    assert (manifest.classes, [row.label for row in manifest.rows]) == (("007", "12", "7"), [0, 2, 1])


def test_numbers_beside_class_names(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("1\n2\n3\n")
    assert [row.label for row in written(tmp_path, "a.mp4 1\nb.mp4 3\n").rows] == [0, 2]  # 3 is no place among three
    for labels in ("0 1", "1 2", "0 2"):  # names, or places of other classes
        one, other = labels.split()
        with pytest.raises(ManifestError, match="may be the class called so or class number"):
            written(tmp_path, f"a.mp4 {one}\nb.mp4 {other}\n")
    (tmp_path / "classes.txt").write_text("0\n1\n2\n")  # the same either way
    assert [row.label for row in written(tmp_path, "a.mp4 2\nb.mp4 0\n").rows] == [2, 0]


@pytest.mark.parametrize("text", ["a.mp4 -1\n", "path,label\na.mp4,-1\n"])
def test_a_negative_number_is_no_class(tmp_path: Path, text: str) -> None:
    with pytest.raises(ManifestError, match="a class index 0 or more"):
        written(tmp_path, text)


def test_a_name_may_end_in_a_number(tmp_path: Path) -> None:
    manifest = written(tmp_path, "a.mp4 class 3\nb.mp4 class 12\n")
    assert (manifest.classes, manifest.rows[0].path) == (("class 12", "class 3"), "a.mp4")


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ((1, 2, 3, 4), "1 of 5 classes have no clip: 0; labels count from 0, these from 1"),
        ((0, 2), "1 of 3 classes have no clip: 1"),
        ((0, 99), "98 of 100 classes have no clip: 1, 2, 3, 4, 5, 6, 7, 8, ..."),
        ((0, 1), None),
    ],
)
def test_classes_without_a_clip_are_told(tmp_path: Path, labels: tuple[int, ...], note: str | None) -> None:
    manifest = written(tmp_path, "".join(f"{label}.mp4 {label}\n" for label in labels))
    assert manifest.notes == (() if note is None else (note,))
    assert [row.label for row in manifest.rows] == list(labels)


def test_number_names_of_folders_are_found_by_name_in_a_model(tmp_path: Path) -> None:
    for name in ("1", "3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()
    assert [row.label for row in map_labels_to_classes(read_manifest(tmp_path), ("1", "2", "3")).rows] == [0, 2]
    with pytest.raises(ManifestError, match="not trained on the class"):
        map_labels_to_classes(read_manifest(tmp_path), ("a", "b", "c", "d"))
    numbers = written(tmp_path, "x.mp4 1\ny.mp4 3\n", "list.txt")
    assert [row.label for row in map_labels_to_classes(numbers, ("a", "b", "c", "d")).rows] == [1, 3]


def test_names_that_are_not_utf8_are_told_and_the_others_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.mp4").touch()
    with open(os.path.join(os.fsencode(tmp_path), b"run", b"caf\xe9.mp4"), "wb"):
        pass
    manifest = read_manifest(tmp_path)
    assert [row.path for row in manifest.rows] == ["run/a.mp4"]
    assert manifest.notes == ("1 videos left out, their names are not UTF-8, such as caf\\udce9.mp4",)


# ------------------------------------------------------------------------------------------------------- layouts


def folders(root: Path, *names: str) -> tuple[str, ...]:
    for name in names:
        place = root / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            place.write_bytes(b"")
    return read_manifest(root).notes


def test_folders_that_people_mean_as_splits_are_told_where_they_are_classes(tmp_path: Path) -> None:
    (note,) = folders(tmp_path / "one", "train/run/a.mp4", "dev/run/b.mp4")
    assert note.startswith("folders named like splits are classes here: 'dev', 'train'; splits are ")
    assert folders(tmp_path / "two", "train/run/a.mp4", "val/run/b.mp4") == ()


def test_folders_without_a_video_are_told(tmp_path: Path) -> None:
    assert folders(tmp_path / "one", "run/a.mp4", "walk/") == (
        "1 folders without a video are no classes, such as 'walk'",
    )
    assert folders(tmp_path / "two", "train/run/a.mp4", "test/run/b.mp4", "test/walk/") == (
        "1 folders without a video are no classes, such as 'walk'",
    )
    assert folders(tmp_path / "three", "run/a.mp4", ".cache/") == ()


@pytest.mark.parametrize(("one", "other"), [("Run", "run"), ("caf\u00e9", "cafe\u0301"), ("high jump", "highjump")])
def test_spellings_of_one_name_are_told_and_stay_classes(tmp_path: Path, one: str, other: str) -> None:
    manifest = written(tmp_path, f"path,label\na.mp4,{one}\nb.mp4,{other}\nc.mp4,007\nd.mp4,7\n")
    assert len(manifest.classes) == 4
    (note,) = manifest.notes
    assert note.startswith("1 classes have several spellings, which count as different classes: ")
