"""Share a work queue among processes through a folder of lease files: whoever creates a video's lease processes it.

A lease is a file that only one process can create. Its owner updates it while working (heartbeat); a lease without a
heartbeat for LEASE_TIMEOUT_S, or whose process on this machine has ended, is stale and may be taken over. Only the
folder is shared, so the processes may run on several machines. In rare races two processes own one lease and process
the same video, so results must be written atomically.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from internvideo.errors import unwritable
from internvideo.untrusted import read_json_object

LEASE_TIMEOUT_S = 900.0
"""Seconds without a heartbeat after which a lease is stale (clocks of machines may differ by minutes)."""

HEARTBEAT_INTERVAL_S = 30.0
"""Seconds between two heartbeats."""


class LeaseQueue:
    """The leases of one process and its workers.

    Args:
        folder: where the lease files are written; created if absent, as are the subfolders of names with a /.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "run": uuid.uuid4().hex}
        self._last_heartbeat: dict[str, float] = {}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.claim"

    def acquire(self, name: str) -> bool:
        """Try to create the lease; return whether this process owns it. Raises RunError: the folder is not writable."""
        for _ in ("free", "stale"):
            try:
                self._path(name).parent.mkdir(parents=True, exist_ok=True)
                with self._path(name).open("x", encoding="utf-8") as file:
                    json.dump(self._owner, file)
                return True
            except FileExistsError:
                if not self._is_stale(name):
                    return False
                self._break_stale(name)
            except OSError as error:
                raise unwritable(self._path(name), error, "") from error
        return False

    def _read_owner(self, name: str) -> dict[str, object]:
        return read_json_object(self._path(name)) or {}

    def _is_stale(self, name: str) -> bool:
        try:
            age = time.time() - self._path(name).stat().st_mtime
        except OSError:
            return True  # released meanwhile
        if age > LEASE_TIMEOUT_S:
            return True
        owner = self._read_owner(name)
        pid = owner.get("pid")
        return owner.get("host") == self._owner["host"] and isinstance(pid, int) and not _is_running(pid)

    def _break_stale(self, name: str) -> None:
        """Remove a stale lease; if several processes try, one renames the file and for the others the rename fails."""
        lease = self._path(name)
        unique = lease.with_name(f".{lease.stem}.{uuid.uuid4().hex}")
        with suppress(OSError):
            lease.rename(unique)
            unique.unlink()

    def is_leased(self, name: str) -> bool:
        """Return whether any process holds a lease that is not stale."""
        return self._path(name).exists() and not self._is_stale(name)

    def heartbeat(self, name: str) -> None:
        """Update the time of the lease, at most every HEARTBEAT_INTERVAL_S."""
        now = time.monotonic()
        if now - self._last_heartbeat.get(name, 0.0) > HEARTBEAT_INTERVAL_S:
            self._last_heartbeat[name] = now
            with suppress(OSError):
                os.utime(self._path(name))

    def release(self, name: str) -> None:
        """Remove the lease if this process owns it."""
        self._last_heartbeat.pop(name, None)
        if self._read_owner(name).get("run") == self._owner["run"]:
            self._path(name).unlink(missing_ok=True)

    @contextmanager
    def exclusive(self, name: str, timeout_s: float = 60.0) -> Iterator[None]:
        """Hold a lease, waiting for its release; after `timeout_s` seconds continue without it."""
        deadline = time.monotonic() + timeout_s
        while not self.acquire(name) and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            yield
        finally:
            self.release(name)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it belongs to another user
    return True
