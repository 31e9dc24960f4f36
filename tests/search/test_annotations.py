"""Annotations of a collection: actions of `localize --json`, segments and captions of a manifest; shown, filtered."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import in_process
import odd_video
import pytest
import use_world

from internvideo.errors import InternVideoError, ManifestError, RecipeError
from internvideo.features.localize import Action
from internvideo.search.collection import Annotated, Collection


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of four clips of 3 s; do not change it."""
    place = tmp_path_factory.mktemp("annotated")
    shutil.copytree(use_world.clips(), place / "clips")
    with Collection.create(place / "c", use_world.language(), scales=(1.0, 2.0)) as collection:
        collection.add([place / "clips"])
        collection.store.records.set_fact("encoder", {"source": str(use_world.language_folder())})
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "c", tmp_path / "c")
    return tmp_path


@pytest.fixture
def collection(folder: Path) -> Iterator[Collection]:
    with Collection.open(folder / "c", use_world.language()) as opened:
        yield opened


def write_actions(target: Path, videos: dict[str, list[Action]]) -> Path:
    """As `internvideo localize --json` does."""
    rows = [
        {"path": path, "duration": 3.0, "actions": [asdict(one) for one in actions]} for path, actions in videos.items()
    ]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


def paths(collection: Collection) -> dict[str, str]:
    return {Path(video.path).stem: video.path for video in collection.videos}


def test_actions_of_localize_show_beside_moments_and_filter(collection: Collection, folder: Path) -> None:
    known = paths(collection)
    assert collection.search("x", top=1).moments[0].actions == ()
    with pytest.raises(RecipeError, match="no annotation of that kind"):
        collection.search("x", where='action = "wave"')
    file = write_actions(
        folder / "actions.jsonl",
        {
            known["0"]: [Action(1.0, 2.0, "wave", 0.9), Action(0.0, 0.5, "jump", 0.25)],
            known["1"]: [Action(2.5, 9.0, "jump", 0.5)],
            str(folder / "other.mp4"): [Action(0.0, 1.0, "wave", 0.5)],
        },
    )
    assert collection.annotate(file) == Annotated(3, 2, lacking=1)
    assert collection.annotate(file) == Annotated(3, 2, lacking=1)
    assert collection.facts()["actions"] == ["jump", "wave"]
    snapshot = collection.store.snapshot()
    mask = collection.mask('action = "wave"')
    assert mask is not None
    spans = {(snapshot.videos[snapshot.video_index[row]].path, *snapshot.windows[row, :2]) for row in mask.nonzero()[0]}
    # Windows of 1 and 2 s, a half apart: those that hold half of the action, or lie in it by half.
    assert spans == {(known["0"], *span) for span in ((0.5, 1.5), (1.0, 2.0), (1.5, 2.5), (0.0, 2.0), (1.0, 3.0))}
    others = collection.mask('action != "wave"')
    assert others is not None
    assert others.tolist() == (~mask).tolist()
    (first, *_) = collection.search("x", where='action = "wave"').moments
    assert first.path == known["0"]
    assert [one.label for one in first.actions if one.label == "wave"] == ["wave"]
    (cut,) = [one for _, one in collection.store.records.annotations("action", collection.videos[1].id)]
    assert (cut.start, cut.end, cut.score) == (2.5, pytest.approx(3.0, abs=0.05), 0.5), "cut to the duration"
    assert first.to_json()["actions"][0].keys() == {"start", "end", "label", "score"}


def test_segments_and_captions_of_a_manifest(collection: Collection, folder: Path) -> None:
    two, three = (paths(collection)[name] for name in "23")
    rows = [
        {"id": "a", "path": two, "segments": [{"start": 0, "end": 1, "label": 1}], "captions": ["A red dog"]},
        {"id": "b", "path": three, "span": [1, 2], "captions": ["two cats sleep"]},
    ]
    (folder / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "known.classes.txt").write_text("sit\nstand\n")
    assert collection.annotate(folder / "known.jsonl") == Annotated(3, 2, lacking=0)
    assert collection.facts()["actions"] == ["stand"]
    found = collection.search("x", where='caption ~ "DOG"', top=50)
    assert {Path(moment.path).stem for moment in found.moments} == {"2"}
    found = collection.search("x", where='action = "stand" and end = 1')
    (action,) = {action for moment in found.moments for action in moment.actions}
    assert (action.start, action.end, action.label, action.score) == (0.0, 1.0, "stand", None)
    later = collection.search("x", where='caption ~ "cats" and start >= 1 and end <= 2')
    assert later.windows == 1


def test_a_changed_video_gets_its_annotations_again(tmp_path: Path) -> None:
    clips = Path(shutil.copytree(use_world.clips(), tmp_path / "clips"))
    with Collection.create(tmp_path / "c", use_world.language(), scales=(1.0,)) as collection:
        collection.add([clips])
        file = write_actions(tmp_path / "a.jsonl", {str(clips / "0.mp4"): [Action(0.0, 1.0, "wave", 0.9)]})
        collection.annotate(file)
        odd_video.encode(clips / "0.mp4", odd_video.moving_frames(30, seed=77), fps=15)
        assert collection.add([clips]).changed
        changed = next(video for video in collection.videos if video.path.endswith("0.mp4"))
        assert [one.label for _, one in collection.store.records.annotations("action", changed.id)] == ["wave"]
        (clips / "0.mp4").unlink()
        collection.add([clips])
        assert collection.facts()["actions"] == [], "those of a removed video are gone"


def test_a_collection_of_an_earlier_version_has_none(collection: Collection) -> None:
    with closing(sqlite3.connect(collection.store.records.path)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert "annotations" not in tables, "it is made when it is needed"
    assert collection.store.records.annotations("caption") == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"path": "a", "duration": 1, "actions": [{"start": 0}]}', r"a.jsonl:1: actions.0.end: Field required"),
        ('{"path": "a", "duration": 1, "actions": [], "x": 1}', "a.jsonl:1: x: Extra inputs"),
        ('{"path": "a", "duration": 1, "actions": []}\nhuh', "a.jsonl:2: is not JSON"),
        ('{"path": "a", "duration": 1, "actions": []}\n' * 2, "a.jsonl:2: a a second time"),
        ('{"path": "a", "duration": 1, "actions": []}', "no segment, caption or action"),
        ('{"path": "a", "duration": 1, "actions": [{"start": 0, "end": NaN, "label": "x", "score": 1}]}', "a.jsonl:1"),
        ("", "a.jsonl"),
    ],
)
def test_mistakes_are_told(collection: Collection, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(InternVideoError, match=told):
        collection.annotate(tmp_path / "a.jsonl")
    with pytest.raises(ManifestError):
        collection.annotate(tmp_path / "absent.jsonl")
    assert collection.facts()["actions"] == []


def test_the_commands(folder: Path, made: Path) -> None:
    file = write_actions(folder / "a.jsonl", {str(made / "clips" / "1.mp4"): [Action(0.0, 3.0, "wave", 0.9)]})
    done = in_process.command("index", made / "clips", "-o", folder / "c", "--annotations", file)
    assert done.code == 0, done.err
    assert f"annotations: {file}: 1 of 1 videos" in done.out
    done = in_process.command("search", folder / "c", "x", "--where", 'action = "wave"', "--top", 1)
    assert "actions: wave 0:00:00.0-0:00:0" in done.out
