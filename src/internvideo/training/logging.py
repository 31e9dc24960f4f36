"""Training log: metrics.jsonl, optional TensorBoard events, progress on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from internvideo import distributed, untrusted
from internvideo.errors import unwritable
from internvideo.extras import require
from internvideo.storage import write_text
from internvideo.terminal import LOGGER, bars_disabled

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 10.0


def json_safe(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by "nan", "inf" and "-inf", also inside mappings and lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    return [json_safe(item) for item in value] if isinstance(value, list | tuple) else value


def format_duration(seconds: float) -> str:
    """Format seconds: 3725 -> "1:02:05", 65 -> "1:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics.jsonl up to the first malformed one, such as a last line cut by a crash."""
    file = folder / METRICS
    lines = []
    for line in untrusted.read_text(file).splitlines() if file.exists() else []:
        try:
            lines.append(untrusted.parse_json(line, finite=False))
        except ValueError:
            break
    return lines


class MetricLog:
    """Metric log of one run; only rank 0 writes and prints.

    Args:
        folder: run folder. total_steps: number of optimizer steps of the run.
        step: number of steps made so far; lines of later steps, written before a crash, are removed.
        title: prefix of the progress line. tensorboard: also write events to folder/tensorboard.

    Raises:
        RecipeError: `tensorboard` is set but TensorBoard is not installed.
        RunError: the folder is not writable.
    """

    def __init__(self, folder: Path, *, total_steps: int, step: int, title: str, tensorboard: bool = False) -> None:
        self.file, self.total_steps, self.title = folder / METRICS, total_steps, title
        self.is_main = distributed.rank() == 0
        self.first_step, self.started = step, time.perf_counter()
        self.last_progress_time = self.started
        self.last_values: Mapping[str, float] = {}
        self.events = _event_writer(folder, step) if tensorboard and self.is_main else None
        hide_bar = not self.is_main or bars_disabled()
        self.bar = tqdm(total=total_steps, initial=step, desc=title, unit="step", file=sys.stderr, disable=hide_bar)
        if self.is_main and self.file.exists():
            valid = "".join(json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= step)
            if valid != untrusted.read_text(self.file):
                write_text(self.file, valid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.events is not None:
            self.events.close()

    def write(self, values: Mapping[str, float]) -> None:
        """Append one line to the log; `values` must contain "step". Raises RunError on a full disk."""
        self.last_values = values
        if not self.is_main:
            return
        self._append(values)
        self.bar.set_postfix_str(self._summary(), refresh=False)
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(f"{self.title}/{name}", value, int(values["step"]))

    def message(self, text: str) -> None:
        """Log one line of progress."""
        if self.is_main:
            LOGGER.info(f"{self.title}: {text}")

    def log_changes(self, step: int, changes: Mapping[str, tuple[Any, Any]], lr: float) -> None:
        """Write the settings changed after `step`, and the learning rate from then on, to stderr and to the log."""
        summary = ", ".join(f"{key} was {was}, is {now}" for key, (was, now) in changes.items())
        self.message(f"after step {step}: {summary}; learning rate {lr:.3g}")
        if self.is_main:
            self._append({"step": step, "changed": {key: list(change) for key, change in changes.items()}, "lr": lr})

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(json_safe(line)) + "\n")
        except OSError as error:
            raise unwritable(self.file, error) from error

    def progress(self, step: int) -> None:
        """Show the progress: a bar with the remaining time, or without a terminal one line every ten seconds."""
        self.bar.update(step - self.bar.n)
        now = time.perf_counter()
        due = now - self.last_progress_time >= SECONDS_BETWEEN_LINES or step == self.total_steps
        if self.is_main and self.bar.disable and due:
            self.last_progress_time = now
            seconds_left = (now - self.started) / max(1, step - self.first_step) * (self.total_steps - step)
            parts = (f"step {step}/{self.total_steps}", self._summary(), f"{format_duration(seconds_left)} left")
            self.message(", ".join(part for part in parts if part))

    def _summary(self) -> str:
        values, labels = self.last_values, {"loss": "loss", "clips_per_second": "clips/s"}
        parts = [f"{label} {values[name]:.4g}" for name, label in labels.items() if name in values]
        if values.get("seconds"):
            parts.append(f"waited for data {values.get('data_wait_s', 0.0) / values['seconds']:.0%}")
        return ", ".join(parts)


def _event_writer(folder: Path, step: int) -> Any:
    require("track", "loop.tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
