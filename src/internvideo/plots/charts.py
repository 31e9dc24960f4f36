"""Plot charts as SVG in the colors of an HTML page, and frames as PNG.

Every function takes plain arrays and returns a string for an HTML page.
"""

from __future__ import annotations

import base64
import io
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from internvideo.plots.style import BLUE, GREEN, INK, LINES, ORANGE, new_figure, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Frames = NDArray[np.uint8]
"""(T, H, W, 3) RGB."""

Bounds = tuple[float, float]


def svg(figure: Figure, label: str) -> str:
    """Render a matplotlib figure deterministically as an <svg> element that scales with its container."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The browser renders the text, so glyphs that matplotlib's font lacks do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        with plot_style({"svg.hashsalt": label}):
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    head = f'<svg role="img" aria-label="{_attribute(label)}"'
    body = re.sub(r'^<svg(?P<rest>[^>]*?) width="[^"]*"', rf"{head}\g<rest>", body.replace(INK, "currentColor"))
    body = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", body)
    # A <style> of the file would apply to the whole page.
    return re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace("\\", "/")


def png(image: NDArray[np.uint8]) -> str:
    """Encode (H, W, 3) uint8 as the data URI of a PNG."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is (H, W, 3) uint8, found {image.shape} {image.dtype}")
    from matplotlib.image import imsave  # slow to import

    buffer = io.BytesIO()
    imsave(buffer, image, format="png", metadata={"Software": ""})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def subsample_frames(frames: Frames, max_frames: int) -> Frames:
    """Select at most `max_frames` frames, evenly from the first to the last."""
    if len(frames) <= max_frames:
        return frames
    subset: Frames = frames[np.linspace(0, len(frames) - 1, max_frames).round().astype(int)]
    return subset


def filmstrip(frames: Frames, max_frames: int = 8, gap: int = 2) -> str:
    """Arrange frames in a row with white gaps of `gap` pixels, as a PNG data URI."""
    return png(strip([frames], max_frames, gap))


def strip(rows: Sequence[Frames], max_frames: int = 8, gap: int = 2) -> NDArray[np.uint8]:
    """Arrange clips of equal shape as an image (H, W, 3), one per row, at most `max_frames` frames each."""
    if not rows or any(row.shape != rows[0].shape or row.ndim != 4 or row.shape[3] != 3 for row in rows):
        raise ValueError(f"rows of one shape (T, H, W, 3), found {[row.shape for row in rows]}")
    subsets = [subsample_frames(row, max_frames) for row in rows]
    num_columns, height, width = subsets[0].shape[:3]
    image = np.full((len(rows) * (height + gap) - gap, num_columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for row_index, row in enumerate(subsets):
        for column_index, frame in enumerate(row):
            top, left = row_index * (height + gap), column_index * (width + gap)
            image[top : top + height, left : left + width] = frame
    return image


def reconstruction_strip(masked: Frames, reconstruction: Frames, original: Frames, max_frames: int = 8) -> str:
    """Stack masked input, reconstruction and original, as a PNG data URI."""
    return png(strip([masked, reconstruction, original], max_frames))


def loss_curves(stages: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Plot the loss and its running mean in one chart per stage, name -> (steps, losses)."""
    if not stages:
        raise ValueError("no stage to show")
    with plot_style():
        figure, axes = _two_columns(len(stages), 5.8, 2.0)
        for axis, (name, (steps, losses)) in zip(axes, stages.items(), strict=True):
            values = np.asarray(losses, dtype=float)
            axis.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.8)
            axis.plot(steps, _running_mean(values), color=BLUE, linewidth=1.6)
            axis.set_title(name, fontsize=10, loc="left")
            axis.set_xlabel("step", fontsize=9)
            axis.tick_params(labelsize=8)
            _grid(axis, "y")
        return svg(figure, "loss over training of each stage")


def _two_columns(num_charts: int, width: float, row_height: float) -> tuple[Figure, list[Axes]]:
    """Lay out charts in two columns of a figure of `width` inches; return figure and axes."""
    num_rows = (num_charts + 1) // 2
    figure = new_figure((width, row_height * num_rows))
    axes = list(figure.subplots(num_rows, min(2, num_charts), squeeze=False).ravel())
    for axis in axes[num_charts:]:
        axis.set_axis_off()
    return figure, axes[:num_charts]


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - max(1, len(values) // 20), 0)
    result: NDArray[np.float64] = (total[ends] - total[starts]) / (ends - starts)
    return result


def _grid(axis: Axes, direction: str) -> None:
    axis.grid(axis="x" if direction == "x" else "y", color=INK, alpha=0.12, linewidth=0.6)
    axis.set_axisbelow(True)


def gates(steps: Sequence[float], values: Mapping[str, Sequence[float]]) -> str:
    """Plot the gates of cross-model attention over training, name -> one value per step; they start at zero."""
    with plot_style():
        figure = new_figure((5.8, 3.0))
        axis = figure.subplots()
        axis.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
        for index, (name, series) in enumerate(values.items()):
            style = ("-", "--", ":")[index // len(LINES) % 3]
            axis.plot(steps, series, style, label=name, color=LINES[index % len(LINES)], linewidth=1.5)
        axis.set_xlabel("step")
        _grid(axis, "y")
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        return svg(figure, "gates of the interaction over training")


def ablation_bars(
    names: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    intervals: Mapping[str, Sequence[Bounds | None]],
    chance: float | None = None,
) -> str:
    """Plot accuracies in 0..1 as horizontal bars with intervals, one group per name, one color per series.

    Args:
        names: rows from top to bottom.
        series: label -> value of each row, None where it was not measured.
        intervals: label -> (low, high) of each row or None; a label may be missing.
        chance: drawn as a line.
    """
    height = 0.8 / max(1, len(series))
    with plot_style():
        figure = new_figure((5.6, 0.9 + 0.5 * len(names)))
        axis = figure.subplots()
        for index, (label, values) in enumerate(series.items()):
            color = (BLUE, ORANGE, GREEN)[index % 3]
            positions = np.arange(len(names)) + (index - (len(series) - 1) / 2) * height
            percentages = [100 * (value or 0.0) for value in values]
            axis.barh(positions, percentages, height * 0.9, color=color, label=label)
            bounds_of_rows = intervals.get(label, [None] * len(names))
            for position, value, bounds in zip(positions, values, bounds_of_rows, strict=True):
                _annotate_bar(axis, position, value, bounds)
        if chance is not None:
            axis.axvline(100 * chance, color=INK, linewidth=0.8, linestyle="--", alpha=0.6)
        axis.set_yticks(range(len(names)), list(names))
        axis.invert_yaxis()
        axis.set_xlim(0, 108)
        axis.set_xticks(range(0, 101, 20))
        axis.set_xlabel("top-1 accuracy, %")
        _grid(axis, "x")
        axis.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=9)
        return svg(figure, "accuracy of each step of the ablation")


def _annotate_bar(axis: Axes, position: float, value: float | None, bounds: Bounds | None) -> None:
    """Draw the interval and the value of a bar."""
    end = 0.0 if value is None else 100 * value
    if bounds is not None:
        low, high = 100 * bounds[0], 100 * bounds[1]
        axis.plot([low, high], [position] * 2, color=INK, linewidth=1.2)
        axis.plot([low, low, high, high], [position] * 4, "|", color=INK, markersize=5)
        end = max(end, high)
    text = "not measured" if value is None else f"{100 * value:.1f}"
    axis.text(end + 1, position, text, va="center", fontsize=8)


def confusion_matrix(matrix: NDArray[Any], classes: Sequence[str]) -> str:
    """Plot counts (C, C), row = true class, as fractions of each row; up to 12 classes with numbers."""
    counts = np.asarray(matrix, dtype=float)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"a matrix {counts.shape} for {len(classes)} classes")
    fraction = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(9.0, 2.4 + 0.24 * len(classes))
    with plot_style():
        figure = new_figure((side, side))
        axis = figure.subplots()
        axis.imshow(fraction, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        size = 9 if len(classes) <= 30 else 6
        axis.set_xticks(range(len(classes)), list(classes), rotation=90, fontsize=size)
        axis.set_yticks(range(len(classes)), list(classes), fontsize=size)
        axis.set_xlabel("predicted")
        axis.set_ylabel("true")
        axis.tick_params(length=0)
        if len(classes) <= 12:
            style: Any = {"ha": "center", "va": "center", "fontsize": 8}
            for row, column in np.argwhere(counts > 0):
                color = "white" if fraction[row, column] > 0.5 else "#1a1a1a"
                axis.text(column, row, f"{counts[row, column]:.0f}", color=color, **style)
        return svg(figure, "confusion matrix")


def uncertainty_histograms(methods: Mapping[str, tuple[NDArray[Any], NDArray[Any], float]]) -> str:
    """Plot one histogram per method, name -> (uncertainty of known videos, of unknown ones, threshold)."""
    if not methods:
        raise ValueError("no method to show")
    with plot_style():
        figure, axes = _two_columns(len(methods), 6.4, 1.9)
        for axis, (name, (known, unknown, threshold)) in zip(axes, methods.items(), strict=True):
            edges = np.histogram_bin_edges(np.concatenate([known, unknown]), bins=40)
            for values, color, label in ((known, BLUE, "known"), (unknown, ORANGE, "unknown")):
                fraction = np.full(len(values), 1 / max(len(values), 1))
                axis.hist(values, bins=edges.tolist(), weights=fraction, color=color, alpha=0.6, label=label)
            axis.axvline(threshold, color=INK, linewidth=1, linestyle="--", label="threshold")
            axis.set_title(name, loc="left", fontsize=10)
            axis.set_xlabel("uncertainty")
            axis.tick_params(labelsize=8)
        axes[0].set_ylabel("fraction of videos")
        axes[0].legend(fontsize=8)
        return svg(figure, "uncertainty of known and unknown videos")


def risk_coverage(curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> str:
    """Plot one line per method, name -> (coverage, risk), both in 0..1."""
    if not curves:
        raise ValueError("no method to show")
    with plot_style():
        figure = new_figure((5.2, 3.6))
        axis = figure.subplots()
        for index, (name, (coverage, risk)) in enumerate(curves.items()):
            axis.plot(100 * coverage, 100 * risk, label=name, color=LINES[index % len(LINES)], linewidth=1.4)
        axis.set_xlabel("accepted, the least uncertain first (%)")
        axis.set_ylabel("wrong among the accepted (%)")
        axis.set_ylim(0, 100)
        axis.legend(fontsize=8)
        return svg(figure, "risk by coverage")


def timeline(
    duration: float,
    found: Sequence[tuple[float, float, str, float]],
    truth: Sequence[tuple[float, float, str]] | None = None,
    title: str = "",
) -> str:
    """Plot the segments of a video, one lane per class, and above them the highest score over time.

    Args:
        duration: of the video, in seconds.
        found: predictions (start s, end s, class, score 0..1), drawn with an opacity that grows with the score.
        truth: ground truth (start s, end s, class), drawn below the predictions of the class.
        title: of the plot.
    """
    lanes = list(dict.fromkeys([*(name for *_, name in truth or ()), *(name for _, _, name, _ in found)]))
    times = np.linspace(0, max(duration, 1e-3), 400)
    curve = np.zeros_like(times)
    with plot_style():
        figure = new_figure((7.2, 1.3 + 0.3 * max(len(lanes), 1)))
        score_axis, axis = figure.subplots(2, sharex=True, height_ratios=[1.2, max(len(lanes), 1)])
        for start, end, name in truth or ():
            axis.barh(lanes.index(name) + 0.2, end - start, 0.34, start, color=GREEN)
        offset = -0.2 if truth is not None else 0.0
        for start, end, name, score in found:
            axis.barh(lanes.index(name) + offset, end - start, 0.34, start, color=BLUE, alpha=0.15 + 0.85 * score)
            in_segment = (times >= start) & (times <= end)
            curve[in_segment] = np.maximum(curve[in_segment], score)
        score_axis.fill_between(times, curve, color=BLUE, alpha=0.5, linewidth=0)
        score_axis.set_ylim(0, 1)
        score_axis.set_ylabel("score", fontsize=8)
        score_axis.tick_params(labelsize=8)
        score_axis.set_title(title, fontsize=10, loc="left")
        axis.set_yticks(range(len(lanes)), lanes, fontsize=8)
        axis.set_ylim(len(lanes) - 0.4, -0.6)
        axis.set_xlim(0, duration)
        axis.set_xlabel("seconds" if truth is None else "seconds (green: truth, blue: found)")
        _grid(axis, "x")
        return svg(figure, f"timeline {title}".strip())


class BoxedFrame(NamedTuple):
    """A frame (H, W, 3) uint8, (box in fractions, lines of text) ..., ground truth of each box, and a title."""

    frame: NDArray[np.uint8]
    boxes: Sequence[tuple[Sequence[float], Sequence[str]]]
    truth: Sequence[str]
    title: str


def frames_with_boxes(panels: Sequence[BoxedFrame], columns: int = 3) -> str:
    """Draw frames with numbered boxes; below each frame the predictions per box and, in brackets, the ground truth."""
    from matplotlib.patches import Rectangle

    with plot_style():
        figure, axes = _grid_of_frames(panels, columns, (4.2, 4.6))
        for axis, panel in zip(axes, panels, strict=True):
            height, width = panel.frame.shape[:2]
            lines = []
            for index, (box, labels) in enumerate(panel.boxes):
                x1, y1, x2, y2 = (value * side for value, side in zip(box, (width, height) * 2, strict=True))
                color = BOX_COLORS[index % len(BOX_COLORS)]
                axis.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=color, lw=2))
                axis.text(x1, y1, str(index + 1), color="white", fontsize=9, va="bottom", backgroundcolor=color)
                true = f" [{panel.truth[index]}]" if index < len(panel.truth) and panel.truth[index] else ""
                lines.append(f"{index + 1}: {', '.join(labels) or 'no action score_axis the threshold'}{true}")
            axis.set_xlabel("\n".join(textwrap.fill(line, 58) for line in lines), fontsize=8, loc="left")
        return svg(figure, "frames with boxes and their actions")


class FrameWithPaths(NamedTuple):
    """A frame (H, W, 3) uint8, paths (name, true and predicted points (K, 2) as fractions), and a title."""

    frame: NDArray[np.uint8]
    paths: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64]]]
    title: str


def frames_with_paths(panels: Sequence[FrameWithPaths], columns: int = 3) -> str:
    """Draw frames with true paths (circles) and predicted ones (crosses); the last point of each is the largest."""
    with plot_style():
        figure, axes = _grid_of_frames(panels, columns, (3.6, 3.9))
        for axis, panel in zip(axes, panels, strict=True):
            height, width = panel.frame.shape[:2]
            for index, (name, *true_and_predicted) in enumerate(panel.paths):
                for points, marker, style in zip(true_and_predicted, "ox", ("-", "--"), strict=True):
                    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5
                    color, label = BOX_COLORS[index], f"{name}, {'true' if marker == 'o' else 'predicted'}"
                    axis.plot(x, y, style, color=color, lw=1.2, marker=marker, ms=4, label=label)
                    axis.plot(x[-1:], y[-1:], color=color, marker=marker, ms=9, mew=2, fillstyle="none")
            axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2)
        return svg(figure, "frames with the paths of hands")


def _grid_of_frames(
    panels: Sequence[BoxedFrame | FrameWithPaths], columns: int, size: Bounds
) -> tuple[Figure, list[Axes]]:
    """Lay out frames with titles, `columns` per row, each `size` inches; return figure and axes."""
    rows = -(-len(panels) // columns)
    figure = new_figure((size[0] * columns, size[1] * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis, panel in zip(axes, panels, strict=False):
        axis.imshow(panel.frame, interpolation="nearest")
        axis.set_title(panel.title, fontsize=9)
        axis.set(xticks=[], yticks=[], autoscale_on=False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure, axes[: len(panels)]


BOX_COLORS = ("#c2185b", "#00796b", "#e65100", "#3949ab", "#6d4c41", "#7b1fa2")
