"""Tar shards of samples (webdataset's form), on this machine or anywhere fsspec reaches, read at any place.

A shard holds files whose names up to the first dot are a sample's key: 000012.jpg, 000012.txt, 000012.json. Its headers
are read once and kept as an index (name, place, size), so that any sample can be read without those before it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from internvideo import untrusted
from internvideo.errors import ManifestError, shown
from internvideo.extras import require
from internvideo.storage import write_text

MEDIA = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "mp4", "webm", "mkv", "mov", "avi")
TEXTS = ("txt", "text", "caption", "json")
"""Endings of captions, the first that a sample has is taken; "json" holds one under "caption"."""
MAX_OPEN_SHARDS = 4
MAX_SHARDS = 10**6
_RANGE = re.compile(r"\{(\d{1,12})\.\.(\d{1,12})\}")


@dataclass(frozen=True)
class Entry:
    """One sample: its key, and for medium and caption the ending, first byte and number of bytes in the shard."""

    key: str
    medium: tuple[str, int, int]
    caption: tuple[str, int, int]


@dataclass(frozen=True)
class Shard:
    """A shard's address, its size in bytes, its samples, and how many lacked a picture or a caption."""

    address: str
    size: int
    entries: tuple[Entry, ...] = field(repr=False)
    incomplete: int = 0


def shard_addresses(pattern: str) -> tuple[str, ...]:
    """The shards that are meant: a folder of .tar files, a glob, or an address with a range: laion/{00000..00099}.tar.

    Raises:
        ManifestError: none, a compressed one, or a range that counts down.
    """
    if found := _RANGE.search(pattern):
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise ManifestError(pattern, f"a range from {first} to {last}", "a range that counts up")
        if last - first >= MAX_SHARDS:
            raise ManifestError(pattern, f"{last - first + 1:,} shards", f"{MAX_SHARDS:,} at the most")
        width = len(found[1])
        made = [
            f"{pattern[: found.start()]}{number:0{width}d}{pattern[found.end() :]}" for number in range(first, last + 1)
        ]
    elif "://" in pattern:
        made = [pattern]
    elif os.path.isdir(pattern):
        made = sorted(str(path) for path in Path(pattern).glob("*.tar"))
    else:
        made = sorted(glob.glob(pattern))
    if not made:
        raise ManifestError(pattern, "no shard", "a folder of .tar files, or NAME_{00000..00099}.tar")
    packed = [name for name in made if not name.endswith(".tar")]
    if packed:
        raise ManifestError(packed[0], "is no plain tar file", "NAME.tar", "a packed one cannot be read in the middle")
    return tuple(made)


@contextmanager
def open_shard(address: str) -> Iterator[Any]:
    """A shard as a file that can be read anywhere, with its size.

    Raises:
        ManifestError: it cannot be opened, or fsspec is needed and not there.
    """
    try:
        if "://" not in address:
            with open(address, "rb") as stream:
                yield stream
            return
        fsspec = _fsspec(address)
        with fsspec.open(address, "rb").open() as stream:
            yield stream
    except (OSError, ValueError) as error:
        raise ManifestError(address, f"cannot be read: {' '.join(str(error).split())[:160]}") from error


def _fsspec(address: str) -> Any:
    require("cloud", address)
    import fsspec

    return fsspec


def read_shard(address: str, index: Path | None = None) -> Shard:
    """The samples of a shard, from its headers or, where `index` (a folder) has them already, from there.

    Raises:
        ManifestError: unreadable, no tar file, cut off, or a file twice in one sample.
    """
    with open_shard(address) as stream:
        size = stream.seek(0, os.SEEK_END)
        kept = index / f"{hashlib.sha256(address.encode()).hexdigest()[:24]}.json" if index else None
        if kept is not None and (shard := _read_index(kept, address, size)) is not None:
            return shard
        stream.seek(0)
        shard = _scan_shard(address, size, stream)
    if kept is not None:
        entries = [[entry.key, *entry.medium, *entry.caption] for entry in shard.entries]
        told = {"address": address, "size": size, "incomplete": shard.incomplete, "entries": entries}
        write_text(kept, json.dumps(told, separators=(",", ":")))
    return shard


def _read_index(path: Path, address: str, size: int) -> Shard | None:
    """What an earlier run found, if it is of this very file; anything else is found again."""
    try:
        told = untrusted.read_json(path)
        if (told["address"], told["size"]) != (address, size):
            return None
        entries = tuple(
            Entry(str(key), (str(a), int(b), int(c)), (str(d), int(e), int(f)))
            for key, a, b, c, d, e, f in told["entries"]
        )
        places = (place for entry in entries for place in (entry.medium, entry.caption))
        if not all(first >= 0 and count >= 0 and first + count <= size for _, first, count in places):
            return None
        return Shard(address, size, entries, int(told["incomplete"]))
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
                found = samples.setdefault(key, {})
                if ending in found:
                    raise ManifestError(address, f"holds {name} twice", "each file once")
                found[ending] = (ending, member.offset_data, member.size)
    # Headers of lengths and names that there cannot be end in many ways.
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ManifestError(address, f"is no readable tar file: {error}", "a plain .tar of samples") from None
    entries = []
    for key, found in samples.items():
        media = [found[ending] for ending in MEDIA if ending in found]
        texts = [found[ending] for ending in TEXTS if ending in found and found[ending][2]]
        if media and texts:
            entries.append(Entry(key, media[0], texts[0]))
    return Shard(address, size, tuple(entries), len(samples) - len(entries))


class ShardContents:
    """Bytes of samples. A few shards stay open, in the process that opened them."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._process = os.getpid()
        weakref.finalize(self, _close_all, self._open)

    def read(self, address: str, place: tuple[str, int, int]) -> bytes:
        """The bytes of a file inside a shard. Raises ManifestError: unreadable or cut off."""
        if self._process != os.getpid():  # a worker must not move the file position of another
            _close_all(self._open)  # of this process alone
            self._process = os.getpid()
        if address not in self._open:
            while len(self._open) >= MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].__exit__(None, None, None)
            context = open_shard(address)
            self._open[address] = _OpenShard(context)
        self._open.move_to_end(address)
        _, first, count = place
        try:
            stream = self._open[address].stream
            stream.seek(first)
            content: bytes = stream.read(count)
        except (OSError, ValueError) as error:
            self._open.pop(address).__exit__(None, None, None)
            raise ManifestError(address, f"cannot be read: {' '.join(str(error).split())[:160]}") from error
        if len(content) != count:
            raise ManifestError(address, f"ends before byte {first + count}", "the file that was indexed")
        return content

    def __reduce__(self) -> tuple[type[ShardContents], tuple[()]]:
        return ShardContents, ()


def _close_all(shards: OrderedDict[str, Any]) -> None:
    while shards:
        shards.popitem()[1].__exit__(None, None, None)


class _OpenShard:
    """An open shard outside a with block."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.stream = context.__enter__()

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)
