"""Cache of frame indexes in this process, so that a long video is indexed once and not once per clip.

An index is valid only for the bytes it was built from: the key is path, size, modification times and both ends of the
file, and an index is stored only if the file did not change meanwhile. Readers also compare every packet with it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from typing import NamedTuple

from internvideo.video.index import Index

MAX_BYTES = 48 * 2**20
"""Maximum size of all indexes together; an hour at 30 frames per second takes 4.5 MB."""

COMPARED_BYTES = 2**16
"""Bytes at the start and at the end of a file that are compared."""


class Stamp(NamedTuple):
    """Identity of a version of a file, or of a folder with its files; times in ns."""

    path: str
    device: int
    inode: int
    size: int
    modified: int
    changed: int
    ends: bytes


_indexes: OrderedDict[Stamp, Index] = OrderedDict()
_total_bytes = 0  # of their tables
_lock = threading.Lock()  # several threads may read videos


def stamp_of(path: str) -> Stamp | None:
    """Return the stamp of a regular file, or of a folder and the files in it; None for anything else."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return _stamp_of_folder(path, status)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(path, "rb", buffering=0) as file:
            ends = file.read(COMPARED_BYTES)
            file.seek(max(status.st_size - COMPARED_BYTES, 0))
            ends += file.read(COMPARED_BYTES)
    except (OSError, ValueError):
        return None
    return Stamp(os.path.abspath(path), *_identity(status), ends=hashlib.blake2b(ends, digest_size=16).digest())


def _stamp_of_folder(path: str, status: os.stat_result) -> Stamp:
    digest = hashlib.blake2b(digest_size=16)
    size, modified, changed = 0, status.st_mtime_ns, status.st_ctime_ns
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                file = entry.stat()
            except OSError:  # a link to nothing
                file = entry.stat(follow_symlinks=False)
            identity = (entry.name, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns)
            digest.update(repr(identity).encode("utf-8", "surrogateescape"))
            size += file.st_size
            modified, changed = max(modified, file.st_mtime_ns), max(changed, file.st_ctime_ns)
    return Stamp(os.path.abspath(path), status.st_dev, status.st_ino, size, modified, changed, digest.digest())


def lookup(stamp: Stamp | None) -> Index | None:
    """Return the cached index of a file version, or None."""
    with _lock:
        if stamp is None or stamp not in _indexes:
            return None
        _indexes.move_to_end(stamp)
        return _indexes[stamp]


def store(stamp: Stamp | None, index: Index) -> None:
    """Cache an index that was built after its file had this stamp, without decoded frames."""
    if stamp is None or not is_unchanged(stamp) or index.nbytes > MAX_BYTES:
        return
    global _total_bytes
    with _lock:
        replaced = _indexes.pop(stamp, None)
        _indexes[stamp] = replace(index, frame_cache=None)
        _total_bytes += index.nbytes - (replaced.nbytes if replaced else 0)
        while _total_bytes > MAX_BYTES:
            _total_bytes -= _indexes.popitem(last=False)[1].nbytes


def is_unchanged(stamp: Stamp) -> bool:
    """Return whether the file still has this stamp and is older than the file system's time resolution."""
    last = max(stamp.modified, stamp.changed)
    tick = 2e9 if last % 10**9 == 0 else 1e8  # some file systems count whole seconds, or two of them
    if time.time_ns() - last <= tick:
        return False
    try:
        status = os.stat(stamp.path)
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode):
        return stamp_of(stamp.path) == stamp
    # No need to read the file again: whatever writes to it changes these times.
    return _identity(status) == stamp[1:-1]


def _identity(status: os.stat_result) -> tuple[int, int, int, int, int]:
    """Return the fields of a stamp that the file system keeps."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
