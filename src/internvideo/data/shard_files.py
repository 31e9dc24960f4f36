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

MEDIUM_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "mp4", "webm", "mkv", "mov", "avi")
CAPTION_SUFFIXES = ("txt", "text", "caption", "json")
"""Suffixes of captions; the first one that a sample has is used. JSON has it under the key "caption"."""
MAX_OPEN_SHARDS = 4
MAX_SHARDS = 10**6
_RANGE = re.compile(r"\{(\d{1,12})\.\.(\d{1,12})\}")


@dataclass(frozen=True)
class Entry:
    """One sample: key, and (suffix, offset in the shard, number of bytes) of its image or video and of its caption."""

    key: str
    medium: tuple[str, int, int]
    caption: tuple[str, int, int]


@dataclass(frozen=True)
class Shard:
    """A shard: path or URL, size in bytes, samples, and number of samples left out for want of a medium or caption."""

    url: str
    num_bytes: int
    entries: tuple[Entry, ...] = field(repr=False)
    num_incomplete: int = 0


def list_shards(pattern: str) -> tuple[str, ...]:
    """List the paths or URLs of shards from a folder of .tar files, a glob, or a range, laion/{00000..00099}.tar.

    Raises ManifestError: no shard, a compressed one, or a descending range.
    """
    if match := _RANGE.search(pattern):
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise ManifestError(pattern, f"a range from {first} to {last}", "an ascending range")
        if last - first >= MAX_SHARDS:
            raise ManifestError(pattern, f"{last - first + 1:,} shards", f"{MAX_SHARDS:,} or fewer")
        start, end, width = pattern[: match.start()], pattern[match.end() :], len(match[1])
        urls = [f"{start}{number:0{width}d}{end}" for number in range(first, last + 1)]
    elif "://" in pattern:
        urls = [pattern]
    elif os.path.isdir(pattern):
        urls = sorted(str(path) for path in Path(pattern).glob("*.tar"))
    else:
        urls = sorted(glob.glob(pattern))
    if not urls:
        raise ManifestError(pattern, "no shard", "a folder of .tar files, or NAME_{00000..00099}.tar")
    compressed = [name for name in urls if not name.endswith(".tar")]
    if compressed:
        hint = "decompress it: random access needs that"
        raise ManifestError(compressed[0], "no uncompressed tar file", "NAME.tar", hint)
    return tuple(urls)


@contextmanager
def open_shard(url: str) -> Iterator[Any]:
    """Open a shard as a seekable binary file.

    Raises ManifestError: it cannot be opened. ExtraError: fsspec is needed and not installed.
    """
    try:
        if "://" not in url:
            with open(url, "rb") as stream:
                yield stream
            return
        require("cloud", url)
        import fsspec

        with fsspec.open(url, "rb").open() as stream:
            yield stream
    except (OSError, ValueError) as error:
        raise ManifestError(url, f"cannot be read: {' '.join(str(error).split())[:160]}") from error


def read_shard(url: str, index: Path | None = None) -> Shard:
    """Index the samples of a shard from its headers, or read the index that an earlier run saved in the folder `index`.

    Raises ManifestError: unreadable, no tar file, truncated, or a duplicate file in one sample.
    """
    with open_shard(url) as stream:
        num_bytes = stream.seek(0, os.SEEK_END)
        index_file = index / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.json" if index else None
        if index_file is not None and (shard := _read_index(index_file, url, num_bytes)) is not None:
            return shard
        stream.seek(0)
        shard = _scan_shard(url, num_bytes, stream)
    if index_file is not None:
        entries = [[entry.key, *entry.medium, *entry.caption] for entry in shard.entries]
        content = {"address": url, "size": num_bytes, "incomplete": shard.num_incomplete, "entries": entries}
        write_text(index_file, json.dumps(content, separators=(",", ":")))
    return shard


def _read_index(path: Path, url: str, num_bytes: int) -> Shard | None:
    """Read the index of an earlier run; None if it belongs to another shard or is malformed."""
    try:
        content = untrusted.read_json(path)
        if (content["address"], content["size"]) != (url, num_bytes):
            return None
        entries = tuple(
            Entry(str(key), (str(a), int(b), int(c)), (str(d), int(e), int(f)))
            for key, a, b, c, d, e, f in content["entries"]
        )
        locations = (location for entry in entries for location in (entry.medium, entry.caption))
        if not all(offset >= 0 and length >= 0 and offset + length <= num_bytes for _, offset, length in locations):
            return None
        return Shard(url, num_bytes, entries, int(content["incomplete"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _scan_shard(url: str, num_bytes: int, stream: IO[bytes]) -> Shard:
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if member.size < 0:
                    raise ManifestError(url, f"a file of {member.size} bytes", "a whole tar file")
                if not member.isreg() or member.issparse():
                    continue
                folder, _, name = shown(member.name).rpartition("/")
                stem, _, suffix = name.partition(".")
                key, suffix = (f"{folder}/{stem}" if folder else stem), suffix.lower()
                if member.offset_data + member.size > num_bytes:
                    raise ManifestError(url, f"ends inside {name}", "a whole tar file", "fetch it again")
                files = samples.setdefault(key, {})
                if suffix in files:
                    raise ManifestError(url, f"duplicate file {name}", "each file once")
                files[suffix] = (suffix, member.offset_data, member.size)
    # Malformed headers raise any of these.
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ManifestError(url, f"is no readable tar file: {error}", "a plain .tar of samples") from None
    entries = []
    for key, files in samples.items():
        media = [files[suffix] for suffix in MEDIUM_SUFFIXES if suffix in files]
        captions = [files[suffix] for suffix in CAPTION_SUFFIXES if suffix in files and files[suffix][2]]
        if media and captions:
            entries.append(Entry(key, media[0], captions[0]))
    return Shard(url, num_bytes, tuple(entries), len(samples) - len(entries))


@contextmanager
def as_video_file(content: bytes, suffix: str, name: str) -> Iterator[str]:
    """Write the bytes of a video to a temporary file and yield its path; VideoErrors of the block name the sample."""
    with tempfile.NamedTemporaryFile(suffix=f".{suffix}") as file:
        file.write(content)
        file.flush()
        try:
            yield file.name
        except VideoError as error:
            raise VideoError(name, error.found, error.expected, error.hint) from error


class ShardContents:
    """Read the bytes of samples; a few shards are kept open per process."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[Any, ExitStack]] = OrderedDict()  # URL -> stream, and what closes it
        self._process = os.getpid()
        weakref.finalize(self, _close_all, self._open)

    def read(self, url: str, location: tuple[str, int, int]) -> bytes:
        """Read a file inside a shard. Raises ManifestError: unreadable or truncated."""
        if self._process != os.getpid():  # forked workers must not share file positions
            _close_all(self._open)  # closes only this process's copies
            self._process = os.getpid()
        if url not in self._open:
            while len(self._open) >= MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1][1].close()
            exit_stack = ExitStack()
            self._open[url] = exit_stack.enter_context(open_shard(url)), exit_stack
        self._open.move_to_end(url)
        _, offset, length = location
        stream, exit_stack = self._open[url]
        try:
            stream.seek(offset)
            content: bytes = stream.read(length)
        except (OSError, ValueError) as error:
            del self._open[url]
            exit_stack.close()
            raise ManifestError(url, f"cannot be read: {' '.join(str(error).split())[:160]}") from error
        if len(content) != length:
            raise ManifestError(url, f"ends before byte {offset + length}", "the file that was indexed")
        return content

    def __reduce__(self) -> tuple[type[ShardContents], tuple[()]]:
        return ShardContents, ()


def _close_all(shards: OrderedDict[str, tuple[Any, ExitStack]]) -> None:
    while shards:
        shards.popitem()[1][1].close()
