"""Read untrusted arrays and weights: headers are checked against the file size before any allocation.

Errors as in untrusted.py. Nothing is unpickled.
"""

from __future__ import annotations

import io
import math
import os
import sys
import zipfile
import zlib
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from internvideo.untrusted import MAX_BYTES, PathLike, max_decompressed_bytes, open_regular, parse_json

MAX_HEADER_BYTES = 10_000
"""Maximum size of the header of a .npy file; numpy has the same limit."""


def read_npy(path: PathLike) -> Any:
    """Read a .npy file. Raises OSError, ValueError: not numeric, or a size that differs from its header."""
    with open_regular(path) as stream:
        return _read_array(stream, os.fstat(stream.fileno()).st_size)


def _read_array(stream: IO[bytes], size: int) -> Any:
    """Read an array from a file of `size` bytes."""
    try:
        version = npy.read_magic(stream)
        header_format = {(1, 0): (2, npy.read_array_header_1_0), (2, 0): (4, npy.read_array_header_2_0)}.get(version)
        if header_format is None:
            raise ValueError(f".npy version {version}; only 1.0 and 2.0 are supported")
        length = stream.read(header_format[0])
        header_size = int.from_bytes(length, "little")
        if header_size > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {header_size:,} bytes, {MAX_HEADER_BYTES:,} is the limit")
        shape, fortran, dtype = header_format[1](io.BytesIO(length + stream.read(header_size)))
    except Exception as error:  # numpy evaluates the header as Python: tokens, syntax, recursion, types
        raise ValueError(f"no .npy header ({' '.join(str(error).split())[:120]})") from None
    if dtype.kind not in "biufSU" or not dtype.itemsize:
        raise ValueError(f"an array of {dtype}; only numbers and texts are supported")
    if len(shape) > 8 or any(type(dim) is not int or dim < 0 for dim in shape):
        raise ValueError(f"the shape {str(shape)[:80]}")
    expected, actual = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if expected != actual:
        raise ValueError(f"{actual:,} bytes of data, but its header declares {expected:,} ({shape} {dtype})")
    if expected > MAX_BYTES:
        raise ValueError(f"{expected:,} bytes, {MAX_BYTES:,} is the limit")
    content = bytearray(expected)
    stream.readinto(content)  # type: ignore[attr-defined]  # every stream here is buffered
    values = np.ndarray(shape, dtype, content, order="F" if fortran else "C")
    if dtype.kind == "U" and expected and np.frombuffer(content, dtype.byteorder + "u4").max() > sys.maxunicode:
        raise ValueError("a text with invalid code points")
    return values


def read_npz(path: PathLike) -> dict[str, Any]:
    """Read a .npz file: name -> array. Raises OSError: absent. ValueError: no .npz file, or decompressed too large."""
    with open_regular(path) as stream:
        max_bytes = max_decompressed_bytes(os.fstat(stream.fileno()).st_size)
        try:
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
                if len({entry.filename for entry in entries}) != len(entries):
                    raise ValueError("a duplicate entry")
                if sum(entry.file_size for entry in entries) > max_bytes:
                    raise ValueError(f"unpacks to more than {max_bytes:,} bytes")
                return {entry.filename.removesuffix(".npy"): _read_entry(archive, entry) for entry in entries}
        # OSError: an offset before the start of the file.
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise ValueError(f"not a complete .npz file ({error})") from None


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    with archive.open(entry) as stream:
        content = stream.read(entry.file_size)
    return _read_array(io.BytesIO(content), len(content))


def safetensors_metadata(path: PathLike) -> dict[str, str]:
    """Read the metadata of a safetensors file from its header.

    Raises:
        OSError: absent, no regular file.
        ValueError: a header that is longer than the file or than 100 MB or is not JSON, metadata that are not text.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, 10**8):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = parse_json(stream.read(length))
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("a header whose metadata are not text")
    return metadata
