"""The embedded world: what the rays see, how far the ways are, how one walks."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from internvideo.errors import ManifestError
from internvideo.tasks.navigation.world.free_space import FreeSpace
from internvideo.tasks.navigation.world.house import HouseSettings, generate_house
from internvideo.tasks.navigation.world.protocol import (
    Episode,
    NavEnv,
    Pose,
    num_forward_steps,
    split_turn,
    turn_towards,
    wrap_angle,
)
from internvideo.tasks.navigation.world.raycast import EYE, MAX_DEPTH
from internvideo.tasks.navigation.world.scene import (
    COLORS,
    MOTIONS,
    WALL,
    Door,
    Landmark,
    Room,
    Scene,
    build_walls,
    footprints,
    read_scene,
    write_scene,
)
from internvideo.tasks.navigation.world.world import House, World

BODY = 0.1
ROOM = Room(x0=0, y0=0, x1=8, y1=6, floor="grey", wall="ivory")


def episode(scene: str, start: Pose) -> Episode:
    return Episode("1", scene, "train", start, None, 3.0, "Stop.", "1", np.zeros((0, 2)), None)


def world_of(scene: Scene, start: Pose, size: int = 32) -> World:
    world = World({scene.name: scene}, size)
    world.reset(episode(scene.name, start))
    return world


def one_room(*things: Landmark) -> Scene:
    return Scene(name="room", size=(8, 6), rooms=(ROOM,), landmarks=things)


def box(x: float, y: float, **more: object) -> Landmark:
    return Landmark.model_validate({"shape": "box", "colour": "red", "x": x, "y": y, "room": 0} | more)


def reds(view: np.ndarray) -> np.ndarray:
    """Pixels of a red thing, lit or dark."""
    r, g, b = (view[..., channel].astype(int) for channel in range(3))
    return (r > 60) & (g < r // 3) & (b < r // 3)


# what the rays see


def test_a_thing_appears_in_the_view_that_the_convention_says() -> None:
    """Views count counter-clockwise: 0 ahead, 3 left, 6 behind, 9 right, whatever the heading."""
    for heading in (0.0, 1.1, -2.0):
        for view, angle in ((0, 0), (3, 90), (6, 180), (9, 270), (1, 30)):
            at = heading + math.radians(angle)
            scene = one_room(box(4 + 1.8 * math.cos(at), 3 + 1.8 * math.sin(at), shape="pillar"))
            seen = world_of(scene, Pose(4, 3, heading)).observe().rgb
            inside = [float(reds(picture)[:, 12:20].mean()) for picture in seen]
            assert int(np.argmax(inside)) == view
            assert inside[view] > 0.3


def test_left_of_a_view_is_left() -> None:
    seen = world_of(one_room(box(6, 4)), Pose(4, 3, 0.0), 64).observe().rgb[0]
    columns = np.nonzero(reds(seen).any(axis=0))[0]
    assert columns.max() < 32  # 26 degrees to the left of straight ahead
    assert columns.mean() == pytest.approx((1 - math.tan(math.atan2(1, 2))) * 32, abs=4)


def test_depth_is_measured_along_the_axis() -> None:
    seen = world_of(one_room(), Pose(3, 3, 0.0), 33).observe()
    wall = 8 - WALL / 2 - 3
    np.testing.assert_allclose(seen.depth[0, 16, 8:25] * MAX_DEPTH, wall, atol=1e-4)  # a flat wall is equally deep
    floor = seen.depth[0, -1] * MAX_DEPTH
    down = 1 - 1 / 33  # v of the last row's middle
    np.testing.assert_allclose(floor, EYE / down, atol=1e-4)
    assert seen.depth.dtype == np.float32
    assert seen.rgb.dtype == np.uint8
    assert seen.rgb.shape == (12, 33, 33, 3)
    assert seen.depth.min() > 0
    assert seen.depth.max() <= 1


def test_depth_and_colour_of_a_thing_before_a_wall() -> None:
    seen = world_of(one_room(box(6, 3)), Pose(4, 3, 0.0), 65).observe()
    middle = seen.depth[0][:, 32] * MAX_DEPTH
    red = reds(seen.rgb[0][:, 32])
    assert red.any()
    front = 6 - 0.42 - 4
    top = 32 - np.nonzero(red)[0].min()
    assert middle[red].min() == pytest.approx(front, abs=1e-4)
    # One looks down on its lid, 0.3 m below the eye, whose far edge is 2.42 m away.
    assert top / 32.5 == pytest.approx((0.95 - EYE) / 2.42, abs=0.05)


def test_depth_views_may_have_their_own_size() -> None:
    scene = one_room(box(6, 3))
    world = World({"room": scene}, 16, 24)
    world.reset(episode("room", Pose(4, 3, 0.0)))
    seen = world.observe()
    assert (seen.rgb.shape, seen.depth.shape) == ((12, 16, 16, 3), (12, 24, 24))
    np.testing.assert_array_equal(
        seen.depth, World({"room": scene}, 24).load_house("room").camera.panorama(world.pose, 0, 24).depth
    )


def test_the_same_pose_and_tick_give_the_same_pixels() -> None:
    scene = generate_house("a", 5)
    pose = Pose(*scene.rooms[0].center, 0.7)
    first = House(scene).camera.panorama(pose, 3, 32)
    again = House(Scene.model_validate_json(scene.model_dump_json())).camera.panorama(pose, 3, 32)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.depth, again.depth)


def test_turning_by_a_view_moves_the_panorama_by_one() -> None:
    camera = House(generate_house("a", 6)).camera
    pose = Pose(2.0, 2.5, 0.2)
    seen = camera.panorama(pose, 0, 32).depth
    turned = camera.panorama(replace(pose, heading=pose.heading + math.pi / 6), 0, 32).depth
    assert (np.abs(np.roll(seen, -1, axis=0) - turned) < 1e-3).mean() > 0.995


@pytest.mark.parametrize("motion", MOTIONS)
def test_only_pictures_one_after_another_tell_what_moves(motion: str) -> None:
    """A still thing equals the moving one at some moment; over time one changes and the other does not."""
    pose = Pose(4, 3, 0.0)
    moving = House(one_room(box(6, 3, motion=motion, frozen=motion, phase=0.25))).camera
    still = House(one_room(box(6, 3, frozen=motion, phase=0.25))).camera
    np.testing.assert_array_equal(moving.panorama(pose, 0, 32).rgb, still.panorama(pose, 0, 32).rgb)
    np.testing.assert_array_equal(still.panorama(pose, 0, 32).rgb, still.panorama(pose, 7, 32).rgb)
    frames = [moving.panorama(pose, tick, 32).rgb[0] for tick in range(8)]
    changed = [bool((a != b).any()) for a, b in pairwise(frames)]
    assert sum(changed) >= 3


def test_a_doorway_can_be_looked_through_below_its_lintel() -> None:
    rooms = (ROOM, Room(x0=8, y0=0, x1=14, y1=6, floor="dark", wall="rose"))
    door = Door(x=8, y=3, along="y", color="green", rooms=(0, 1))
    scene = Scene(name="two", size=(14, 6), rooms=rooms, doors=(door,))
    seen = world_of(scene, Pose(4, 3, 0.0), 65).observe()
    column = seen.depth[0, :, 32] * MAX_DEPTH
    assert column[32] == pytest.approx(14 - WALL / 2 - 4, abs=1e-3)  # the wall of the next room
    lintel = 32 - round((2.3 - EYE) / (4 - WALL / 2) * 32.5)
    assert column[lintel] == pytest.approx(4 - WALL / 2 - 0.03, abs=1e-3)
    assert seen.rgb[0, lintel, 32].argmax() == 1


# how far the ways are


def test_in_an_empty_room_the_distance_is_the_straight_line() -> None:
    ground = FreeSpace(np.zeros((0, 4)), (0, 0, 8, 6), BODY)
    points = np.random.default_rng(0).uniform((0, 0), (8, 6), (50, 2))
    np.testing.assert_allclose(ground.distances(points, (3, 2)), np.linalg.norm(points - (3, 2), axis=1), atol=1e-12)
    assert ground.distances(np.array([[9.0, 1.0]]), (3, 2))[0] == math.inf


def test_around_the_corner_of_an_l_shaped_room() -> None:
    """The quarter above and to the right of (3, 3) is solid: ways bend at (3 - body, 3 - body)."""
    ground = FreeSpace(np.array([[3.0, 3.0, 9.0, 9.0]]), (0, 0, 8, 8), BODY)
    a, b, corner = (1.0, 7.0), (7.0, 1.0), (3 - BODY, 3 - BODY)
    expected = math.dist(a, corner) + math.dist(corner, b)
    assert ground.distances(np.array([a]), b)[0] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(ground.path(a, b), [a, corner, b], atol=1e-6)


def test_around_a_block_the_shorter_side_is_taken() -> None:
    ground = FreeSpace(np.array([[2.0, 1.0, 4.0, 5.0]]), (0, 0, 6, 6), BODY)
    a, b = (1.0, 2.5), (5.0, 2.5)
    low, high = 1 - BODY, 5 + BODY
    below, above = (2 * math.dist(a, (2 - BODY, y)) + 2 + 2 * BODY for y in (low, high))
    assert ground.distances(np.array([a]), b)[0] == pytest.approx(min(below, above), abs=1e-6)


def test_distances_are_no_longer_than_those_of_a_fine_grid_and_hardly_shorter() -> None:
    """An independent answer: Dijkstra over cells of 10 cm with 16 neighbours, which is at most 2.8 % too long."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra

    house = House(generate_house("a", 8, HouseSettings(columns=2, rows=1)))
    cell = 0.1
    shape = tuple(int(side / cell) for side in house.scene.size)
    cells = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), axis=-1).reshape(-1, 2)
    places = (cells + 0.5) * cell
    free = house.ground.free(places)
    rows, columns, weights = [], [], []
    knight = [(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2)]
    for step in knight:
        other = cells + step
        ok = ((other >= 0) & (other < shape)).all(axis=1) & free
        number = np.nonzero(ok)[0]
        target = other[ok, 0] * shape[1] + other[ok, 1]
        ok = free[target]
        # Half way must be free too, or diagonals would cut corners.
        ok &= house.ground.free((places[number] + places[target]) / 2)
        rows.append(number[ok])
        columns.append(target[ok])
        weights.append(np.full(ok.sum(), cell * math.hypot(*step)))
    graph = coo_matrix(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=(len(cells),) * 2
    )
    start = int(np.nonzero(free)[0][len(np.nonzero(free)[0]) // 3])
    grid = dijkstra(graph.tocsr(), directed=False, indices=start)
    exact = house.ground.distances(places[free], tuple(places[start]))
    np.testing.assert_array_equal(np.isfinite(grid[free]), np.isfinite(exact))
    far = exact > 1
    ratio = grid[free][far] / exact[far]
    assert ratio.min() > 0.995  # the grid may cut a corner by half a cell
    assert ratio.max() < 1.06
    assert ratio.mean() < 1.03


def test_a_path_is_as_long_as_the_distance_and_keeps_clear() -> None:
    house = House(generate_house("a", 4))
    rng = np.random.default_rng(1)
    points = rng.uniform((0, 0), house.scene.size, (60, 2))
    points = points[house.ground.free(points)][:20]
    for a, b in zip(points, points[::-1], strict=True):
        path = house.ground.path(tuple(a), tuple(b))
        length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
        assert length == pytest.approx(house.ground.distances(a[None], tuple(b))[0], abs=1e-6)
        assert length == pytest.approx(house.ground.distances(b[None], tuple(a))[0], abs=1e-6)
        assert all(house.ground.sees(path[n : n + 1], path[n + 1 : n + 2])[0, 0] for n in range(len(path) - 1))


def test_every_room_of_many_houses_can_be_reached() -> None:
    for seed in range(12):
        house = House(generate_house("a", seed))
        corners = np.array([(room.x0 + 0.4, room.y0 + 0.4) for room in house.scene.rooms])
        assert np.isfinite(house.ground.distances(corners, tuple(corners[0]))).all()
        assert len(house.scene.doors) >= len(house.scene.rooms) - 1


def test_nobody_stands_in_a_wall_or_a_thing() -> None:
    world = world_of(one_room(box(6, 3)), Pose(4, 3, 0.0))
    assert world.free((4.0, 3.0))
    assert not world.free((6.0, 3.0))
    assert not world.free((0.05, 3.0))
    assert not world.free((-1.0, 3.0))
    assert world.geodesic((4.0, 3.0), (6.0, 3.0)) == math.inf
    with pytest.raises(ManifestError, match="start is blocked"):
        world.reset(episode("room", Pose(6, 3, 0.0)))


def test_a_walk_turns_in_pieces_and_steps_by_a_quarter_of_a_metre() -> None:
    world = world_of(one_room(), Pose(2, 2, 0.0))
    walk = world.step(math.radians(120), 0.8)
    turned = [math.degrees(pose.heading) for pose in walk.poses]
    np.testing.assert_allclose(turned, [45, 90, 120, 120, 120, 120], atol=1e-9)
    assert walk.ticks == (1, 2, 3, 4, 5, 6)
    assert world.tick == 6
    assert not walk.collided
    end = (2 + 0.75 * math.cos(math.radians(120)), 2 + 0.75 * math.sin(math.radians(120)))
    np.testing.assert_allclose(walk.poses[-1].position[:2], end, atol=1e-12)
    assert world.pose == walk.poses[-1]
    assert world.step(0.0, 0.2).poses == ()


def test_turns_take_the_shorter_way_and_distances_are_not_lost_to_rounding() -> None:
    assert [round(math.degrees(piece)) for piece in split_turn(math.radians(270))] == [-45, -45]
    assert [round(math.degrees(piece)) for piece in split_turn(math.radians(-30))] == [-30]
    assert split_turn(2 * math.pi) == ()
    assert len(split_turn(math.pi)) == 4
    assert [num_forward_steps(0.25 * count) for count in range(13)] == list(range(13))
    assert num_forward_steps(0.1 * 7.5) == 3
    assert wrap_angle(3 * math.pi) == pytest.approx(math.pi)
    assert math.degrees(turn_towards(Pose(0, 0, 0), (0, 1))) == pytest.approx(90)


def test_who_meets_a_wall_at_an_angle_slides_along_it() -> None:
    world = world_of(one_room(), Pose(7.7, 3, math.radians(30)))
    limit = 8 - WALL / 2 - 0.15
    walk = world.step(0.0, 1.0)
    assert walk.collided
    assert len(walk.poses) == 4
    end = walk.poses[-1]
    assert end.x == pytest.approx(limit, abs=1e-9)
    assert end.y == pytest.approx(3 + 4 * 0.25 * math.sin(math.radians(30)), abs=1e-9)
    assert world.free(end.position)


def test_who_walks_straight_into_a_wall_stands_still() -> None:
    world = world_of(one_room(), Pose(7.7, 3, 0.0))
    walk = world.step(0.0, 0.75)
    assert [pose.y for pose in walk.poses] == [3, 3, 3]
    assert walk.poses[1] == walk.poses[2]
    assert walk.collided


def test_nobody_ever_gets_into_anything() -> None:
    scene = generate_house("a", 9)
    rng = np.random.default_rng(2)
    world = world_of(scene, Pose(0.5, 0.5, 0.0))
    for _ in range(150):
        walk = world.step(float(rng.uniform(-3, 3)), float(rng.uniform(0, 3)))
        points = np.array([pose.position[:2] for pose in walk.poses]).reshape(-1, 2)
        assert world.house.ground.free(points).all()
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        assert (steps <= 0.25 + 1e-9).all()


def test_a_scene_survives_its_file(tmp_path: Path) -> None:
    scene = generate_house("scenes/a.json", 3)
    write_scene(tmp_path / "scenes/a.json", scene)
    assert read_scene(tmp_path / "scenes/a.json") == scene
    world: NavEnv = World(tmp_path)
    assert world.reset(episode("scenes/a.json", Pose(0.5, 0.5, 0.0))) == world.pose
    with pytest.raises(ManifestError, match="outside"):
        world.reset(episode("../a.json", Pose(0.5, 0.5, 0.0)))
    with pytest.raises(ManifestError, match="missing"):
        world.reset(episode("missing.json", Pose(0.5, 0.5, 0.0)))


def test_a_scene_that_does_not_fit_is_told(tmp_path: Path) -> None:
    good = generate_house("a", 3).model_dump_json()
    for old, new in (('"color":"', '"color":"no'), ('"floor":"', '"floor":"no'), ('"size"', '"sise"'), ("{", "")):
        (tmp_path / "bad.json").write_text(good.replace(old, new, 1))
        with pytest.raises(ManifestError, match=r"bad\.json"):
            read_scene(tmp_path / "bad.json")


def test_the_same_seed_draws_the_same_house_and_another_another() -> None:
    assert generate_house("a", 1) == generate_house("a", 1)
    assert generate_house("a", 1) != generate_house("a", 2)
    with pytest.raises(ValueError, match="two"):
        HouseSettings(columns=1, rows=1)


def test_things_in_a_room_are_told_apart_by_shape_colour_or_motion() -> None:
    twins = 0
    for seed in range(10):
        scene = generate_house("a", seed)
        for room in range(len(scene.rooms)):
            here = [thing for thing in scene.landmarks if thing.room == room]
            assert len({(thing.shape, thing.color, thing.motion) for thing in here}) == len(here)
            looks = len({(thing.shape, thing.color) for thing in here})
            twins += len(here) - looks
            assert all(thing.color in COLORS and scene.rooms[room].contains(thing.x, thing.y) for thing in here)
    assert twins > 10


def test_walls_overlap_where_they_meet_so_that_no_seam_lets_anybody_through() -> None:
    house = House(generate_house("a", 2))
    blocks = footprints(house.scene, build_walls(house.scene))
    along = np.linspace(0, house.scene.size[0], 4000)
    for room in house.scene.rooms:
        points = np.stack([along, np.full_like(along, room.y1)], axis=1)
        open_there = ~((points[:, None] > blocks[None, :, :2]) & (points[:, None] < blocks[None, :, 2:])).all(
            axis=2
        ).any(1)
        gaps = [door for door in house.scene.doors if door.along == "x" and math.isclose(door.y, room.y1)]
        at_a_door = np.any([np.abs(along - door.x) <= 0.56 for door in gaps], axis=0) if gaps else np.zeros(4000, bool)
        assert not (open_there & ~at_a_door)[1:-1].any()


def test_one_who_stands_on_a_corner_cannot_slip_into_it() -> None:
    ground = FreeSpace(np.array([[2.0, 2.0, 4.0, 4.0]]), (0.0, 0.0, 6.0, 6.0), 0.0)
    for start, way in (((2.0, 2.0), (0.2, 0.1)), ((4.0, 4.0), (-0.1, -0.2)), ((2.0, 4.0), (0.1, -0.1))):
        place, met = ground.slide(start, way)
        assert met
        assert ground.free(np.array([place]))[0], start


def test_whoever_walks_at_random_always_stands_on_free_ground() -> None:
    house = House(generate_house("a", 5))
    rng = np.random.default_rng(0)
    x, y = next(spot for spot in rng.uniform((0, 0), house.scene.size, (100, 2)) if house.ground.free(spot[None])[0])
    place = (float(x), float(y))
    for _ in range(3000):
        angle = rng.choice([rng.uniform(-np.pi, np.pi), *(np.pi / 4 * np.arange(8))])
        for _ in range(int(rng.integers(1, 8))):
            place, _ = house.ground.slide(place, (0.25 * np.cos(angle), 0.25 * np.sin(angle)))
            assert house.ground.free(np.array([place]))[0]
