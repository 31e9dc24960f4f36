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
from internvideo.tasks.navigation.world.scene import COLOURS, FLOORS, ROUND, SHAPES, Scene, walls_of
from internvideo.tasks.navigation.world.world import World

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Way = NDArray[np.float64]
"""Positions (n, 2) or (n, 3) of a walk, in order."""
_WAYS = (BLUE, ORANGE, "#b455c9", "#c94f5d")


class Plan(NamedTuple):
    """A floor plan with an episode, walked paths (name -> path), and a caption."""

    scene: Scene
    episode: Episode
    walked: Mapping[str, Way]
    caption: str = ""


def plans(shown: Sequence[Plan]) -> str:
    """Plot floor plans: dashed green reference path, start as a dot, goal with its radius, colored walks.

    Raises:
        ValueError: nothing to show.
    """
    if not shown:
        raise ValueError("no plan to show")
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    with plot_style():
        figure = new_figure((4.6 * columns, 4.0 * rows))
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, plan in zip(axes, shown, strict=False):
            _house(axis, plan.scene)
            _ways(axis, plan)
            text = textwrap.fill(plan.episode.instruction, 60)
            axis.set_title(text, fontsize=8)
            axis.set_xlabel(textwrap.fill(plan.caption, 60), fontsize=8)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        return svg(figure, "houses from above with the ways walked")


def draw_episodes(folder: Path, episodes: Sequence[Episode]) -> str:
    """Plot episodes of `internvideo navigation-world` with their reference paths. Raises ManifestError."""
    world = World(folder)
    return plans([Plan(world.enter(episode.scene).scene, episode, {}) for episode in episodes])


def _house(axis: Axes, scene: Scene) -> None:
    """Draw floors, walls, doors and landmarks; moving landmarks have a ring."""
    for room in scene.rooms:
        _box(axis, (room.x0, room.y0, room.x1, room.y1), _rgb(FLOORS[room.floor]), alpha=0.35)
    from matplotlib.patches import Circle

    walls = walls_of(scene)
    for rectangle, paint in zip(walls.rectangles.tolist(), walls.colours, strict=True):
        # Plain walls have the page's text color.
        _box(axis, rectangle, INK if paint[0] < 0 else _rgb(paint))
    for thing in scene.landmarks:
        half_width, half_depth, _ = SHAPES[thing.shape]
        colour = _rgb(COLOURS[thing.colour])
        if thing.shape in ROUND:
            axis.add_patch(Circle((thing.x, thing.y), half_width, color=colour, lw=0))
        else:
            square = (thing.x - half_width, thing.y - half_depth, thing.x + half_width, thing.y + half_depth)
            _box(axis, square, colour, angle=float(np.degrees(thing.state(0)[0])))
        if thing.motion:
            axis.add_patch(Circle((thing.x, thing.y), thing.reach + 0.15, fill=False, ec=colour, lw=1, ls=":"))
    axis.set(xlim=(-0.2, scene.size[0] + 0.2), ylim=(-0.2, scene.size[1] + 0.2), aspect="equal", xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _box(
    axis: Axes,
    corners: Sequence[float],
    colour: str | tuple[float, float, float],
    alpha: float = 1.0,
    angle: float = 0.0,
) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = corners
    axis.add_patch(
        Rectangle(
            (x0, y0), x1 - x0, y1 - y0, angle=angle, rotation_point="center", color=colour, alpha=alpha, lw=0
        )
    )  # fmt: skip


def _ways(axis: Axes, plan: Plan) -> None:
    from matplotlib.patches import Circle

    episode = plan.episode
    if len(episode.path):
        axis.plot(episode.path[:, 0], episode.path[:, 1], color=GREEN, ls="--", lw=1.6, label="reference")
    for number, (name, way) in enumerate(plan.walked.items()):
        axis.plot(way[:, 0], way[:, 1], color=_WAYS[number % len(_WAYS)], lw=1.6, label=name)
        axis.plot(*way[-1, :2], color=_WAYS[number % len(_WAYS)], marker="x", ms=6, ls="none")
    start = episode.start
    axis.plot(start.x, start.y, color=GREEN, marker="o", ms=6, ls="none")
    ahead = (start.x + 0.7 * np.cos(start.heading), start.y + 0.7 * np.sin(start.heading))
    axis.annotate("", xy=ahead, xytext=(start.x, start.y), arrowprops={"arrowstyle": "->", "color": GREEN})
    if episode.goal is not None:
        axis.add_patch(Circle((episode.goal[0], episode.goal[1]), episode.radius, fill=False, ec=GREEN, lw=0.8))
        axis.plot(*episode.goal[:2], color=GREEN, marker="*", ms=9, ls="none")
    if plan.walked:
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3)


def _rgb(colour: Sequence[float] | NDArray[np.float32]) -> tuple[float, float, float]:
    red, green, blue = (float(value) / 255 for value in colour)
    return red, green, blue
