"""Platform differences of Linux, macOS and Windows: cores, file locks, sync, memory, orphaned workers."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOCKED_BYTE = 2**30
"""Offset of the byte that is locked on Windows, where other processes cannot read locked bytes: after the text."""


def cores() -> int:
    """Return the number of cores that this process may use, within the limit of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or no limit
        return allowed


def lock(handle: int) -> None:
    """Lock an open file for this process until it is closed. Raises BlockingIOError: another process holds the lock."""
    try:
        import fcntl
    except ImportError:
        _lock_on_windows(handle)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_on_windows(handle: int) -> None:
    import msvcrt

    os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]  # typed on Windows alone
    except OSError as error:
        raise BlockingIOError(errno.EAGAIN, "locked by another process") from error
    finally:
        os.lseek(handle, 0, os.SEEK_SET)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk; on Windows folders need no flush."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def peak_memory_mb() -> float:
    """Return the peak resident memory (MiB) of this process or, if larger, of a finished child (not on Windows)."""
    try:
        import resource
    except ImportError:
        import psutil  # of the extra `report`, which `internvideo demo` requires

        memory: Any = psutil.Process().memory_info()
        return float(memory.peak_wset) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / unit


def call_when_parent_dies(act: Callable[[], None]) -> None:
    """Call `act` in a thread of this worker process when its parent process has ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            act()

    threading.Thread(target=watch, daemon=True).start()


def free_memory() -> int:
    """Return the available memory in bytes; on macOS and Windows the total memory."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 2**10
    except (OSError, StopIteration):
        pass
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import psutil  # of the extra `report`

    return int(psutil.virtual_memory().total)
