"""Plot floor plans of houses with the walked paths, as SVG in the page's colors (plots/charts.py)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from internvideo.plots.charts import svg
from internvideo.plots.style import BLUE, GREEN, INK, ORANGE, new_figure, plot_style
from internvideo.tasks.navigation.world.protocol import Episode
from internvideo.tasks.navigation.world.scene import COLORS, FLOORS, ROUND, SHAPES, Scene, build_walls
from internvideo.tasks.navigation.world.world import World

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WalkedPath = NDArray[np.float64]
"""Positions (n, 2) or (n, 3) of a walk, in order."""
_PATH_COLORS = (BLUE, ORANGE, "#b455c9", "#c94f5d")


class FloorPlan(NamedTuple):
    """A house with an episode, the walked paths by agent, and a caption."""

    scene: Scene
    episode: Episode
    paths: Mapping[str, WalkedPath]
    caption: str = ""


def plot_floor_plans(floor_plans: Sequence[FloorPlan]) -> str:
    """Plot floor plans: dashed green reference path, start as a dot, goal with its radius, colored walks.

    Raises:
        ValueError: `floor_plans` is empty.
    """
    if not floor_plans:
        raise ValueError("no floor plan to plot")
    columns = min(2, len(floor_plans))
    rows = -(-len(floor_plans) // columns)
    with plot_style():
        figure = new_figure((4.6 * columns, 4.0 * rows))
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, floor_plan in zip(axes, floor_plans, strict=False):
            _draw_house(axis, floor_plan.scene)
            _draw_paths(axis, floor_plan)
            text = textwrap.fill(floor_plan.episode.instruction, 60)
            axis.set_title(text, fontsize=8)
            axis.set_xlabel(textwrap.fill(floor_plan.caption, 60), fontsize=8)
        for axis in axes[len(floor_plans) :]:
            axis.set_axis_off()
        return svg(figure, "floor plans of houses with the walked paths")


def plot_episodes(folder: Path, episodes: Sequence[Episode]) -> str:
    """Plot episodes of `internvideo navigation-world` with their reference paths. Raises ManifestError."""
    world = World(folder)
    return plot_floor_plans([FloorPlan(world.load_house(episode.scene).scene, episode, {}) for episode in episodes])


def _draw_house(axis: Axes, scene: Scene) -> None:
    """Draw floors, walls, doors and landmarks; a dotted ring marks a moving landmark."""
    for room in scene.rooms:
        _draw_box(axis, (room.x0, room.y0, room.x1, room.y1), _rgb(FLOORS[room.floor]), alpha=0.35)
    from matplotlib.patches import Circle

    walls = build_walls(scene)
    for rectangle, rgb in zip(walls.rectangles.tolist(), walls.colors, strict=True):
        # Walls have the page's text color, door posts their own.
        _draw_box(axis, rectangle, INK if rgb[0] < 0 else _rgb(rgb))
    for landmark in scene.landmarks:
        half_width, half_depth, _ = SHAPES[landmark.shape]
        color = _rgb(COLORS[landmark.color])
        if landmark.shape in ROUND:
            axis.add_patch(Circle((landmark.x, landmark.y), half_width, color=color, lw=0))
        else:
            corners = (
                landmark.x - half_width,
                landmark.y - half_depth,
                landmark.x + half_width,
                landmark.y + half_depth,
            )
            _draw_box(axis, corners, color, angle=float(np.degrees(landmark.state(0)[0])))
        if landmark.motion:
            axis.add_patch(
                Circle((landmark.x, landmark.y), landmark.half_side + 0.15, fill=False, ec=color, lw=1, ls=":")
            )
    axis.set(xlim=(-0.2, scene.size[0] + 0.2), ylim=(-0.2, scene.size[1] + 0.2), aspect="equal", xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw_box(
    axis: Axes,
    corners: Sequence[float],
    color: str | tuple[float, float, float],
    alpha: float = 1.0,
    angle: float = 0.0,
) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = corners
    axis.add_patch(
        Rectangle(
            (x0, y0), x1 - x0, y1 - y0, angle=angle, rotation_point="center", color=color, alpha=alpha, lw=0
        )
    )  # fmt: skip


def _draw_paths(axis: Axes, floor_plan: FloorPlan) -> None:
    from matplotlib.patches import Circle

    episode = floor_plan.episode
    if len(episode.path):
        axis.plot(episode.path[:, 0], episode.path[:, 1], color=GREEN, ls="--", lw=1.6, label="reference")
    for index, (name, path) in enumerate(floor_plan.paths.items()):
        axis.plot(path[:, 0], path[:, 1], color=_PATH_COLORS[index % len(_PATH_COLORS)], lw=1.6, label=name)
        axis.plot(*path[-1, :2], color=_PATH_COLORS[index % len(_PATH_COLORS)], marker="x", ms=6, ls="none")
    start = episode.start
    axis.plot(start.x, start.y, color=GREEN, marker="o", ms=6, ls="none")
    arrow_end = (start.x + 0.7 * np.cos(start.heading), start.y + 0.7 * np.sin(start.heading))
    axis.annotate("", xy=arrow_end, xytext=(start.x, start.y), arrowprops={"arrowstyle": "->", "color": GREEN})
    if episode.goal is not None:
        axis.add_patch(Circle((episode.goal[0], episode.goal[1]), episode.radius, fill=False, ec=GREEN, lw=0.8))
        axis.plot(*episode.goal[:2], color=GREEN, marker="*", ms=9, ls="none")
    if floor_plan.paths:
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3)


def _rgb(color: Sequence[float] | NDArray[np.float32]) -> tuple[float, float, float]:
    red, green, blue = (float(value) / 255 for value in color)
    return red, green, blue
