"""Agents that follow instructions: their eyes, their walks, what they learn, and how they are judged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_navigation
import torch
from small_navigation import episode_batch, house_world, navigator

from internvideo.data.vocabulary import Vocabulary
from internvideo.errors import ManifestError, RecipeError
from internvideo.evaluation import evaluate_task
from internvideo.pipeline import load_trained, run_recipe
from internvideo.recipe import build_recipe
from internvideo.tasks.navigation import predict as navigation
from internvideo.tasks.navigation.planner import CANDIDATE, CONTEXT, STOP
from internvideo.tasks.navigation.rollout import (
    EpisodeState,
    ObservationEncoder,
    PlannerState,
    ShortestPathTeacher,
    build_observation,
    rollout,
)
from internvideo.tasks.navigation.stage import NavigationSettings, NavigationStage
from internvideo.tasks.navigation.waypoints import Candidates
from internvideo.tasks.navigation.world.batch import NavigationBatch
from internvideo.tasks.navigation.world.episodes import NavigationSettings as WorldPlan
from internvideo.tasks.navigation.world.episodes import write_world
from internvideo.tasks.navigation.world.house import HouseSettings
from internvideo.tasks.navigation.world.loader import open_world
from internvideo.tasks.navigation.world.protocol import Pose
from internvideo.tasks.navigation.world.settings import WorldSettings
from internvideo.tasks.navigation.world.trajectories import TrajectorySettings
from internvideo.tasks.navigation.world.walks import choose_waypoints, free_lengths, heat_map, label_views
from internvideo.tasks.table import Predictions


def waypoints(*found: tuple[int, int]) -> Candidates:
    angles, distances = zip(*found, strict=True) if found else ((), ())
    return Candidates(torch.tensor(angles, dtype=torch.int64), torch.tensor(distances, dtype=torch.int64))


def state(number: int = 0) -> EpisodeState:
    episode = small_navigation.episodes(number + 1)[number]
    one = EpisodeState(0, episode, house_world())
    one.start()
    return one


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_are_the_commonest_and_others_are_unknown() -> None:
    words = Vocabulary.from_texts(["Go to the box.", "go to the door", "the box"], 6)
    assert words.words == ("<pad>", "<unk>", "<start>", "the", "box", "go")
    assert words.batch(["Go, the pillar", "box"], 5).tolist() == [[2, 5, 1, 3, 1], [2, 4, 0, 0, 0]]
    with pytest.raises(ValueError, match="begins with"):
        Vocabulary(["the", "box"])


# --- what the eyes should see ----------------------------------------------------------------------------------------


def test_open_places_are_far_apart_and_can_be_walked_to() -> None:
    one = state()
    env, pose = one.env, one.env.pose
    lengths = free_lengths(house_world(), pose)
    found = choose_waypoints(lengths)
    assert 1 <= len(found) <= 5
    for number, (angle, distance) in enumerate(found):
        env.step(-angle * math.pi / 60, (distance + 1) * 0.25)
        assert math.dist(env.pose.position, pose.position) == pytest.approx((distance + 1) * 0.25, abs=1e-6)
        env.set_state(pose, 0)
        for other, _ in found[number + 1 :]:
            assert min(abs(angle - other), 120 - abs(angle - other)) > 10
    heat = heat_map(found)
    assert heat.sum() == pytest.approx(1, abs=1e-5)
    assert {tuple(np.unravel_index(at, heat.shape)) for at in np.argsort(-heat.ravel())[: len(found)]} == set(found)


def test_things_are_told_of_the_view_that_looks_at_them() -> None:
    env = house_world()
    scene = env.load_house("house").scene
    env.reset(small_navigation.episodes(1)[0])
    thing = scene.landmarks[0]
    near = [(thing.x + 1.2 * math.cos(a), thing.y + 1.2 * math.sin(a)) for a in np.arange(0, 6.3, 0.4)]
    x, y = next(place for place in near if env.free(place))
    ahead = Pose(x, y, math.atan2(thing.y - y, thing.x - x))
    things, motions = label_views(env, ahead)
    left, _ = label_views(env, replace(ahead, heading=ahead.heading - math.pi / 2))
    assert things[0].any()
    assert left[3].any()
    assert np.array_equal(left[3], things[0])
    assert motions[0].any() == (thing.motion is not None)


# --- walking ---------------------------------------------------------------------------------------------------------


def test_the_first_picture_stands_for_those_before_it() -> None:
    one = state()
    assert one.latest(4) == (one.trajectory[0],) * 4
    one.step(0.0, 0.5)
    assert one.latest(4) == (one.trajectory[0], *one.trajectory)
    assert one.decision_indices == [0, 2]


def test_features_are_computed_once_for_a_pose_and_its_past() -> None:
    encoder, one = ObservationEncoder(navigator().eval()), state()
    first = encoder.encode([one, one])
    assert first.image.shape == (2, 12, 8)
    assert first.depth.shape == (2, 12, 8, 4, 4)
    assert bool(first.video.any())
    assert torch.equal(first.image[0], first.image[1])
    assert len(encoder._cache) == 1
    one.step(0.3, 0.5)
    assert not torch.equal(encoder.encode([one]).image[0], first.image[0])
    assert not bool(ObservationEncoder(navigator().eval(), num_frames=1).encode([one]).video.any())


def test_what_can_be_chosen() -> None:
    found = waypoints((0, 3), (30, 7))  # ahead, and to the right: views 0 and 9
    rgb, depth = torch.arange(12.0)[None, :, None].expand(1, 12, 8), torch.zeros(1, 12, 8)
    seen = build_observation(rgb, depth, [found])
    assert seen.kind[0].tolist() == [CANDIDATE, CANDIDATE, STOP] + [CONTEXT] * 10
    assert seen.rgb[0, :, 0].tolist() == [0, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11]
    assert not bool(seen.angle[0, 2].any())
    assert seen.distance[0, :2, 0].tolist() == pytest.approx([1 / 3, 2 / 3])


def test_the_teacher_goes_where_the_goal_is_nearest_and_stops_beside_it() -> None:
    one = state()
    teacher, goal = ShortestPathTeacher(1.5), one.episode.goal
    assert goal is not None
    every = waypoints(*((angle, 5) for angle in range(0, 120, 10)))
    best = teacher(one, every)
    pose = one.env.pose
    one.step(float(every.heading_change[best]), float(every.meters[best]))
    reached = one.env.geodesic(one.env.pose.position, goal)
    one.env.set_state(pose, 0)
    for turn, meters in zip(every.heading_change.tolist(), every.meters.tolist(), strict=True):
        one.env.step(turn, meters)
        assert reached <= one.env.geodesic(one.env.pose.position, goal) + 1e-9
        one.env.set_state(pose, 0)
    assert teacher(one, waypoints()) == 0
    one.env.set_state(Pose(goal[0], goal[1], 0.0), 0)
    assert teacher(one, every) == len(every.angle)
    with pytest.raises(ValueError, match="no goal"):
        teacher(EpisodeState(0, replace(one.episode, goal=None), one.env), every)


def test_walks_end_by_stopping_or_by_the_number_of_decisions() -> None:
    encoder, batch = ObservationEncoder(navigator().eval()), episode_batch(2)
    stopped = rollout(encoder, batch, navigation.stop_policy, 5)
    assert [(one.stopped, len(one.trajectory)) for one in stopped] == [(True, 1)] * 2
    on = rollout(encoder, batch, lambda active, seen, found: [0 if len(one.angle) else 1 for one in found], 3)
    assert [(one.stopped, len(one.decision_indices)) for one in on] == [(False, 4)] * 2


def test_the_mind_remembers_only_for_those_on_their_way() -> None:
    model = navigator().eval()
    batch = episode_batch(3)
    planner_state = PlannerState(model, batch.tokens)
    planner_state.append_history(torch.tensor([0, 2]), torch.randn(2, 12, 8), torch.zeros(2))
    assert planner_state.history.shape == (3, 2, 16)
    assert bool(planner_state.history[[0, 2], 1].any(dim=1).all())
    assert not bool(planner_state.history[1, 1].any())


# --- learning --------------------------------------------------------------------------------------------------------


def test_the_chance_of_the_teachers_step_falls_with_the_iterations() -> None:
    stage = NavigationStage(navigator(), NavigationSettings(max_steps=5, teacher_every=2))
    shares = []
    for _ in range(5):
        shares.append(stage.teacher_probability)
        stage.iteration += 1
    assert shares == pytest.approx([0.75, 0.75, 0.75**2, 0.75**2, 0.75**3])


def test_imitation_learns_a_few_episodes() -> None:
    stage = NavigationStage(navigator(), NavigationSettings(max_steps=4, augment=False, teacher=1.0)).train()
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=3e-3)
    batch, generator = episode_batch(4), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(24):
        loss = stage(batch, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-3:]) < 0.75 * losses[0]
    assert not any(part.training for part in stage.model.encoders())


def test_gradients_of_the_first_step_do_not_explode_at_the_empty_stop_token() -> None:
    stage = NavigationStage(navigator(), NavigationSettings(max_steps=2)).train()
    torch.autograd.backward(stage(episode_batch(2), torch.Generator().manual_seed(0))["loss"])
    gradients = [parameter.grad for parameter in stage.parameters() if parameter.grad is not None]
    assert float(torch.nn.utils.get_total_norm(gradients)) < 1000  # a norm over zeros alone gave millions


def test_a_blind_agent_reads_nothing() -> None:
    batch = episode_batch(4)
    other = NavigationBatch(batch.episodes, batch.worlds, batch.tokens.flip(1).clamp(min=1))
    for blind in (True, False):
        stage = NavigationStage(navigator(), NavigationSettings(max_steps=2, blind=blind, teacher=1.0)).eval()
        both = [stage(one, torch.Generator().manual_seed(0))["loss"] for one in (batch, other)]
        assert torch.equal(*both) == blind


def test_settings_that_do_not_fit_are_mistakes() -> None:
    with pytest.raises(ValueError, match="max_steps 26"):
        NavigationStage(navigator(), NavigationSettings(max_steps=27))
    with pytest.raises(ValueError, match="depth_width"):
        replace(small_navigation.CONFIG, depth_channels=4)
    with pytest.raises(RecipeError, match="MODULE:FUNCTION"):
        open_world(Path(), WorldSettings(kind="habitat"), 8, 8)


# --- from recipes to figures -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("houses")
    house = HouseSettings(columns=2, rows=1, smallest=5.0, largest=5.5, landmarks=2)
    ways = TrajectorySettings(shortest=2.0, longest=9.0)
    write_world(made, WorldPlan(scenes=2, episodes=6, validation=3, house=house, trajectory=ways))
    return made


def recipe(stage: str, folder: Path, **more: object) -> dict[str, object]:
    agent = {
        "image": {"kind": "conv", "image_size": 16, "width": 8, "joint_width": 8},
        "video": {"image_size": 16, "patch_size": 8, "frames": 4, "width": 8, "depth": 1, "heads": 2},
        "depth_size": 16,
        "depth_channels": 8,
        "waypoints": {"depth_width": 128, "width": 8, "heads": 2},
        "planner": {
            "rgb_width": 8, "depth_width": 8, "width": 16, "heads": 2, "hidden": 16, "text_layers": 1,
            "cross_layers": 1, "panorama_layers": 1, "vocab_size": 60, "max_words": 40, "frozen_words": False,
            "frozen_history": False,
        },
    }  # fmt: skip
    return {
        "stage": stage,
        "model": {"name": "navigator", "overrides": agent},
        "data": {
            "train": str(folder),
            "world": {"panoramas": 4, "walk": 2} if stage == "waypoints" else {},
            "loader": {"batch_size": 2},
        },
        "optimizer": {"base_lr": 1e-3},
        "schedule": {"steps": 2},
        **more,
    }


def test_from_houses_to_figures(folder: Path, tmp_path: Path) -> None:
    encoder = run_recipe(build_recipe(recipe("waypoints", folder)), tmp_path / "eyes", device="cpu")
    walks = {"settings": {"max_steps": 3, "max_test_steps": 3}, "init": {"weights": str(encoder)}}
    agent = run_recipe(build_recipe(recipe("navigation", folder, **walks)), tmp_path / "agent", device="cpu")
    seen, learned = load_trained(encoder).model.state_dict(), load_trained(agent).model.state_dict()
    same = {name for name, value in learned.items() if torch.equal(value, seen[name])}
    assert {name for name in learned if name.split(".")[0] in ("image", "video", "depth", "waypoints")} <= same
    assert {"planner.action.4.weight", "rgb.weight"}.isdisjoint(same)
    result = evaluate_task("navigation", agent, folder, tmp_path / "out", {"device": "cpu"})
    figures = result["figures"]
    assert figures["stop at once: PL_m"] == 0
    assert figures["stop at once: SR"] == 0
    assert set(result["intervals"]) == set(figures)
    assert {"NE_m", "SPL", "nDTW", "random: OSR", "teacher: SR"} <= set(figures)
    table = Predictions.load(tmp_path / "out" / "navigation.npz")
    assert navigation.score(table) == result
    assert (tmp_path / "out" / "walks.svg").read_text().startswith("<svg")
    with pytest.raises(RecipeError, match=r"of the stage .waypoints.; expected: navigation"):
        evaluate_task("navigation", encoder, folder, tmp_path / "other", {"device": "cpu"})


def test_episodes_that_cannot_be_scored_are_told() -> None:
    batch = episode_batch(2)
    secret = replace(batch, episodes=tuple(replace(one, goal=None) for one in batch.episodes))
    with pytest.raises(ManifestError, match="no goal"):
        navigation.predict(
            navigator().eval(),
            lambda: iter([secret]),
            NavigationSettings(),
            torch.device("cpu"),
            split_sha256="",
        )
