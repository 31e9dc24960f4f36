"""Signal handling: the first SIGINT or SIGTERM requests a stop, the second one ends the process at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from internvideo.terminal import LOGGER


class StopSignals:
    """Within the block, set `requested` when SIGINT or SIGTERM is received. Has no effect outside the main thread."""

    def __init__(self) -> None:
        self.requested = False
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signal_number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[signal_number] = signal.signal(signal_number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore_handlers()

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore_handlers()
        LOGGER.info("stopping after this step and saving a checkpoint; interrupt again to stop at once")

    def _restore_handlers(self) -> None:
        while self._previous_handlers:
            signal_number, handler = self._previous_handlers.popitem()
            signal.signal(signal_number, handler)
