"""`internvideo prepare`: manifests of the videos that are there, and what is told of the others."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from goldens_folder import SAMPLES
from typer.testing import CliRunner

from internvideo.cli.main import app
from internvideo.data.manifest import read_manifest
from internvideo.datasets.prepare import VideoFolder, prepare, read_pickle
from internvideo.errors import ManifestError
from internvideo.video.writer import write_video

FILES = SAMPLES / "tasks" / "annotations"


def a_video(path: Path, frames: int = 4, fps: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (np.full((32, 32, 3), 8 * n, np.uint8) for n in range(frames)), fps)
    return path


def test_present_missing_and_unreadable(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    a_video(videos / "val" / "75YX8XM5mSL_000231_000241.mp4")
    a_video(videos / "Fy5UBIHEYeD.webm.mp4").rename(videos / "Fy5UBIHEYeD.mkv")
    (videos / "p4Zdl_AK6j0.mp4").write_bytes(b"no video")
    (videos / "KgodkDINzNl.txt").write_text("no video either")
    lines: list[str] = []
    done = prepare(
        "kinetics400", FILES / "kinetics400", tmp_path / "out", videos=videos, check_videos=True, log=lines.append
    )
    split = done.splits["val"]
    assert (split.rows, split.present, split.missing, split.unreadable, split.written) == (5, 2, 2, 1, 2)
    assert lines[0].startswith("val: 5 rows; 2 videos present, 2 missing, 1 unreadable; fingerprint ")
    assert "warning: val has 5 clips, officially about 20,000" in lines
    assert "warning: 5 classes, officially 400" in lines
    manifest = read_manifest(tmp_path / "out" / "val.jsonl")
    assert [row.label for row in manifest.rows] == [0, 1]
    assert all(manifest.video_path(row).is_file() for row in manifest.rows)
    assert len(manifest.classes) == 5
    assert (tmp_path / "out" / "missing.txt").read_text().split() == [
        "KgodkDINzNl_000282_000292.mp4",
        "ICAbaG8wy1J_000197_000207.mp4",
    ]
    (line,) = (tmp_path / "out" / "unreadable.txt").read_text().splitlines()
    assert line.startswith(str(videos / "p4Zdl_AK6j0.mp4") + "\t")
    report = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert report["splits"]["val"]["fingerprint"] == split.fingerprint
    a_video(videos / "KgodkDINzNl.mp4")
    (videos / "p4Zdl_AK6j0.mp4").unlink()
    again = prepare("kinetics400", FILES / "kinetics400", tmp_path / "out", videos=videos, check_videos=True)
    assert (again.splits["val"].present, again.splits["val"].missing, again.splits["val"].unreadable) == (3, 2, 0)
    assert (tmp_path / "out" / "unreadable.txt").read_text() == ""


def test_a_fingerprint_knows_the_annotations_and_not_the_place_of_videos(tmp_path: Path) -> None:
    a_video(tmp_path / "videos" / "75YX8XM5mSL.mp4")
    source = tmp_path / "val.csv"
    shutil.copy(FILES / "kinetics400" / "kinetics-400_val.csv", source)
    without = prepare("kinetics400", source, tmp_path / "a").splits["val"]
    there = prepare("kinetics400", source, tmp_path / "b", videos=tmp_path / "videos").splits["val"]
    assert without.fingerprint == there.fingerprint
    assert (without.written, there.written) == (5, 1)
    source.write_text(source.read_text().replace("231", "232"))
    assert prepare("kinetics400", source, tmp_path / "c").splits["val"].fingerprint != without.fingerprint


def test_times_count_from_the_start_of_a_trimmed_file(tmp_path: Path) -> None:
    for start in (100, 117):
        a_video(tmp_path / "videos" / f"q5wLNSMQWXY_{start:06d}_{start + 10:06d}.mp4")
    prepare("ava_kinetics", FILES / "ava_kinetics", tmp_path / "out", videos=tmp_path / "videos")
    (row,) = read_manifest(tmp_path / "out" / "val.jsonl").rows
    assert row.path.endswith("q5wLNSMQWXY_000117_000127.mp4")
    assert row.boxes[0].time == pytest.approx(121.281427 - 117)


def test_names_of_videos(tmp_path: Path) -> None:
    for name in ("a/x.mp4", "b/x.mp4", "v_y.avi", "z_000001_000011.mp4", ".hidden/h.mp4", "f/00001.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = VideoFolder(tmp_path)
    found = {
        name: one and Path(one.path).relative_to(tmp_path).as_posix()
        for name in ("b/x.mp4", "other/b/x.webm", "x", "v_y", "y", "z", "h")
        if (one := folder.find([name])) or True
    }
    assert found == {
        "b/x.mp4": "b/x.mp4", "other/b/x.webm": "b/x.mp4", "x": "a/x.mp4", "v_y": "v_y.avi", "y": None,
        "z": "z_000001_000011.mp4", "h": None,
    }  # fmt: skip
    assert folder.find(["z"], seconds=30.0) is None
    with pytest.raises(ManifestError, match="no such folder"):
        VideoFolder(tmp_path / "absent")


def test_another_part_of_the_same_upload_is_no_stand_in(tmp_path: Path) -> None:
    a_video(tmp_path / "videos" / "75YX8XM5mSL_000001_000011.mp4")
    done = prepare("kinetics400", FILES / "kinetics400", tmp_path / "out", videos=tmp_path / "videos")
    assert done.splits["val"].present == 0
    a_video(tmp_path / "videos" / "ZirLnqB0PRf_000001_000011.mp4")  # a list names only the upload
    source = FILES / "kinetics400" / "val_space_list.csv"
    assert prepare("kinetics400", source, tmp_path / "out", videos=tmp_path / "videos").splits["val"].present == 1


def test_the_merge_says_what_it_dropped(tmp_path: Path) -> None:
    for count, split, video in ((400, "train", "a"), (600, "train", "b"), (700, "train", "c"), (700, "val", "a")):
        path = tmp_path / f"kinetics{count}" / f"{split}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"label,youtube_id,time_start,time_end,split\nyoga,{video},1,11,{split}\n")
    prepare("kinetics710", tmp_path, tmp_path / "out")
    told = (tmp_path / "out" / "dropped.tsv").read_text()
    assert told == "kinetics400\ttrain\ta_000001_000011\tin the val set of kinetics700\n"


def test_films_of_the_mixture_are_cut_at_their_own_rate(tmp_path: Path) -> None:
    annotations = tmp_path / "annotations" / "ava" / "ava_train_v2.2.csv"
    annotations.parent.mkdir(parents=True)
    annotations.write_text("there,0902,0.1,0.1,0.2,0.5,1,0\nabsent,0902,0.1,0.1,0.2,0.5,1,0\n")
    a_video(tmp_path / "videos" / "there.mkv", fps=10)
    done = prepare("unlabeled_hybrid", tmp_path / "annotations", tmp_path / "out", videos=tmp_path / "videos")
    assert done.splits["train"].rows == 900 * 10 // 300 + 900 * 30 // 300
    assert "1 movies of AVA could not be opened; 30 frames/s are assumed" in done.notes
    rows = read_manifest(tmp_path / "out" / "train.jsonl").rows
    assert (len(rows), rows[0].span, rows[0].attributes["stride"]) == (30, (900.0, 930.0), "4")


def test_a_manifest_of_an_earlier_call_does_not_stay(tmp_path: Path) -> None:
    source = FILES / "kinetics400" / "kinetics-400_val.csv"
    prepare("kinetics400", source, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    prepare("kinetics400", source, tmp_path / "out", videos=tmp_path / "empty")
    assert not (tmp_path / "out" / "val.jsonl").exists()


def test_the_command_tells_where_it_wrote(tmp_path: Path) -> None:
    line = ["prepare", "thumos14", "--annotations", str(FILES / "thumos14"), "-o", str(tmp_path / "out")]
    told = CliRunner().invoke(app, line, catch_exceptions=False).output.splitlines()
    assert told[-1] == f"manifests: {tmp_path / 'out'}"
    assert sum(line.startswith("warning: ") for line in told) == 2
    assert len(read_manifest(tmp_path / "out" / "test.jsonl").classes) == 20


def test_an_unknown_benchmark(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no benchmark 'kinetics40' \(did you mean 'kinetics400'\?\)"):
        prepare("kinetics40", tmp_path, tmp_path / "out")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_pickles_are_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = {"video": [["a", "cat"], ["it", "jumps"]]}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "good.pkl").write_bytes(pickle.dumps(captions, protocol))
        assert read_pickle(tmp_path / "good.pkl") == captions
    for content in (pickle.dumps(_Evil()), b"\x80\x02}q", b""):
        (tmp_path / "bad.pkl").write_bytes(content)
        with pytest.raises(ManifestError, match=r"bad\.pkl"):
            read_pickle(tmp_path / "bad.pkl")
    assert capsys.readouterr().out == ""


def test_several_files_of_one_name_are_told_once(tmp_path: Path) -> None:
    videos, lines = tmp_path / "videos", list[str]()
    for name in ("75YX8XM5mSL_000231_000241.mp4", "Fy5UBIHEYeD.mp4"):
        a_video(videos / name)
        shutil.copy(videos / name, videos / name.replace(".mp4", ".webm"))
    done = prepare("kinetics400", FILES / "kinetics400", tmp_path / "out", videos=videos, log=lines.append)
    assert done.splits["val"].present == 2
    (told,) = (line for line in lines if "several files" in line)
    assert told.startswith("warning: ")
    assert "videos match several files; the first is used, such as '" in told
    assert told.endswith(".webm'")
