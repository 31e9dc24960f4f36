"""Indexes of files that this process has opened before, so that a film is looked through once and not once a clip.

An index counts for exactly the bytes that it was made from: it is found again by place, size, times of the last
changes and both ends of the file, and kept only where the file stood still meanwhile. Readers compare every packet with
it besides.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import OrderedDict
from dataclasses import replace
from typing import NamedTuple

from internvideo.video.index import Index

MOST_BYTES = 48 * 2**20
"""Memory of all indexes together; an hour at 30 frames a second takes 4.5 MB."""

ENDS = 2**16
"""Bytes at the start and at the end of a file that are compared."""


class Stamp(NamedTuple):
    """What tells a file, or a folder with its files, from another one and from itself at another time; times in ns."""

    path: str
    device: int
    inode: int
    size: int
    modified: int
    changed: int
    ends: bytes


_known: OrderedDict[Stamp, Index] = OrderedDict()


def stamp_of(path: str) -> Stamp | None:
    """The stamp of a regular file, or of a folder and the files in it; None for anything else."""
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            return _stamp_of_folder(path, found)
        if not stat.S_ISREG(found.st_mode):
            return None
        with open(path, "rb", buffering=0) as file:
            ends = file.read(ENDS)
            file.seek(max(found.st_size - ENDS, 0))
            ends += file.read(ENDS)
    except (OSError, ValueError):
        return None
    digest = hashlib.blake2b(ends, digest_size=16).digest()
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return Stamp(os.path.abspath(path), found.st_dev, found.st_ino, found.st_size, *times, digest)


def _stamp_of_folder(path: str, found: os.stat_result) -> Stamp:
    digest = hashlib.blake2b(digest_size=16)
    size, modified, changed = 0, found.st_mtime_ns, found.st_ctime_ns
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                file = entry.stat()
            except OSError:  # a link to nothing
                file = entry.stat(follow_symlinks=False)
            told = (entry.name, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns)
            digest.update(repr(told).encode("utf-8", "surrogateescape"))
            size += file.st_size
            modified, changed = max(modified, file.st_mtime_ns), max(changed, file.st_ctime_ns)
    return Stamp(os.path.abspath(path), found.st_dev, found.st_ino, size, modified, changed, digest.digest())


def recall(stamp: Stamp | None) -> Index | None:
    """The index of a file as it is now, None where it is not known."""
    if stamp is None or stamp not in _known:
        return None
    _known.move_to_end(stamp)
    return _known[stamp]


def remember(stamp: Stamp | None, index: Index) -> None:
    """Keep an index that was made after its file had this stamp; decoded pictures are not kept."""
    if stamp is None or not stands_still(stamp) or index.nbytes > MOST_BYTES:
        return
    _known[stamp] = replace(index, kept=None)
    while sum(other.nbytes for other in _known.values()) > MOST_BYTES:
        _known.popitem(last=False)


def stands_still(stamp: Stamp) -> bool:
    """Whether a change since the stamp would show: the file is as it was, and older than a tick of its clock."""
    last = max(stamp.modified, stamp.changed)
    tick = 2e9 if last % 10**9 == 0 else 1e8  # some file systems count whole seconds, or two of them
    return time.time_ns() - last > tick and stamp_of(stamp.path) == stamp
