"""Random access to tar shards of samples (webdataset's layout), local or on any file system of fsspec.

The key of a sample is the file name up to the first dot: 000012.jpg, 000012.txt, 000012.json. The headers of a shard
are read once and kept as an index (name, offset, size), so that any sample can be read without those before it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from internvideo import untrusted
from internvideo.errors import ManifestError, VideoError, shown
from internvideo.extras import require
from internvideo.storage import write_text

MEDIA = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "mp4", "webm", "mkv", "mov", "avi")
TEXTS = ("txt", "text", "caption", "json")
"""Suffixes of captions; the first one that a sample has is used. JSON has it under the key "caption"."""
MAX_OPEN_SHARDS = 4
MAX_SHARDS = 10**6
_RANGE = re.compile(r"\{(\d{1,12})\.\.(\d{1,12})\}")


@dataclass(frozen=True)
class Entry:
    """One sample: its key, and (suffix, first byte, number of bytes) of its medium and its caption in the shard."""

    key: str
    medium: tuple[str, int, int]
    caption: tuple[str, int, int]


@dataclass(frozen=True)
class Shard:
    """A shard: address, size in bytes, samples, and number of samples without medium or caption."""

    address: str
    size: int
    entries: tuple[Entry, ...] = field(repr=False)
    incomplete: int = 0


def shard_addresses(pattern: str) -> tuple[str, ...]:
    """List shards: a folder of .tar files, a glob, or an address with a range, laion/{00000..00099}.tar.

    Raises ManifestError: no shard, a compressed one, or a descending range.
    """
    if match := _RANGE.search(pattern):
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise ManifestError(pattern, f"a range from {first} to {last}", "an ascending range")
        if last - first >= MAX_SHARDS:
            raise ManifestError(pattern, f"{last - first + 1:,} shards", f"{MAX_SHARDS:,} or fewer")
        start, end, width = pattern[: match.start()], pattern[match.end() :], len(match[1])
        addresses = [f"{start}{number:0{width}d}{end}" for number in range(first, last + 1)]
    elif "://" in pattern:
        addresses = [pattern]
    elif os.path.isdir(pattern):
        addresses = sorted(str(path) for path in Path(pattern).glob("*.tar"))
    else:
        addresses = sorted(glob.glob(pattern))
    if not addresses:
        raise ManifestError(pattern, "no shard", "a folder of .tar files, or NAME_{00000..00099}.tar")
    compressed = [name for name in addresses if not name.endswith(".tar")]
    if compressed:
        hint = "decompress it: random access needs that"
        raise ManifestError(compressed[0], "no uncompressed tar file", "NAME.tar", hint)
    return tuple(addresses)


@contextmanager
def open_shard(address: str) -> Iterator[Any]:
    """Open a shard as a seekable binary file.

    Raises ManifestError: it cannot be opened. ExtraError: fsspec is needed and not installed.
    """
    try:
        if "://" not in address:
            with open(address, "rb") as stream:
                yield stream
            return
        require("cloud", address)
        import fsspec

        with fsspec.open(address, "rb").open() as stream:
            yield stream
    except (OSError, ValueError) as error:
        raise ManifestError(address, f"cannot be read: {' '.join(str(error).split())[:160]}") from error


def read_shard(address: str, index: Path | None = None) -> Shard:
    """Index the samples of a shard from its headers, or read the index from the folder `index` if it is there.

    Raises ManifestError: unreadable, no tar file, truncated, or a duplicate file in one sample.
    """
    with open_shard(address) as stream:
        size = stream.seek(0, os.SEEK_END)
        index_file = index / f"{hashlib.sha256(address.encode()).hexdigest()[:24]}.json" if index else None
        if index_file is not None and (shard := _read_index(index_file, address, size)) is not None:
            return shard
        stream.seek(0)
        shard = _scan_shard(address, size, stream)
    if index_file is not None:
        entries = [[entry.key, *entry.medium, *entry.caption] for entry in shard.entries]
        content = {"address": address, "size": size, "incomplete": shard.incomplete, "entries": entries}
        write_text(index_file, json.dumps(content, separators=(",", ":")))
    return shard


def _read_index(path: Path, address: str, size: int) -> Shard | None:
    """Read the index of an earlier run; None if it is of another file or malformed."""
    try:
        content = untrusted.read_json(path)
        if (content["address"], content["size"]) != (address, size):
            return None
        entries = tuple(
            Entry(str(key), (str(a), int(b), int(c)), (str(d), int(e), int(f)))
            for key, a, b, c, d, e, f in content["entries"]
        )
        locations = (location for entry in entries for location in (entry.medium, entry.caption))
        if not all(first >= 0 and count >= 0 and first + count <= size for _, first, count in locations):
            return None
        return Shard(address, size, entries, int(content["incomplete"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _scan_shard(address: str, size: int, stream: IO[bytes]) -> Shard:
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if member.size < 0:
                    raise ManifestError(address, f"a file of {member.size} bytes", "a whole tar file")
                if not member.isreg() or member.issparse():
                    continue
                folder, _, name = shown(member.name).rpartition("/")
                stem, _, ending = name.partition(".")
                key, ending = (f"{folder}/{stem}" if folder else stem), ending.lower()
                if member.offset_data + member.size > size:
                    raise ManifestError(address, f"ends inside {name}", "a whole tar file", "fetch it again")
                files = samples.setdefault(key, {})
                if ending in files:
                    raise ManifestError(address, f"duplicate file {name}", "each file once")
                files[ending] = (ending, member.offset_data, member.size)
    # Malformed headers raise any of these.
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ManifestError(address, f"is no readable tar file: {error}", "a plain .tar of samples") from None
    entries = []
    for key, files in samples.items():
        media = [files[ending] for ending in MEDIA if ending in files]
        texts = [files[ending] for ending in TEXTS if ending in files and files[ending][2]]
        if media and texts:
            entries.append(Entry(key, media[0], texts[0]))
    return Shard(address, size, tuple(entries), len(samples) - len(entries))


@contextmanager
def as_video_file(content: bytes, ending: str, name: str) -> Iterator[str]:
    """Write the bytes of a video to a temporary file and yield its name; VideoErrors of the block name the sample."""
    with tempfile.NamedTemporaryFile(suffix=f".{ending}") as file:
        file.write(content)
        file.flush()
        try:
            yield file.name
        except VideoError as error:
            raise VideoError(name, error.found, error.expected, error.hint) from error


class ShardContents:
    """Read the bytes of samples; a few shards are kept open per process."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[Any, ExitStack]] = OrderedDict()  # stream, and what closes it
        self._process = os.getpid()
        weakref.finalize(self, _close_all, self._open)

    def read(self, address: str, location: tuple[str, int, int]) -> bytes:
        """Read a file inside a shard. Raises ManifestError: unreadable or truncated."""
        if self._process != os.getpid():  # forked workers must not share file positions
            _close_all(self._open)  # closes only this process's copies
            self._process = os.getpid()
        if address not in self._open:
            while len(self._open) >= MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1][1].close()
            closer = ExitStack()
            self._open[address] = closer.enter_context(open_shard(address)), closer
        self._open.move_to_end(address)
        _, first, count = location
        stream, closer = self._open[address]
        try:
            stream.seek(first)
            content: bytes = stream.read(count)
        except (OSError, ValueError) as error:
            del self._open[address]
            closer.close()
            raise ManifestError(address, f"cannot be read: {' '.join(str(error).split())[:160]}") from error
        if len(content) != count:
            raise ManifestError(address, f"ends before byte {first + count}", "the file that was indexed")
        return content

    def __reduce__(self) -> tuple[type[ShardContents], tuple[()]]:
        return ShardContents, ()


def _close_all(shards: OrderedDict[str, tuple[Any, ExitStack]]) -> None:
    while shards:
        shards.popitem()[1][1].close()
