"""The sample world needs time: one frame tells nothing of a direction, and a few measures of motion tell most of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from internvideo.sample_world.clips import Clip
from internvideo.sample_world.generate import ACTIONS, TIME_DIRECTED, WorldSettings, plan, render, reverse_class

DIRECTED = tuple(name for name in ACTIONS if name in TIME_DIRECTED)


def clips_of(split: str, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Videos (n, T, S, S, 3) in 0..1 and labels among DIRECTED."""
    settings = WorldSettings(clips=100, seed=5, size=64, frames=12, fps=6, difficulty=0.35, actions=DIRECTED)
    clips: list[Clip] = [plan(settings, split, number) for number in range(count * len(DIRECTED))]
    video = np.stack([render(clip.scene)[0] for clip in clips])
    return video.reshape(len(clips), 12, 32, 2, 32, 2, 3).mean((3, 5), dtype=np.float32) / 255, np.array(
        [DIRECTED.index(clip.facts.action) for clip in clips]
    )


def motion(video: NDArray[np.float32]) -> NDArray[np.float64]:
    """Signed measures of change in four quarters of the clip: flow, curl and spread along the brightness gradient,
    where things change, colourfulness; and the turning of the path."""
    video = video - video.mean((2, 3), keepdims=True)  # the light of the moment
    later, sooner = video[:, 1:, 1:-1, 1:-1], video[:, :-1, 1:-1, 1:-1]
    both = (video[:, 1:] + video[:, :-1]) / 2
    change = later - sooner
    gx = (both[:, :, 1:-1, 2:] - both[:, :, 1:-1, :-2]) / 2
    gy = (both[:, :, 2:, 1:-1] - both[:, :, :-2, 1:-1]) / 2
    energy = (change**2).sum(-1)
    weight = np.where(energy > 0.02, energy, 0) + 1e-6
    weight /= weight.sum((2, 3), keepdims=True)
    side = np.linspace(-1, 1, 30, dtype=np.float32)
    cx, cy = (weight * side).sum((2, 3)), (weight * side[:, None]).sum((2, 3))
    x, y = side - cx[..., None, None], side[:, None] - cy[..., None, None]
    u, v = -(change * gx).sum(-1), -(change * gy).sum(-1)
    scale = ((gx**2 + gy**2).sum(-1) * (energy > 0.005)).sum((2, 3)) + 0.05
    flow = [part.sum((2, 3)) / scale for part in (u, v, x * v - y * u, x * u + y * v)]
    vivid = (video.max(-1) - video.min(-1)).mean((2, 3))[:, 1:]
    series = np.stack([*flow, cx, cy, vivid - vivid.mean(1, keepdims=True), energy.mean((2, 3))], axis=1)
    quarters = np.stack([part.mean(-1) for part in np.array_split(series, 4, axis=-1)], axis=-1).reshape(len(video), -1)
    middle = [at - at.mean(1, keepdims=True) for at in (cx, cy)]
    path = (middle[0] * flow[1] - middle[1] * flow[0]).sum(1, keepdims=True)
    found = np.concatenate([quarters, path], axis=1)
    return np.asarray(np.concatenate([found, np.abs(found)], axis=1), dtype=np.float64)


def ridge(train: NDArray[np.float64], labels: NDArray[np.int64], test: NDArray[np.float64]) -> NDArray[np.float64]:
    """Class scores of a linear classifier on standardised features."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / deviation, (test - mean) / deviation
    target = np.eye(len(DIRECTED))[labels] - 1 / len(DIRECTED)
    kernel = train @ train.T + 0.3 * train.shape[1] * np.eye(len(train))
    return np.asarray(test @ (train.T @ np.linalg.solve(kernel, target)))


def pair_accuracy(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """How often the class of the clip scores above its reverse."""
    reverse = np.array([reverse_class(index, DIRECTED) for index in range(len(DIRECTED))])
    row = np.arange(len(labels))
    return float((scores[row, labels] > scores[row, reverse[labels]]).mean())


def test_one_frame_tells_nothing_of_direction_and_the_clip_does(capsys: pytest.CaptureFixture[str]) -> None:
    (train, labels), (test, truth) = clips_of("train", 6), clips_of("test", 4)
    reverse = np.array([reverse_class(index, DIRECTED) for index in range(len(DIRECTED))])

    def frame(video: NDArray[np.float32]) -> NDArray[np.float64]:
        middle = video[:, 6].astype(np.float64)
        return np.asarray(middle.reshape(len(video), 8, 4, 8, 4, 3).mean((2, 4)).reshape(len(video), -1))

    single = ridge(frame(train), labels, frame(test))
    features = motion(train)
    clip, backwards = ridge(features, labels, motion(test)), ridge(features, labels, motion(test[:, ::-1]))
    figures = {
        "single frame": (single.argmax(1) == truth).mean(),
        "clip": (clip.argmax(1) == truth).mean(),
        "single frame, class or its reverse": pair_accuracy(single, truth),
        "clip, class or its reverse": pair_accuracy(clip, truth),
        "clip played backwards, reverse class or class": pair_accuracy(backwards, reverse[truth]),
    }
    with capsys.disabled():
        text = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"\nsample world, {len(DIRECTED)} time-directed classes (chance {1 / len(DIRECTED):.3f}; 0.5): {text}")
    assert figures["single frame"] < 0.15
    assert figures["clip"] > figures["single frame"] + 0.3
    assert abs(figures["single frame, class or its reverse"] - 0.5) < 0.1
    assert figures["clip, class or its reverse"] > 0.8
    assert figures["clip played backwards, reverse class or class"] > 0.72
