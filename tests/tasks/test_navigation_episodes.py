"""Generated episodes: what a sentence says is true, every goal can be reached, files are those of R2R-CE."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from internvideo.cli.navigation_world import navigation_world
from internvideo.datasets.navigation import read_r2r
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError, RecipeError
from internvideo.tasks.navigation.plots import FloorPlan, plot_floor_plans
from internvideo.tasks.navigation.world.episodes import (
    NavigationSettings,
    from_habitat,
    heading_to_quaternion,
    quaternion_to_heading,
    read_episodes,
    to_habitat,
    write_world,
)
from internvideo.tasks.navigation.world.follower import ACTION_TURN, FORWARD, LEFT, RIGHT, STOP, STOP_WITHIN, follow
from internvideo.tasks.navigation.world.house import generate_house
from internvideo.tasks.navigation.world.instructions import (
    LandmarkPhrase,
    Pass,
    Route,
    Stop,
    Through,
    generate_instruction,
    goal_named_by_motion,
    parse_instruction,
    vocabulary,
)
from internvideo.tasks.navigation.world.protocol import STEP, Episode, Pose, turn_towards, wrap_angle
from internvideo.tasks.navigation.world.scene import COLORS, MOTIONS, SHAPES
from internvideo.tasks.navigation.world.world import House, World

SETTINGS = NavigationSettings(scenes=4, episodes=24, validation=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("navigation")
    write_world(made, SETTINGS)
    return made


@pytest.fixture(scope="module")
def episodes(folder: Path) -> list[Episode]:
    return [episode for split in ("train", "val_seen", "val_unseen") for episode in read_episodes(folder, split)]


def random_route(rng: np.random.Generator) -> Route:
    def one(options: object) -> str:
        choices = list(options)  # type: ignore[call-overload]  # any of the tables
        return str(choices[int(rng.integers(len(choices)))])

    legs: list[object] = []
    for number in range(int(rng.integers(0, 4))):
        turn = one(("", "left", "right", "around")) if number == 0 else ""
        door = rng.random() < 0.5
        legs.append(Through(one(COLORS), turn) if door else Pass(LandmarkPhrase(one(SHAPES), one(COLORS)), turn))  # type: ignore[arg-type]
    legs.append(Stop(LandmarkPhrase(one(SHAPES), one(COLORS), one(("", "still", *MOTIONS)))))  # type: ignore[arg-type]  # drawn
    return tuple(legs)  # type: ignore[arg-type]  # drawn words


def test_what_is_said_is_understood() -> None:
    rng = np.random.default_rng(0)
    said = set()
    for _ in range(400):
        route = random_route(rng)
        text = generate_instruction(route, rng)
        said.add(text)
        assert parse_instruction(text) == route, text
        assert text[0].isupper()
        assert text.endswith(".")
        assert {word.strip(".,").lower() for word in text.split()} <= set(vocabulary())
    assert len(said) > 350


@pytest.mark.parametrize(
    "text",
    [
        "", "Go.", "Go through the red door.", "Stop at the red door.",
        "Go through the red box and stop at the red box.",
        "Stop at the red box, then pass the blue box.", "Pass the grey box and stop at the red box.",
        "Pass the red box, turn left and stop at the red box.", "Turn left.", "Stop at the jumping red box.",
    ],
)  # fmt: skip
def test_what_is_no_sentence_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match=r"grammar|beginning|one stop"):
        parse_instruction(text)
    assert not goal_named_by_motion(text)


def test_files_are_read_by_the_reader_of_the_real_ones(folder: Path) -> None:
    made = read_r2r(AnnotationSource(folder))
    assert {split: len(rows) for split, rows in made.splits.items()} == {"train": 24, "val_seen": 12, "val_unseen": 12}
    content = json.loads(gzip.decompress((folder / "val_unseen.json.gz").read_bytes()))
    tokens = content["episodes"][0]["instruction"]["instruction_tokens"]
    assert len(tokens) == 200
    words = content["instruction_vocab"]["word_list"]
    told = [words[number] for number in tokens if number]
    assert told == re.findall(r"[a-z]+", content["episodes"][0]["instruction"]["instruction_text"].lower())


def test_unseen_houses_are_in_no_other_split(episodes: list[Episode]) -> None:
    scenes = {split: {episode.scene for episode in episodes if episode.split == split} for split in
              ("train", "val_seen", "val_unseen")}  # fmt: skip
    assert not scenes["val_unseen"] & (scenes["train"] | scenes["val_seen"])
    assert scenes["val_seen"] <= scenes["train"]
    assert len({episode.id for episode in episodes}) == len(episodes)


def test_a_trajectory_has_three_different_sentences_of_one_meaning(episodes: list[Episode]) -> None:
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.trajectory, []).append(episode)
    assert all(len(group) == 3 for group in groups.values())
    assert all(len({parse_instruction(episode.instruction) for episode in group}) == 1 for group in groups.values())
    assert sum(len({episode.instruction for episode in group}) == 3 for group in groups.values()) > 0.9 * len(groups)


def test_a_follower_of_the_shortest_way_reaches_every_goal(folder: Path, episodes: list[Episode]) -> None:
    """By the moves of a planner: a turn, then a step; the way is little longer than the shortest."""
    world = World(folder)
    for episode in episodes[::3]:
        world.reset(episode)
        assert episode.goal is not None
        assert episode.geodesic == pytest.approx(world.geodesic(episode.start.position, episode.goal), abs=1e-6)
        walked, turn = 0.0, 0.0
        for action in follow(world.house.ground, world.pose, episode.goal).actions:
            turn += {LEFT: ACTION_TURN, RIGHT: -ACTION_TURN}.get(action, 0.0)
            if action == FORWARD:
                before = world.pose
                for pose in world.step(turn, STEP).poses:
                    walked += math.dist(before.position, pose.position)
                    before = pose
                turn = 0.0
        assert world.geodesic(world.pose.position, episode.goal) < 0.5
        assert walked < 1.1 * episode.geodesic + 0.5


def test_a_follower_is_not_caught_at_a_corner() -> None:
    """Here whole steps and turns of 15 degrees along the straight pieces alone went to and fro for ever."""
    ground = House(generate_house("scenes/house_0055.json", 200_061)).ground
    start, goal = Pose(6.644, 9.81, 2.094431), (10.27, 4.58)
    walked = follow(ground, start, goal)
    assert walked.actions[-1] == STOP
    assert math.dist(walked.locations[-1], goal) <= STOP_WITHIN
    shortest = float(ground.distances(np.array([[start.x, start.y]]), goal)[0])
    assert 0.25 * walked.actions.count(FORWARD) < 1.1 * shortest + 0.5


def test_the_actions_of_the_truth_lead_to_the_goal(folder: Path, episodes: list[Episode]) -> None:
    world = World(folder)
    truth = json.loads(gzip.decompress((folder / "val_unseen_gt.json.gz").read_bytes()))
    for episode in [episode for episode in episodes if episode.split == "val_unseen"][::3]:
        world.reset(episode)
        entry = truth[episode.id]
        for action in entry["actions"]:
            turn = {LEFT: math.radians(15), RIGHT: -math.radians(15)}.get(action, 0.0)
            world.step(turn, 0.25 if action == FORWARD else 0.0)
        assert entry["actions"][-1] == 0
        assert entry["forward_steps"] == len(entry["locations"]) - 1 == entry["actions"].count(FORWARD)
        assert episode.goal is not None
        assert math.dist(world.pose.position, episode.goal) <= 0.21
        assert math.dist(world.pose.position[:2], from_habitat(entry["locations"][-1])[:2]) < 1e-3
        np.testing.assert_allclose(episode.path[-1, :2], world.pose.position[:2], atol=1e-3)


def test_what_the_sentences_say_is_true(folder: Path, episodes: list[Episode]) -> None:
    """Doors are met in the order that is said, passed things are passed in between, the last one stands at the goal."""
    world = World(folder)
    for episode in episodes[::3]:
        scene = world.load_house(episode.scene).scene
        route = parse_instruction(episode.instruction)
        path = episode.path[:, :2]
        at = 0
        assert episode.goal is not None
        for leg in route[:-1]:
            if isinstance(leg, Through):
                room = scene.room_at(*path[at])
                assert room is not None
                doors = [door for door in scene.doors if room in door.rooms and door.color == leg.color]
                assert len(doors) == 1, "a colour means one door of the room"
                away = np.hypot(path[at:, 0] - doors[0].x, path[at:, 1] - doors[0].y)
                assert away.min() < 0.75
                at += int(away.argmin()) + 1
                while at < len(path) - 1 and scene.room_at(*path[at]) == room:
                    at += 1
            elif isinstance(leg, Pass):
                away = [np.hypot(path[at:, 0] - thing.x, path[at:, 1] - thing.y).min() for thing in scene.landmarks
                        if (thing.shape, thing.color) == (leg.thing.shape, leg.thing.color)]  # fmt: skip
                assert min(away) < 2.2
        last = route[-1].thing  # type: ignore[union-attr]  # a Stop
        meant = [thing for thing in scene.landmarks if (thing.shape, thing.color) == (last.shape, last.color)
                 and thing.room == scene.room_at(*episode.goal[:2])
                 and (not last.motion or (thing.motion or "still") == last.motion)]  # fmt: skip
        assert len(meant) == 1
        assert math.dist((meant[0].x, meant[0].y), episode.goal[:2]) < 1.7


def test_the_first_turn_leads_where_the_way_goes(folder: Path, episodes: list[Episode]) -> None:
    sides = {"": (0, 75), "left": (15, 165), "right": (-165, -15), "around": (105, 180)}
    for episode in episodes:
        turn = parse_instruction(episode.instruction)[0].turn
        target = episode.path[min(6, len(episode.path) - 1), :2]
        angle = math.degrees(turn_towards(episode.start, tuple(target)))
        low, high = sides[turn]
        assert low <= (abs(angle) if turn in ("", "around") else angle) <= high, episode.instruction


def test_a_goal_told_by_motion_has_a_twin_too_far_to_count(folder: Path, episodes: list[Episode]) -> None:
    world = World(folder)
    told = [episode for episode in episodes if goal_named_by_motion(episode.instruction)]
    assert len(told) > len(episodes) * 0.1
    for episode in told:
        last = parse_instruction(episode.instruction)[-1].thing  # type: ignore[union-attr]  # a Stop
        assert episode.goal is not None
        room = world.load_house(episode.scene).scene.room_at(*episode.goal[:2])
        twins = [thing for thing in world.load_house(episode.scene).scene.landmarks
                 if (thing.shape, thing.color, thing.room) == (last.shape, last.color, room)]  # fmt: skip
        assert len({thing.motion for thing in twins}) == len(twins) == 2
        wrong = max(math.dist((thing.x, thing.y), episode.goal[:2]) for thing in twins)
        assert wrong > episode.radius


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_world(tmp_path, SETTINGS)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.is_file())
    assert len(names) == 4 + 6
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_coordinates_of_habitat_there_and_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        point = tuple(float(value) for value in rng.uniform(-9, 9, 3))
        assert from_habitat(to_habitat(point)) == point
        heading = float(rng.uniform(-math.pi, math.pi))
        assert wrap_angle(quaternion_to_heading(heading_to_quaternion(heading)) - heading) == pytest.approx(0, abs=1e-9)
    assert quaternion_to_heading([0, 0, 0, 1]) == 0  # habitat's -z
    # A quarter turn about y to the left, from -z to -x: here from +x to +y.
    assert quaternion_to_heading([0, math.sqrt(0.5), 0, math.sqrt(0.5)]) == pytest.approx(math.pi / 2)
    assert from_habitat([-1, 0.2, 0]) == pytest.approx((0, 1, 0.2))


def test_a_split_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(ManifestError, match="no episodes of test"):
        read_episodes(folder, "test")
    with pytest.raises(RecipeError, match="scenes"):
        NavigationSettings(scenes=1)


def test_plans_show_what_was_walked(folder: Path, episodes: list[Episode]) -> None:
    episode = episodes[-1]
    scene = World(folder).load_house(episode.scene).scene
    way = np.array([[1.0, 1.0], [2.0, 1.5]])
    text = plot_floor_plans([FloorPlan(scene, episode, {"planner": way}, "arrived"), FloorPlan(scene, episode, {})])
    assert text.startswith("<svg")
    assert "planner" in text
    assert "arrived" in text
    assert text == plot_floor_plans(
        [FloorPlan(scene, episode, {"planner": way}, "arrived"), FloorPlan(scene, episode, {})]
    )
    with pytest.raises(ValueError, match="no floor plan"):
        plot_floor_plans([])


def test_the_command_writes_a_world_and_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    navigation_world(tmp_path / "w", scenes=2, episodes=3, validation=3, seed=4, picture=tmp_path / "plan.svg")
    assert "val_unseen" in capsys.readouterr().out
    assert (tmp_path / "plan.svg").read_text().startswith("<svg")
    assert len(read_episodes(tmp_path / "w", "train")) == 3
    assert isinstance(World(tmp_path / "w").reset(read_episodes(tmp_path / "w", "val_unseen")[0]), Pose)
