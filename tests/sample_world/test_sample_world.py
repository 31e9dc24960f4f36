"""The sample world: one seed gives one world, and its answers are true of its pixels."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from internvideo.data.manifest import Manifest, Sample, read_manifest
from internvideo.errors import RecipeError, RunError  # fmt: skip
from internvideo.sample_world import generate as sample_world
from internvideo.sample_world.actions import CATALOGUE, FAR_CLASSES, Cell, Part, track_of
from internvideo.sample_world.generate import (
    ACTIONS,
    HELD_OUT_CLASSES,
    REVERSE_OF,
    TIME_DIRECTED,
    WorldSettings,
    generate,
    held_out,
    plan,
    render,
    reverse_class,
)
from internvideo.sample_world.language import (
    OPTION_KINDS,
    PLACE_PHRASES,
    VERBS,
    captions,
    choices,
    partial_captions,
)
from internvideo.sample_world.scene import COLORS, SHAPES, TEXTURES, Actor, Look, Scene
from internvideo.tasks.zero_shot.templates import read_templates
from internvideo.video.reader import read_frames, read_video_info

SMALL = WorldSettings(clips=40, seed=3, size=48, frames=12, fps=6, long_videos=2)
PARTS = ("train", "validation", "test", "zero_shot", "open_set", "long", "queries")


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass(frozen=True)
class World:
    folder: Path
    manifests: dict[str, Manifest]

    def rows(self, *names: str) -> list[Sample]:
        return [row for name in names for row in self.manifests[name].rows]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world") / "w"
    paths = generate(folder, SMALL, workers=1, progress=False)
    assert tuple(sorted(paths)) == tuple(sorted(PARTS))
    return World(folder, {name: read_manifest(path) for name, path in paths.items()})


# --- one seed, one world ----------------------------------------------------------------------------------------------


def test_same_seed_gives_identical_files_with_any_number_of_workers(world: World, tmp_path: Path) -> None:
    generate(tmp_path / "w", SMALL, workers=2, progress=False)
    assert hashes(tmp_path / "w") == hashes(world.folder)


def test_another_seed_gives_other_clips_and_answers(world: World) -> None:
    other = replace(SMALL, seed=4)
    for number in range(3):
        ours, theirs = plan(SMALL, "train", number), plan(other, "train", number)
        assert ours.facts != theirs.facts
        assert not np.array_equal(render(ours.scene)[0], render(theirs.scene)[0])
    assert sample_world.fingerprint(other) != sample_world.fingerprint(SMALL)


def test_a_clip_does_not_depend_on_how_many_there_are() -> None:
    assert plan(replace(SMALL, clips=1000), "test", 5) == plan(SMALL, "test", 5)


def test_a_second_call_finishes_what_is_missing_and_keeps_the_rest(world: World) -> None:
    before = hashes(world.folder)
    files = sorted(world.folder.rglob("*.mp4"))
    lost, kept = files[3], files[4]
    lost.unlink()
    kept.with_name(".train_00099.abc.mp4").write_bytes(b"half")  # what a killed writer leaves
    (world.folder / "test.jsonl").unlink()
    written = kept.stat().st_mtime_ns
    generate(world.folder, SMALL, workers=1, progress=False)
    assert hashes(world.folder) == before
    assert kept.stat().st_mtime_ns == written


def test_refuses_the_folder_of_another_world_or_of_something_else(world: World, tmp_path: Path) -> None:
    before = hashes(world.folder)
    with pytest.raises(RunError, match="another sample world"):
        generate(world.folder, replace(SMALL, seed=9), progress=False)
    assert hashes(world.folder) == before
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(RunError, match="not an empty folder"):
        generate(tmp_path, SMALL, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    (tmp_path / "w").mkdir()
    (tmp_path / "w/world.json").write_text("{")
    with pytest.raises(RunError, match=r"world\.json: cannot be read"):
        generate(tmp_path / "w", SMALL, progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("clips", 3), ("size", 95), ("size", 8), ("difficulty", 1.5), ("fps", 0), ("seed", -1), ("frames", 2.5)],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(RecipeError, match=f"sample world {name}"):
        replace(SMALL, **settings)


def test_unknown_action_is_named() -> None:
    with pytest.raises(RecipeError, match="dancing"):
        replace(SMALL, actions=("moving up", "dancing"))


# --- classes and splits -----------------------------------------------------------------------------------------------


def test_enough_classes_and_half_of_them_directed_in_time() -> None:
    assert len(ACTIONS) >= 24
    assert 2 * len(TIME_DIRECTED) >= len(ACTIONS)
    assert len(HELD_OUT_CLASSES) >= 4
    assert not set(HELD_OUT_CLASSES) & set(ACTIONS)
    assert len(SHAPES) >= 8
    assert len(COLORS) >= 8
    assert len(TEXTURES) >= 4


def test_reversing_twice_is_the_class_itself_and_stays_within_its_list() -> None:
    for name, reverse in REVERSE_OF.items():
        assert REVERSE_OF[reverse] == name != reverse
        assert (name in ACTIONS) == (reverse in ACTIONS)
        assert CATALOGUE[name].channel == CATALOGUE[reverse].channel
    for index, name in enumerate(ACTIONS):
        back = reverse_class(index)
        assert (back is not None) == (name in TIME_DIRECTED)
        assert back is None or reverse_class(back) == index
    assert reverse_class(0, ("growing", "moving up")) is None


def test_every_row_has_its_clip_and_its_answers(world: World) -> None:
    counts = dict(SMALL.counts)
    assert len(world.manifests["open_set"]) == counts["test"] + counts["zero_shot"] + counts.pop("far")
    assert {name: len(world.manifests[name]) for name in counts} == counts
    assert world.manifests["train"].classes == ACTIONS
    assert world.manifests["zero_shot"].classes == HELD_OUT_CLASSES
    for name in ("train", "validation", "test", "zero_shot"):
        manifest = world.manifests[name]
        for row in manifest.rows:
            assert row.label is not None
            facts = row.attributes
            assert manifest.classes[row.label] == facts["action"]
            assert manifest.video_path(row).is_file()
            assert len(set(row.captions)) == len(row.captions) == 6
            full = 3 if name == "train" else 6
            for caption in row.captions[:full]:
                assert facts["shape"] in caption
                assert facts["colour"] in caption
                assert facts["place"] in caption
            assert facts["action"] in row.captions[0]
            for caption in row.captions[full : full + 2]:  # the action alone
                assert not {facts["shape"], facts["colour"], facts["place"]} & set(caption.split())
            for caption in row.captions[full + 2 :]:  # the object alone
                assert facts["shape"] in caption
                assert facts["place"] not in caption
                assert not any(verb in caption for verb in (facts["action"], *VERBS[facts["action"]]))
            answers = {qa.answer for qa in row.qa}
            assert {facts["action"], facts["colour"], facts["shape"], facts["place"]} <= answers


def test_choices_are_five_with_one_truth_and_the_reverse_action_among_the_rest(world: World) -> None:
    places = Counter[int]()
    for row in world.rows("train", "validation", "test", "zero_shot"):
        assert row.choices is not None
        options, answer, facts = row.choices.options, row.choices.answer, row.attributes
        places[answer] += 1
        assert len(set(options)) == 5
        assert options[answer] == row.captions[0], "asked in the words that are learned"
        start, end = f"{facts['colour']} {facts['shape']} ", f"the {facts['place']}"
        same_object = [one for one in options if start in one and one.endswith(end)]
        assert len(same_object) == 3  # the truth, the reverse action and another action
        reverse = REVERSE_OF.get(facts["action"])
        if reverse is not None:
            assert sum(f" {reverse} " in one for one in same_object) == 1
    assert len(places) == 5  # the truth stands anywhere


def test_whether_a_combination_was_trained_tells_nothing_about_the_right_option() -> None:
    """Of the false looks and scenes of test clips half are held-out combinations, of training clips none."""
    counts = {False: Counter[str](), True: Counter[str]()}
    for test in (False, True):
        for number in range(600):
            clip = plan(SMALL, "test" if test else "train", number)
            rng = np.random.default_rng(number)
            options, answer, kinds = choices(clip.facts, rng, held_out, test=test)
            assert kinds[answer] == "right"
            assert sorted(kinds) == sorted(OPTION_KINDS)
            for option, kind in zip(options, kinds, strict=True):
                colour, shape = option.split()[1:3]
                place = next(name for name, phrase in PLACE_PHRASES.items() if option.endswith(phrase))
                counts[test][kind] += held_out(shape, colour, place)
    for kind in ("other shape", "other colour and place"):
        assert counts[False][kind] == 0
        assert 250 <= counts[True][kind] <= 350
    assert counts[True]["right"] == counts[True]["reversed action"] == 600


def test_what_is_asked_of_unseen_classes_is_in_words_of_training_captions(world: World) -> None:
    trained = {word for number in range(600) for row in [plan(SMALL, "train", number).facts] for caption in (
        *captions(row, np.random.default_rng(number)), *partial_captions(row, np.random.default_rng(number))
    ) for word in caption.split()}  # fmt: skip
    templates = (world.folder / "templates.txt").read_text("utf-8").splitlines()
    assert tuple(templates) == read_templates(world.folder / "zero_shot.jsonl")
    for template in templates:
        for name in HELD_OUT_CLASSES:
            assert set(template.format(name).split()) <= trained
    assert not any(set(name.split()) <= trained for name in FAR_CLASSES)  # these are asked of nobody


def test_classes_are_balanced() -> None:
    settings = replace(SMALL, clips=10 * len(ACTIONS))
    for split in ("train", "validation", "test"):
        count = Counter(plan(settings, split, number).facts.action for number in range(settings.counts[split]))
        assert set(count) == set(ACTIONS)
        assert max(count.values()) - min(count.values()) <= 1


def test_combinations_of_the_test_clips_are_never_trained_on_but_their_parts_are() -> None:
    def seen(split: str) -> set[tuple[str, str, str]]:
        clips = [plan(SMALL, split, number).facts for number in range(600)]
        return {(facts.shape, facts.colour, facts.place) for facts in clips}

    train, test = seen("train") | seen("validation"), seen("test") | seen("zero_shot")
    assert not train & test
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert {(triple[one], triple[other]) for triple in test} <= {(triple[one], triple[other]) for triple in train}
    assert all(held_out(*triple) for triple in test)


def test_open_set_has_known_classes_with_labels_and_unknown_ones_without(world: World) -> None:
    rows = world.rows("open_set")
    assert {row.attributes["known"] for row in rows} == {"yes", "no"}
    for row in rows:
        known = row.attributes["action"] in ACTIONS
        assert (row.label is not None) == known == (row.attributes["known"] == "yes")
        near, far = row.attributes["action"] in HELD_OUT_CLASSES, row.attributes["action"] in FAR_CLASSES
        assert row.attributes.get("novelty") == ("near" if near else "far" if far else None)
    assert {row.attributes.get("novelty") for row in rows} == {None, "near", "far"}


# --- files and long videos --------------------------------------------------------------------------------------------


def test_files_are_h264_of_the_asked_size_and_show_the_drawn_frames(world: World) -> None:
    row = world.manifests["test"].rows[0]
    path = world.manifests["test"].video_path(row)
    info = read_video_info(path)
    assert (info.width, info.height, info.frames, info.codec) == (48, 48, 12, "h264")
    assert info.fps == pytest.approx(6)
    drawn = render(plan(SMALL, "test", 0).scene)[0].astype(float)
    decoded = read_frames(path, list(range(12))).astype(float)
    assert np.abs(drawn - decoded).mean() < 8  # chroma is stored at half the size
    assert np.abs(drawn[::-1] - decoded).mean() > np.abs(drawn - decoded).mean()


def test_every_query_about_a_long_video_has_one_answer(world: World) -> None:
    rows, videos = world.rows("queries"), {row.id: row for row in world.rows("long")}
    assert {Path(row.path).stem for row in rows} == set(videos)
    for row in rows:
        video, told = videos[Path(row.path).stem], row.attributes
        (answer,) = row.segments
        assert row.split == video.split
        same = [part for part in video.segments if ACTIONS[part.label] == told["asks"]]
        assert (answer.start, answer.end) in {(part.start, part.end) for part in same}
        scene = plan(SMALL, "long", int(video.id.split("_")[1])).scene
        doers = [actor for actor in scene.actors if f"{actor.look.colour} {actor.look.shape}" in row.captions[0]]
        if told["template"] == "action":
            assert (len(same), doers) == (1, [])
        else:
            (doer,) = doers
            assert sum(told["asks"] in part.actions for part in doer.parts) == 1
    assert {row.attributes["template"] for row in rows} == {"actor", "action"}
    assert len({row.captions for row in rows}) > len(rows) / 2


def test_long_videos_have_segments_within_their_length_and_boxes_within_the_frame(world: World) -> None:
    manifest = world.manifests["long"]
    together = 0
    for row in manifest.rows:
        length = read_video_info(manifest.video_path(row)).duration
        assert 10 <= length <= 30.5
        assert len(row.segments) >= 3
        assert all(0 <= part.start < part.end <= length for part in row.segments)
        assert len({box.actor for box in row.boxes}) >= 2
        assert {box.time % 1 for box in row.boxes} == {0.5}
        for box in row.boxes:
            assert 0 <= box.x1 < box.x2 <= 1
            assert 0 <= box.y1 < box.y2 <= 1
            assert box.time < length
            going = {part.label for part in row.segments if part.start <= box.time < part.end}
            assert set(box.labels) <= going | {ACTIONS.index("standing still")}
            together += len(box.labels) > 1
    assert together > 0


# --- the answers are true of the pixels -------------------------------------------------------------------------------


def scene_of(action: str, seed: int = 0, difficulty: float = 0.0, shape: str = "triangle") -> Scene:
    look = Look(shape, "red", "striped", 0.15)
    actor = Actor(look, (Part((action,), 2, 20),), Cell(radius=0.15))
    return Scene(64, 24, "snow", difficulty, (actor,), (seed, 7))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("action", "axis", "sign"),
    [
        ("moving left to right", 0, 1), ("moving right to left", 0, -1), ("moving up", 1, -1), ("moving down", 1, 1),
    ],
)  # fmt: skip
def test_objects_move_where_the_class_says(action: str, axis: int, sign: int, seed: int) -> None:
    frames, boxes = render(scene_of(action, seed, shape="circle"))
    centers = (boxes[:, 0, :2] + boxes[:, 0, 2:]) / 2
    assert sign * (centers[-1, axis] - centers[0, axis]) > 0.25
    red = (frames[..., 0].astype(float) - frames[..., 1:].max(-1)).clip(60) - 60  # the object, from the pixels alone
    at = (red.sum(1 + axis) * np.arange(64)).sum(1) / red.sum((1, 2)) / 64
    assert np.abs(at - centers[:, axis]).max() < 0.06
    assert (sign * np.diff(at) > -0.02).all()


def test_sizes_and_opacity_change_as_the_class_says() -> None:
    def red(action: str) -> NDArray[np.float64]:
        frames = render(scene_of(action))[0].astype(float)
        return np.asarray((frames[..., 0] - frames[..., 1]).clip(0).sum((1, 2)))

    for more, less in (
        ("growing", "shrinking"), ("appearing", "vanishing"), ("closing", "opening"), ("filling up", "draining"),
        ("gaining colour", "losing colour"),
    ):  # fmt: skip
        assert red(more)[-1] > 1.3 * red(more)[0]
        assert red(less)[0] > 1.3 * red(less)[-1]


def test_clockwise_is_clockwise_on_screen() -> None:
    for action in ("turning clockwise", "circling clockwise"):
        track = track_of((Part((action,), 0, 23),), 24, Cell(), (1, 2))
        x, y = (np.cos(track.angle), np.sin(track.angle)) if "turning" in action else (track.x, track.y)
        x, y = x - x.mean(), y - y.mean()
        assert (x[:-1] * y[1:] - y[:-1] * x[1:]).sum() > 0  # y points down: from the right towards the bottom


@pytest.mark.parametrize("action", [name for name in CATALOGUE if name in REVERSE_OF])
def test_a_clip_played_backwards_is_a_clip_of_the_reverse_class(action: str) -> None:
    forward = scene_of(action)
    actor = forward.actors[0]
    mirrored = Part((REVERSE_OF[action],), 23 - actor.parts[0].stop, 23 - actor.parts[0].start)
    backward = replace(forward, actors=(replace(actor, parts=(mirrored,)),))
    frames, boxes = render(forward)
    again, moved = render(backward)
    assert np.abs(frames.astype(int) - again[::-1].astype(int)).max() <= 1
    np.testing.assert_allclose(boxes, moved[::-1], atol=1e-9)
    assert np.abs(frames.astype(int) - frames[::-1].astype(int)).max() > 30


@pytest.mark.parametrize("action", [name for name in ACTIONS if name not in TIME_DIRECTED])
def test_the_other_classes_are_themselves_backwards(action: str) -> None:
    assert action not in REVERSE_OF
    frames = render(scene_of(action))[0].astype(int)
    changed = np.abs(np.diff(frames, axis=0)).max()
    assert (changed == 0) == (action == "standing still")


def test_world_card_tells_the_settings(world: World) -> None:
    card = json.loads((world.folder / "world.json").read_text())
    assert card["settings"]["seed"] == 3
    assert card["fingerprint"] == sample_world.fingerprint(SMALL)
