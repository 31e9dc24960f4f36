"""Locate the tensors of a torch checkpoint in its file: zip format, TorchScript archive or legacy format.

All sizes and offsets in the file are checked against its size before use. Nothing is decompressed, and the code
inside a TorchScript archive is not read. Standard library only (see untrusted_pickle.py).
"""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from internvideo.untrusted_pickle import (
    ITEM_BYTES,
    STORAGES,
    Global,
    Machine,
    RefusedError,
    Storage,
    is_byte_count,
    printable,
    refuse_damaged,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_ENTRIES = 200_000
MAX_COMPRESSION_RATIO = 200
CHUNK_BYTES = 1 << 22


@dataclass
class Checkpoint:
    """Contents of a checkpoint file.

    Attributes:
        layout: "zip", "torchscript" or "legacy".
        content: the decoded structure; tensors are records.
        offsets: key of a storage -> byte offset in the file.
        crc32: key of a storage -> CRC-32 of its bytes; {} for the legacy format, which has none.
        globals: names of the globals that the pickle refers to.
    """

    layout: str
    content: object = None
    offsets: dict[str, int] = field(default_factory=dict)
    crc32: dict[str, int] = field(default_factory=dict)
    globals: set[str] = field(default_factory=set)


def read_checkpoint(file: BinaryIO, size: int) -> Checkpoint:
    """Read the structure of a checkpoint file, without the data of its tensors.

    Args:
        file: seekable.
        size: of the file in bytes.

    Raises RefusedError: not a torch checkpoint, a damaged one, or a pickle that refers to other globals than allowed.
    """
    head = file.read(4)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file, size)
    if head[:1] == b"\x80":
        return _read_legacy(file, size)
    found = "is not a torch checkpoint" if size else "is empty"
    raise RefusedError(found, "a .pth, .pt, .bin or .ckpt file of torch.save")


def read_chunks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """Yield `size` bytes of the file from offset `start`, in chunks."""
    file.seek(start)
    while size:
        chunk = file.read(min(size, CHUNK_BYTES))
        if not chunk:
            refuse_damaged("the file ends too early")
        size -= len(chunk)
        yield chunk


@dataclass
class _Storages:
    """Resolve persistent ids of a pickle: ("storage", type, key, device, number of elements)."""

    sizes: dict[str, int] | None
    by_key: dict[str, Storage] = field(default_factory=dict)

    def __call__(self, persistent_id: object) -> Storage:
        if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6) or persistent_id[0] != "storage":
            raise RefusedError("the pickle refers to something outside that is no storage", "tensors")
        _, kind, key, _, numel, *view = persistent_id
        known = isinstance(kind, Global) and kind.name in STORAGES and isinstance(key, str)
        if not known or not is_byte_count(numel):
            raise RefusedError("a storage without a known type, key or size", ", ".join(STORAGES))
        if view and view[0] is not None:
            raise RefusedError("a storage is a view of another one", "one file of tensors, saved by torch 0.4 or later")
        dtype = STORAGES[kind.name]
        storage = Storage(key, dtype, numel * (ITEM_BYTES[dtype] if dtype else 1))
        if self.by_key.setdefault(key, storage) != storage:
            raise RefusedError(f"the storage {printable(key)} has two types or sizes")
        if self.sizes is not None and self.sizes.get(key) != storage.size:
            found = f"{self.sizes[key]} bytes" if key in self.sizes else "absent"
            raise RefusedError(f"the storage {printable(key)} should have {storage.size} bytes and is {found}")
        return storage


def _read_zip(file: BinaryIO, size: int) -> Checkpoint:
    entries = _list_entries(file, size)
    roots = [name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise RefusedError(f"is a zip file with {len(roots)} pickles", "one NAME/data.pkl, as torch.save writes it")
    root = roots[0]

    def content(name: str) -> bytes:
        start, length, crc32 = entries[name]
        data = b"".join(read_chunks(file, start, length))
        if zlib.crc32(data) != crc32:
            refuse_damaged(f"{printable(name)} is damaged")
        return data

    if f"{root}byteorder" in entries and content(f"{root}byteorder") != b"little":
        raise RefusedError("was written on a big-endian machine", "little-endian tensors")
    checkpoint = Checkpoint("torchscript" if f"{root}constants.pkl" in entries else "zip")
    storage_entries = {
        name.removeprefix(f"{root}data/"): entry for name, entry in entries.items() if f"{root}data/" in name
    }
    checkpoint.offsets = {key: start for key, (start, _, _) in storage_entries.items()}
    checkpoint.crc32 = {key: crc32 for key, (_, _, crc32) in storage_entries.items()}
    storages = _Storages({key: length for key, (_, length, _) in storage_entries.items()})
    machine = Machine(io.BytesIO(content(f"{root}data.pkl")), storages, checkpoint.layout == "torchscript")
    checkpoint.content, checkpoint.globals = machine.run(), machine.globals
    return checkpoint


def _list_entries(file: BinaryIO, size: int) -> dict[str, tuple[int, int, int]]:
    """Check the zip directory; return name -> (offset, size, CRC-32) of all uncompressed entries. RefusedError."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos, directory = archive.infolist(), archive.start_dir
    # NotImplementedError: features that Python's zipfile lacks, such as zip versions above 6.3.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        refuse_damaged(f"its zip directory is damaged ({printable(str(error))})")
    if len(infos) > MAX_ENTRIES:
        raise RefusedError(f"its zip directory has {len(infos)} entries", f"at most {MAX_ENTRIES}")
    if infos and min(info.header_offset for info in infos) > 0:
        raise RefusedError("other bytes come before its first zip entry", "a file as torch.save wrote it")
    entries: dict[str, tuple[int, int, int]] = {}
    names: set[str] = set()
    min_offset = 0  # of the next entry
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.orig_filename
        shown = printable(name)
        if name in names or name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise RefusedError(f"its zip entry {shown} has an unsafe or repeated name")
        names.add(name)
        start = _content_start(file, info, size)
        if info.header_offset < min_offset or start + info.compress_size > min(size, directory):
            raise RefusedError(f"its zip entry {shown} overlaps another one or lies about its size")
        min_offset = start + info.compress_size
        if info.file_size > MAX_COMPRESSION_RATIO * info.compress_size:
            found = f"its zip entry {shown} unpacks to {info.file_size} bytes from {info.compress_size}: a bomb"
            raise RefusedError(found)
        if info.compress_type == zipfile.ZIP_STORED:
            if info.file_size != info.compress_size:
                raise RefusedError(f"its zip entry {shown} lies about its size")
            entries[name] = (start, info.file_size, info.CRC)
        elif name.count("/") == 1 or "/data/" in name:
            expected = "uncompressed tensors and pickles"
            raise RefusedError(f"its zip entry {shown} is compressed", expected)
    return entries


def _content_start(file: BinaryIO, info: zipfile.ZipInfo, size: int) -> int:
    """Return the offset of the bytes of an entry from its local header, which must agree with the directory."""
    if not 0 <= info.header_offset <= size - 30:
        raise RefusedError(f"its zip entry {printable(info.orig_filename)} lies outside the file")
    file.seek(info.header_offset)
    head = file.read(30)
    if head[:4] != b"PK\x03\x04":
        refuse_damaged("a zip entry does not begin where the directory says")
    _, _, flags, method, *_, name_length, extra_length = struct.unpack("<4s5H3I2H", head)
    encoding = "utf-8" if flags & 0x800 else "cp437"
    name = file.read(name_length)
    if flags & 0x1 or method != info.compress_type or name != info.orig_filename.encode(encoding, "replace"):
        raise RefusedError(f"its zip entry {printable(info.orig_filename)} is encrypted or has two headers that differ")
    return info.header_offset + 30 + len(name) + int(extra_length)


@dataclass(frozen=True)
class _BoundedReader:
    """File object for the unpickler that limits each read to the size of the file."""

    file: BinaryIO
    size: int

    def read(self, size: int, /) -> bytes:
        return self.file.read(min(size, self.size))

    def readline(self) -> bytes:
        return self.file.readline()

    def tell(self) -> int:
        return self.file.tell()


def _read_legacy(file: BinaryIO, size: int) -> Checkpoint:
    checkpoint = Checkpoint("legacy")
    stream = _BoundedReader(file, size)
    storages = _Storages(None)

    def read_value() -> object:
        machine = Machine(stream, storages)
        value = machine.run()
        checkpoint.globals |= machine.globals
        return value

    if read_value() != LEGACY_MAGIC:
        raise RefusedError("is a pickle, but no torch checkpoint", "a file of torch.save")
    protocol, system = read_value(), read_value()
    if protocol != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise RefusedError("is of an unknown version or of a big-endian machine", "protocol 1001, little-endian")
    checkpoint.content = read_value()
    keys = read_value()
    if not isinstance(keys, list) or set(map(str, keys)) != set(storages.by_key) or len(keys) != len(storages.by_key):
        refuse_damaged("its list of storages does not match its tensors")
    offset = file.tell()
    for key, storage in zip(keys, (storages.by_key[key] for key in keys), strict=True):
        numel = int.from_bytes(b"".join(itertools.islice(read_chunks(file, offset, 8), 8)), "little")
        end = offset + 8 + storage.size
        if numel * (ITEM_BYTES[storage.dtype] if storage.dtype else 1) != storage.size or end > size:
            raise RefusedError(f"the storage {printable(key)} should have {storage.size} bytes, which the file has not")
        checkpoint.offsets[key] = offset + 8
        offset = end
        file.seek(offset)
    if offset != size:
        refuse_damaged(f"{size - offset} bytes after the last storage")
    return checkpoint
