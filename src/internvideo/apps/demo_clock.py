"""Time and memory of a demo, over all of its sessions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from internvideo import untrusted
from internvideo.storage import write_text
from internvideo.system import peak_memory_mb


class DemoClock:
    """Sum the seconds of each step and keep the peak memory over all sessions (program starts) of a demo."""

    def __init__(self, file: Path) -> None:
        stored = untrusted.read_json(file) if file.is_file() else {}
        self.file = file
        self.seconds: dict[str, float] = stored.get("seconds", {})
        self.peak_memory_mb: float = stored.get("peak_memory_mb", 0.0)
        self._running: dict[str, float] = {}

    def start(self, name: str, *, already_done: bool = False) -> Callable[[], None]:
        """Start the clock of step `name`; return the function that stops it and adds the seconds to the step's sum.

        With `already_done` nothing is added: a step that was finished and timed in an earlier session is only checked.
        """
        if not (already_done and name in self.seconds):
            self._running[name] = time.monotonic()

        def stop() -> None:
            if name in self._running:
                self.seconds = {**self.seconds, name: self.seconds_so_far()[name]}
                del self._running[name]
            self.peak_memory_mb = self.memory_mb()
            content = {"seconds": self.seconds, "peak_memory_mb": self.peak_memory_mb}
            write_text(self.file, json.dumps(content, indent=1))

        return stop

    @contextmanager
    def timed(self, name: str, *, already_done: bool = False) -> Iterator[None]:
        """Add the seconds of the block, also if it is interrupted, to those of step `name`; see `start`."""
        stop = self.start(name, already_done=already_done)
        try:
            yield
        finally:
            stop()

    def seconds_so_far(self) -> dict[str, float]:
        """Return the seconds by step, including the current ones."""
        now = time.monotonic()
        return self.seconds | {
            name: self.seconds.get(name, 0.0) + now - started_at for name, started_at in self._running.items()
        }

    def memory_mb(self) -> float:
        """Return the largest resident memory of any process of any session so far, or of the device if larger, MiB."""
        device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
        return max(self.peak_memory_mb, peak_memory_mb(), device)
