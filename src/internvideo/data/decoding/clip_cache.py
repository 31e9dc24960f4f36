"""Cache decoded videos in temporary files that all workers of a loader share, once per machine.

An entry is the decoded span of one sample, uint8, memory-mapped when it is read. Its key contains everything that the
pixels depend on, including the modification time of the video file. Nothing is evicted: with one read per epoch an LRU
cache would never hit.
"""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Times = NDArray[np.float64]


MAX_MAPPED = 10_000
"""Maximum number of entries that a process keeps mapped; a new mapping costs page faults on every read."""


class ClipCache:
    """Share decoded frames (T, H, W, 3) uint8 and their times (T,) s between processes.

    Args:
        max_bytes: maximum size of all entries; 0 turns the cache off.

    The folder is created by `tempfile` (TMPDIR), and removed with the cache by the process that created it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._used = multiprocessing.Value("q", 0)
        self._folder = Path(tempfile.mkdtemp(prefix="internvideo-clips-")) if max_bytes else None
        self._mapped: dict[Path, tuple[Frames, Times]] = {}  # of this process
        if self._folder is not None:
            weakref.finalize(self, _remove, self._folder, os.getpid())

    @property
    def used_bytes(self) -> int:
        """Size of all entries, of all processes."""
        return int(self._used.value)

    def reserve(self, size: int) -> bool:
        """Reserve `size` bytes; return whether they were free. Unused bytes are returned with `release`."""
        with self._used.get_lock():
            if self._folder is None or self._used.value + size > self.max_bytes:
                return False
            self._used.value += size
            return True

    def release(self, size: int) -> None:
        """Return reserved bytes."""
        with self._used.get_lock():
            self._used.value -= size

    def read(self, key: object) -> tuple[Frames, Times] | None:
        """Return memory-mapped frames and times of an entry; None if there is none."""
        if self._folder is None:
            return None
        path = self._path(key)
        if (mapped := self._mapped.get(path)) is not None:
            return mapped
        try:
            with open(path, "rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch takes no read-only arrays
        except (OSError, ValueError):  # not there
            return None
        shape = np.frombuffer(content, np.int64, 4)
        times = np.frombuffer(content, np.float64, int(shape[0]), offset=32)
        entry = np.frombuffer(content, np.uint8, offset=32 + times.nbytes).reshape(shape.tolist()), times
        if len(self._mapped) < MAX_MAPPED:
            self._mapped[path] = entry
        return entry

    def write(self, key: object, frames: Frames, times: Times) -> bool:
        """Add an entry whose bytes are reserved; return whether it was added and not there before."""
        assert self._folder is not None  # else `reserve` returned False
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder) as file:
                file.write(np.array(frames.shape, np.int64).tobytes() + times.tobytes() + frames.tobytes())
                file.flush()
                os.link(file.name, self._path(key))  # atomic; fails if another worker was faster
        except OSError:  # an entry is there, or the disk is full
            return False
        return True

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": {}}

    def _path(self, key: object) -> Path:
        assert self._folder is not None
        return self._folder / hashlib.blake2b(repr(key).encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
