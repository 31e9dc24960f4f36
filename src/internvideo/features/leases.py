"""A queue that several processes share through a folder: whoever makes a file's claim first does the work.

A claim is a file that only one can make. Its maker renews it while working; one that was not renewed for a while, or
whose process of this machine is gone, counts as left behind. Nothing but the folder is shared, so the processes may
run on several machines. Should two ever hold one claim, both do the same work: results must be written whole or not
at all.
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

from internvideo import untrusted
from internvideo.errors import RunError

LEFT_BEHIND = 900.0
"""Seconds after which a claim that nobody renewed is free (clocks of machines may differ by minutes)."""

RENEW = 30.0
"""Seconds between two renewals."""


class Claims:
    """The claims of one process and its workers.

    Args:
        folder: of the claims; made when absent, as are the folders that a / in a name means.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "run": uuid.uuid4().hex}
        self._renewed: dict[str, float] = {}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.claim"

    def take(self, name: str) -> bool:
        """Whether the work is ours now. Raises RunError when the folder cannot be written."""
        for _ in ("free", "left behind"):
            try:
                self._path(name).parent.mkdir(parents=True, exist_ok=True)
                with self._path(name).open("x", encoding="utf-8") as file:
                    json.dump(self._me, file)
                return True
            except FileExistsError:
                if not self._left_behind(name):
                    return False
                self._push_aside(name)
            except OSError as error:
                raise RunError(self._path(name), f"cannot be written: {error.strerror or error}") from error
        return False

    def _read(self, path: Path) -> dict[str, object]:
        try:
            found = untrusted.read_json(path)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _left_behind(self, name: str) -> bool:
        try:
            age = time.time() - self._path(name).stat().st_mtime
        except OSError:
            return True  # given back meanwhile
        if age > LEFT_BEHIND:
            return True
        owner = self._read(self._path(name))
        pid = owner.get("pid")
        return owner.get("host") == self._me["host"] and isinstance(pid, int) and not _alive(pid)

    def _push_aside(self, name: str) -> None:
        """Remove a claim that is left behind; of several who try, one renames it, the others find it gone."""
        claim = self._path(name)
        aside = claim.with_name(f".{claim.stem}.{uuid.uuid4().hex}")
        with suppress(OSError):
            claim.rename(aside)
            aside.unlink()

    def busy(self, name: str) -> bool:
        """Whether somebody is at this work."""
        return self._path(name).exists() and not self._left_behind(name)

    def renew(self, name: str) -> None:
        """Say that the work goes on."""
        now = time.monotonic()
        if now - self._renewed.get(name, 0.0) > RENEW:
            self._renewed[name] = now
            with suppress(OSError):
                os.utime(self._path(name))

    def give_back(self, name: str) -> None:
        """The work is done, or given up."""
        self._renewed.pop(name, None)
        if self._read(self._path(name)).get("run") == self._me["run"]:
            self._path(name).unlink(missing_ok=True)

    @contextmanager
    def alone(self, name: str, seconds: float = 60.0) -> Iterator[None]:
        """Do something that others wait for; after `seconds` of waiting it is done anyway."""
        until = time.monotonic() + seconds
        while not self.take(name) and time.monotonic() < until:
            time.sleep(0.05)
        try:
            yield
        finally:
            self.give_back(name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is somebody else's
    return True
