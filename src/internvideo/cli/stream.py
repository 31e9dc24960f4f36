"""`internvideo stream`: classify or embed a running video."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from internvideo.cli import options
from internvideo.errors import RecipeError
from internvideo.terminal import LOGGER, tell

if TYPE_CHECKING:
    from internvideo.apps.streaming import Moment, Stream


def stream(
    source: Annotated[
        str, typer.Argument(help="A file, a named pipe, - for standard input, camera, camera:N or a device file.")
    ],
    encoder: options.Encoder,
    weights: options.Weights = None,
    window_seconds: Annotated[float, typer.Option(help="Length of a window.")] = 2.0,
    stride_seconds: Annotated[float, typer.Option(help="From one window to the next.")] = 1.0,
    labels: options.Labels = None,
    labels_file: options.LabelsFile = None,
    model: options.Classifier = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Number of labels, the most probable first; by default 3.")
    ] = None,
    live: Annotated[
        bool | None,
        typer.Option(
            "--live/--every",
            help="Drop windows that are late, or process every one; by default live for cameras and addresses.",
        ),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Stop after this duration of video.")] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Accept addresses such as rtsp://.")] = False,
    reconnect: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Seconds without a frame during which a broken camera or address is reopened; by default 60."
        ),
    ] = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    damage: options.Damage = None,
    frame_rate: options.FrameRate = None,
    precision: options.Precision = "float32",
) -> None:
    """Print a line per window of a running video: its labels, or its embedding (with --json).

    Ctrl-C ends it. The measured latency and the number of dropped windows are printed on stderr at the end.
    """
    from internvideo.apps.streaming import stream as look
    from internvideo.probing.probe import Probe
    from internvideo.video.live import RECONNECT

    options.refuse_together(labels=labels, labels_file=labels_file, model=model)
    opened = options.open_model(encoder, weights, device, precision)
    names = options.read_labels(labels, labels_file)
    own = "classes" if opened.class_names else "embedding"
    on = Probe.load(model) if model is not None else own if names is None else names
    if top is not None and on == "embedding":
        raise RecipeError("--top", "given for a model without classes", "with --labels, --labels-file or --model")
    if reconnect is not None and os.path.isfile(source):
        raise RecipeError("--reconnect", f"given for {source}, which ends", "with a camera or an address")
    running = look(
        source, opened, window_seconds=window_seconds, stride_seconds=stride_seconds, on=on, live=live,
        allow_urls=allow_urls, reconnect=RECONNECT if reconnect is None else reconnect,
    )  # fmt: skip
    try:
        _follow(running, seconds, top or 3)
    except KeyboardInterrupt:
        LOGGER.info("stopped")
    finally:
        if running.latencies:
            LOGGER.info(_summary(running))


def _follow(running: Stream, seconds: float | None, top: int) -> None:
    before: Moment | None = None
    begin = 0.0
    for moment in running:
        begin = moment.start if before is None else begin
        tell(_record(moment, top), _text(moment, before, top))
        before = moment
        if seconds is not None and moment.time >= begin + seconds:
            return


def _record(moment: Moment, top: int) -> dict[str, object]:
    record: dict[str, object] = {"start": moment.start, "end": moment.time, "latency": round(moment.latency, 6)}
    if isinstance(moment.value, dict):
        record["labels"] = dict(list(moment.value.items())[:top])
    else:
        record["embedding"] = moment.value.tolist()
    return record


def _text(moment: Moment, before: Moment | None, top: int) -> str:
    if isinstance(moment.value, dict):
        text = ", ".join(f"{label} {p:.3f}" for label, p in list(moment.value.items())[:top])
    elif before is None or isinstance(before.value, dict):
        text = f"embedding of {len(moment.value)} numbers (--json prints them)"
    else:
        text = f"cosine to the window before {float(moment.value @ before.value):.3f}"
    return f"{options.clock(moment.start, moment.time)}: {text} ({moment.latency * 1000:.0f} ms)"


def _summary(running: Stream) -> str:
    p50, p95 = running.percentile(50) * 1000, running.percentile(95) * 1000
    damaged = f", {running.damaged} damaged pictures left out" if running.damaged else ""
    broke = f", broke off {running.reconnects} times" if running.reconnects else ""
    count = len(running.latencies)
    return f"{count} windows, latency p50 {p50:.1f} ms, p95 {p95:.1f} ms; {running.dropped} dropped{damaged}{broke}"
