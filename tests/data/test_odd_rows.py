"""Odd rows of annotations are skipped, counted and named, not a reason to refuse a whole set; within limits."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from internvideo.data.manifest import Manifest, Sample
from internvideo.datasets import activitynet, ava, ego4d, kinetics
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError
from internvideo.sample_world.generate import is_sample_world
from internvideo.tasks.recognition import evaluate as clips
from internvideo.tasks.temporal_localization.data import FeatureSettings, read_feature_set

Read = Callable[[AnnotationSource], Annotations]


def read(reader: Read, folder: Path, name: str, text: str) -> Annotations:
    (folder / name).write_text(text)
    return reader(AnnotationSource(folder))


def database(*parts: tuple[str, float, float], duration: float = 170.0) -> str:
    annotations = [{"label": label, "segment": [start, end]} for label, start, end in parts]
    return json.dumps({"database": {"v": {"subset": "validation", "duration": duration, "annotations": annotations}}})


@pytest.mark.parametrize("label", ["Ambiguous", "ambiguous"])
def test_ambiguous_segments_of_thumos_are_passed_over(tmp_path: Path, label: str) -> None:
    text = database(("Billiards", 1, 5), (label, 8, 9), (label, 10, 12))
    made = read(activitynet.read_thumos14, tmp_path, "thumos_14_anno.json", text)
    (row,) = made.splits["val"]
    assert [(part.start, part.end, made.classes[part.label]) for part in row.segments] == [(1, 5, "Billiards")]
    assert "2 ambiguous segments skipped: they are not evaluated" in made.notes
    assert len(made.classes) == 20


def test_reversed_and_empty_segments_are_counted_and_named(tmp_path: Path) -> None:
    good = [("Billiards", float(start), start + 1.0) for start in range(5)]
    text = database(
        *good, ("Billiards", 9, 8), ("Billiards", 3, 3), ("Billiards", -1, 3), ("Billiards", 7, 6), ("Billiards", 5, 4)
    )
    made = read(activitynet.read_thumos14, tmp_path, "thumos14.json", text)
    assert len(made.splits["val"][0].segments) == 5
    (odd,) = [note for note in made.notes if "of 10 segments skipped" in note]
    assert odd.startswith("4 of 10 segments skipped: ")
    assert "thumos14.json:1 database.v.annotations.5.segment: [9, 8]; " in odd
    assert odd.endswith("annotations.8.segment: [7, 6]; ...")
    assert "1 segments shorter than 0.001 s left out" in made.notes


HACS = "classname,youtube_id,subset,start,end,label\n"
KINETICS = "label,youtube_id,time_start,time_end,split\n"
MOMENT = {"start_time": 1, "end_time": 2, "label": "x", "primary": True}


def moments(*labels: dict[str, object]) -> str:
    clip = {"clip_uid": "c", "annotations": [{"labels": labels}]}
    return json.dumps({"videos": [{"video_uid": "u", "clips": [clip]}]})


@pytest.mark.parametrize(
    ("reader", "name", "text", "note"),
    [
        (activitynet.read_thumos14, "Billiards_val.txt", "v 1 2\nv 3 1\n", "1 of 2 segments skipped: "),
        (activitynet.read_hacs_clips, "clips.csv", HACS + "A,b,training,1,3,1\nA,c,training,3,1,1\n", "1 of 2 clips"),
        (kinetics.read_400, "val.csv", KINETICS + "a,b,1,11,val\na,c,11,11,val\n", "1 of 2 clips skipped"),
        (ava.read_ava, "ava_val_v2.2.csv", "v,0902,.1,.1,.5,.5,1,0\nv,0903,.5,.1,.2,.5,1,0\n", "1 of 2 rows of ava"),
        (ego4d.read_moments, "moments_val.json", moments(MOMENT, {**MOMENT, "end_time": 0}), "1 of 2 labels"),
    ],
)
def test_one_odd_row_refuses_no_set(tmp_path: Path, reader: Read, name: str, text: str, note: str) -> None:
    made = read(reader, tmp_path, name, text)
    assert sum(len(rows) for rows in made.splits.values()) == 1
    (found,) = [line for line in made.notes if line.startswith(note)]
    assert f"{name}:" in found


def test_mostly_odd_rows_are_another_format(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"val\.csv:2 time_end: 1 after time_start 11"):
        read(kinetics.read_400, tmp_path, "val.csv", KINETICS + "a,b,11,1,val\na,c,12,2,val\na,d,1,2,val\n")


# ----------------------------------------------------------------------------------------------- beside features


def features(folder: Path, text: str) -> Path:
    np.save(folder / "v.npy", np.zeros((20, 4), np.float32))
    (folder / "index.json").write_text(text)
    return folder


SETTINGS = FeatureSettings(fps=25.0, stride=4.0, window=16.0)


def test_odd_actions_beside_features_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = database(("a", 1, 5), ("b", 3, 4), ("Ambiguous", 8, 9), ("a", 6, 6), ("a", 9, 8), ("a", 200, 210))
    with caplog.at_level(logging.WARNING):
        found = read_feature_set(features(tmp_path, text), SETTINGS)
    assert found.classes == ("a", "b")
    assert found.videos[0].spans.tolist() == [[1, 5], [3, 4], [200, 210]]
    assert [message.split(": ", 1)[1] for message in caplog.messages] == [
        "1 ambiguous segments skipped",
        "2 segments that end where they start or before skipped",
        "1 of 3 actions start after the end of their video",
    ]


def test_features_of_cut_films_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="2 of 3 actions start after the end of their video"):
        read_feature_set(features(tmp_path, database(("a", 1, 5), ("a", 900, 905), ("a", 990, 995))), SETTINGS)


# ------------------------------------------------------------------------------------- figures of the sample world


@pytest.mark.parametrize("world", [True, False])
def test_classes_of_users_may_be_called_as_those_of_the_sample_world(
    tmp_path: Path, world: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "world.json").write_text(json.dumps({"format": "internvideo sample world" if world else "mine"}))
    rows = (Sample(id="a", path="a.mp4", label=0),)
    manifest = Manifest(rows, ("opening", "closing"), tmp_path, tmp_path / "m.jsonl")
    told: dict[str, Any] = {}
    monkeypatch.setattr(clips, "make_scorer", lambda trained: None)
    monkeypatch.setattr(clips, "make_clip_inputs", lambda *_: None)
    monkeypatch.setattr(clips.recognition, "predict", lambda *_, **options: told.update(options))
    trained = SimpleNamespace(model=None, recipe=SimpleNamespace(model=SimpleNamespace(name="x")))
    clips.predict(cast(Any, trained), manifest, clips.RecognitionOptions(device="cpu"))
    assert set(told["subsets"]) == ({"time_directed"} if world else set())


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 3}', "\x00"])
def test_only_its_own_card_makes_a_sample_world(tmp_path: Path, text: str) -> None:
    assert not is_sample_world(tmp_path)
    (tmp_path / "world.json").write_text(text)
    assert not is_sample_world(tmp_path)
