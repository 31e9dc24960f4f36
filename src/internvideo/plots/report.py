"""Write the report of a run: one self-contained HTML page, and a JSON file with the same metrics."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from internvideo.plots import charts
from internvideo.plots.charts import Bounds, Frames
from internvideo.storage import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

ABLATION = {
    "chance": "chance",
    "ridge": "ridge regression on 16 x 16 gray pixels",
    "single_frame": "single frame",
    "masked_scratch": "masked encoder, no pretraining",
    "masked": "masked encoder, pretrained",
    "multimodal": "multimodal encoder",
    "ensemble": "plain score ensemble",
    "interaction": "cross-model interaction",
}
"""Rows of the ablation: key in report.json -> name on the page; a report has all of them, in this order."""

_ACCURACIES = ("top1", "top1_time_directed")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, the measurement, and whether it confirms the claim (None: not measured, or undecided)."""

    text: str
    measured: str
    held: bool | None


@dataclass(frozen=True)
class AblationRow:
    """Accuracies in 0..1 on held-out clips, None where not measured, with their 95 % intervals."""

    name: str
    top1: float | None
    top1_time_directed: float | None = None
    interval: Bounds | None = None
    interval_time_directed: Bounds | None = None


@dataclass(frozen=True)
class ZeroShot:
    """Recall at 1 in 0..1 in both directions, with the chance level; raw, and with dual softmax if measured."""

    t2v_r1: float
    v2t_r1: float
    chance: float
    t2v_r1_dual_softmax: float | None = None
    v2t_r1_dual_softmax: float | None = None
    interval_t2v: Bounds | None = None
    interval_v2t: Bounds | None = None


@dataclass(frozen=True)
class ReverseClip:
    """Accuracy of distinguishing a clip from its reverse, 0..1; chance is 0.5."""

    accuracy: float
    interval: Bounds | None = None


@dataclass(frozen=True)
class MetricValue:
    """One metric in 0..1 of the video-language model, its 95 % interval, and the chance level."""

    about: str
    value: float
    interval: Bounds
    chance: float


@dataclass(frozen=True)
class GeneratedCaption:
    """A generated caption: frames (T, H, W, 3) uint8, (word, whether it is correct) ..., a reference caption."""

    frames: Frames
    words: Sequence[tuple[str, bool]]
    reference: str


@dataclass(frozen=True)
class LossCurve:
    """One loss per logged step."""

    steps: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True)
class Reconstruction:
    """Three clips (T, H, W, 3) uint8 of equal shape."""

    masked: Frames
    reconstruction: Frames
    original: Frames
    caption: str = ""


@dataclass(frozen=True)
class RetrievedClip:
    """A retrieved clip: frames (T, H, W, 3) uint8, whether it is the correct one, its cosine with the query."""

    frames: Frames
    correct: bool
    cosine: float
    caption: str = ""


@dataclass(frozen=True)
class RetrievalExample:
    """A query text and the retrieved clips, best first."""

    query: str
    found: Sequence[RetrievedClip]


@dataclass(frozen=True)
class Confusion:
    """Counts (C, C), row = true class."""

    matrix: NDArray[Any]
    classes: Sequence[str]


@dataclass(frozen=True)
class Gates:
    """Values of each named gate, one per logged step."""

    steps: Sequence[float]
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class NextStep:
    """A suggestion and its command."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class ReportData:
    """The content of a report. What was not measured is None or empty, and omitted from the page.

    Attributes:
        title: heading. introduction: one or two sentences below it.
        claims: claims of the paper with their measurements.
        ablation: one row for each name in `ABLATION`, in that order.
        zero_shot, reverse_clip: None if not measured.
        seconds: duration of the run. peak_memory_mb: peak of resident or device memory, whichever is larger, in MiB.
        losses: stage name -> curve.
        reconstructions, retrievals, confusion, gates: content of the plots.
        protocol: how the metrics were measured, as JSON values.
        coverage: {"asked", "read", "unreadable"} of the held-out clips.
        next_steps: suggestions.
        measures, written: of the video-language model. seconds_by_step: duration of each step.
        more: further JSON values, only for report.json.
    """

    title: str
    ablation: Sequence[AblationRow]
    seconds: float
    peak_memory_mb: float
    introduction: str = ""
    claims: Sequence[Claim] = ()
    zero_shot: ZeroShot | None = None
    reverse_clip: ReverseClip | None = None
    losses: Mapping[str, LossCurve] = field(default_factory=dict)
    reconstructions: Sequence[Reconstruction] = ()
    retrievals: Sequence[RetrievalExample] = ()
    confusion: Confusion | None = None
    gates: Gates | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    coverage: Mapping[str, Any] | None = None
    next_steps: Sequence[NextStep] = ()
    measures: Sequence[MetricValue] = ()
    written: Sequence[GeneratedCaption] = ()
    seconds_by_step: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [row.name for row in self.ablation]
        if names != list(ABLATION):
            raise ValueError(f"the ablation has the rows {', '.join(names)}; it needs {', '.join(ABLATION)}")
        accuracies = [(f"{row.name} {name}", getattr(row, name)) for row in self.ablation for name in _ACCURACIES]
        if self.zero_shot is not None:
            accuracies += [(name, getattr(self.zero_shot, name)) for name in ("t2v_r1", "v2t_r1", "chance")]
        if self.reverse_clip is not None:
            accuracies.append(("reverse_clip", self.reverse_clip.accuracy))
        for what, value in accuracies:
            if value is not None and not 0 <= value <= 1:  # also refuses NaN
                raise ValueError(f"{what} is {value}; accuracies are fractions in 0..1")


def report_json(data: ReportData) -> dict[str, Any]:
    """Convert the metrics of a report to JSON values."""
    return {
        "title": data.title,
        "ablation": [asdict(row) for row in data.ablation],
        "zero_shot": None if data.zero_shot is None else asdict(data.zero_shot),
        "reverse_clip": None if data.reverse_clip is None else asdict(data.reverse_clip),
        "seconds": data.seconds,
        "peak_memory_mb": data.peak_memory_mb,
        "claims": [asdict(claim) for claim in data.claims],
        "protocol": dict(data.protocol),
        "coverage": None if data.coverage is None else dict(data.coverage),
        "next_steps": [asdict(step) for step in data.next_steps],
        "captions": [
            {
                "written": " ".join(word for word, _ in one.words),
                "right": [right for _, right in one.words],
                "reference": one.reference,
            }
            for one in data.written
        ],
        "seconds_by_step": dict(data.seconds_by_step),
        **data.more,
    }


def write_report(folder: str | os.PathLike[str], data: ReportData) -> Path:
    """Write report.html and report.json, each atomically, and return the path of report.html.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    page = render(data)
    text = json.dumps(report_json(data), indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    write_text(Path(folder) / "report.json", text + "\n")
    write_text(Path(folder) / "report.html", page)
    return Path(folder) / "report.html"


def _plain(value: object) -> object:
    """Convert NumPy scalars and arrays, paths and tuples to JSON values."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} does not fit into JSON")


def render(data: ReportData) -> str:
    """Render the page with inlined images and styles. All text is escaped; the page loads nothing."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "interval": _interval, "flat": _flat}
    template = resources.files("internvideo").joinpath("report_template.html.j2").read_text("utf-8")
    return environment.from_string(template).render(
        data=data,
        labels=ABLATION,
        time_directed=any(row.top1_time_directed is not None for row in data.ablation),
        duration=str(timedelta(seconds=round(data.seconds))),
        charts=_charts(data),
        reconstructions=[
            (part.caption, charts.reconstruction_strip(part.masked, part.reconstruction, part.original))
            for part in data.reconstructions
        ],
        written=[(one, charts.filmstrip(one.frames, max_frames=6)) for one in data.written],
        retrievals=[
            (row.query, [(found, charts.filmstrip(found.frames, max_frames=4)) for found in row.found])
            for row in data.retrievals
        ],
    )


def _charts(data: ReportData) -> dict[str, Markup]:
    """Render the SVG charts for which there is data, marked as safe so that jinja2 does not escape them."""
    from markupsafe import Markup

    svgs = {"ablation": _ablation_chart(data.ablation)}
    if losses := {name: (c.steps, c.losses) for name, c in data.losses.items() if len(c.steps)}:
        svgs["losses"] = charts.loss_curves(losses)
    if data.confusion is not None and data.confusion.matrix.any():
        svgs["confusion"] = charts.confusion_matrix(data.confusion.matrix, data.confusion.classes)
    if data.gates is not None and data.gates.values and len(data.gates.steps) > 1:  # one point draws no line
        svgs["gates"] = charts.gates(data.gates.steps, data.gates.values)
    return {name: Markup(svg) for name, svg in svgs.items()}


def _ablation_chart(rows: Sequence[AblationRow]) -> str:
    series: dict[str, list[float | None]] = {"all classes": [row.top1 for row in rows]}
    intervals: dict[str, list[Bounds | None]] = {"all classes": [row.interval for row in rows]}
    if any(row.top1_time_directed is not None for row in rows):
        series["time-directed classes"] = [row.top1_time_directed for row in rows]
        intervals["time-directed classes"] = [row.interval_time_directed for row in rows]
    return charts.ablation_bars([ABLATION[row.name] for row in rows], series, intervals, rows[0].top1)


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _interval(bounds: Bounds | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _flat(value: object) -> str:
    """Format a protocol value in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(inner) for inner in value)
    return str(value)
