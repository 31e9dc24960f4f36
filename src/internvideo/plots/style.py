"""Colors and style of charts in HTML pages; matplotlib figures without a window; writing plots to files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvideo.extras import ExtraError, require
from internvideo.storage import write_text
from internvideo.terminal import LOGGER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#3d7fd6", "#d97a1f", "#2f9e6b"  # readable on white and on near-black
LINES = (BLUE, ORANGE, GREEN, "#b455c9", "#c94f5d", "#7a8aa0", "#a98f1d", "#1f9fb3")
INK = "#010203"  # replaced by the page's text color

STYLE: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text: the browser's fonts know every script
    "text.parse_math": False,  # a class name may hold a dollar sign
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
}


def plot_style(settings: Any = STYLE) -> AbstractContextManager[None]:
    """Return the matplotlib context of a style. Raises ExtraError: matplotlib (imported here: slow) is missing."""
    require("plots", "plots")
    import matplotlib as mpl

    return mpl.rc_context(settings)


def new_figure(size: tuple[float, float]) -> Figure:
    """Create a matplotlib figure of `size` (width, height) in inches without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def write_plot(path: Path, plot: Callable[[], str]) -> None:
    """Write the text that `plot` returns; without matplotlib, log a warning instead."""
    try:
        text = plot()
    except ExtraError as error:
        LOGGER.warning(f"{path.name} is not written: {error}")
    else:
        write_text(path, text + "\n")
