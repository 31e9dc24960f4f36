"""What a run tells while it goes: metrics.jsonl always, TensorBoard when asked, progress on stderr."""

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
from internvideo.errors import RecipeError, RunError
from internvideo.storage import write_text
from internvideo.terminal import say

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 10.0


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: those become the texts "nan", "inf" and "-inf", in mappings and lists too."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def clock(seconds: float) -> str:
    """3725 -> "1:02:05", 65 -> "1:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl so far; a last line that a crash cut off is left out."""
    file = folder / METRICS
    lines = []
    for line in untrusted.read_text(file).splitlines() if file.exists() else []:
        try:
            lines.append(untrusted.parse_json(line, finite=False))
        except ValueError:
            break
    return lines


class MetricLog:
    """The log of one run; only the process of rank 0 writes and shows it.

    Args:
        folder: of the run.
        total: steps of the run.
        step: steps already made; lines of later steps, written before a crash, are removed.
        title: in front of the progress.
        tensorboard: also write events into folder/tensorboard.

    Raises:
        RecipeError: TensorBoard was asked for and is not installed.
        RunError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, total: int, step: int, title: str, tensorboard: bool = False) -> None:
        self.file, self.total, self.title = folder / METRICS, total, title
        self.active = distributed.rank() == 0
        self.first, self.started = step, time.perf_counter()
        self.last_line = self.started
        self.last_values: Mapping[str, float] = {}
        self.events = _event_writer(folder, step) if tensorboard and self.active else None
        self.bar = tqdm(
            total=total,
            initial=step,
            desc=title,
            unit="step",
            file=sys.stderr,
            disable=not (self.active and sys.stderr.isatty()),
        )
        if self.active and self.file.exists():
            kept = [line for line in read_metrics(folder) if line["step"] <= step]
            write_text(self.file, "".join(json.dumps(line) + "\n" for line in kept))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.events is not None:
            self.events.close()

    def write(self, values: Mapping[str, float]) -> None:
        """One line of the log; `values` holds "step". Raises RunError on a full disk."""
        self.last_values = values
        if not self.active:
            return
        self._append(values)
        self.bar.set_postfix_str(self._brief(), refresh=False)
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(f"{self.title}/{name}", value, int(values["step"]))

    def tell(self, text: str) -> None:
        """One line on stderr."""
        if self.active:
            say(f"{self.title}: {text}", err=True)

    def tell_changes(self, step: int, changes: Mapping[str, tuple[Any, Any]], lr: float) -> None:
        """Tell, here and in the log, which settings are others after `step` and at which rate it goes on."""
        told = ", ".join(f"{key} was {was}, is {now}" for key, (was, now) in changes.items())
        self.tell(f"after step {step}: {told}; learning rate {lr:.3g}")
        if self.active:
            self._append({"step": step, "changed": {key: list(change) for key, change in changes.items()}, "lr": lr})

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain(line)) + "\n")
        except OSError as error:
            raise RunError(self.file, f"cannot be written: {error.strerror}", "", "free space, then resume") from error

    def progress(self, step: int) -> None:
        """Show that `step` steps are made: a bar with the time left, or a plain line every ten seconds."""
        self.bar.update(step - self.bar.n)
        now = time.perf_counter()
        due = now - self.last_line >= SECONDS_BETWEEN_LINES or step == self.total
        if self.active and self.bar.disable and due:
            self.last_line = now
            left = (now - self.started) / max(1, step - self.first) * (self.total - step)
            say(f"{self.title}: step {step}/{self.total}, {self._brief()}, {clock(left)} left", err=True)

    def _brief(self) -> str:
        labels = {"loss": "loss", "clips_per_second": "clips/s"}
        return ", ".join(
            f"{label} {self.last_values[name]:.4g}" for name, label in labels.items() if name in self.last_values
        )


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RecipeError(
            "loop.tensorboard", "TensorBoard is not installed", "false", "pip install 'internvideo[track]'"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
