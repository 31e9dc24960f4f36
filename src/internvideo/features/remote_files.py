"""List, identify and fetch videos at addresses that fsspec opens (s3://, gs://, hf:// ...)."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from internvideo.data.lists import VIDEO_EXTENSIONS
from internvideo.errors import VideoError
from internvideo.extras import require

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)", re.DOTALL)  # a `Path` has one slash of the two


def address_of(given: str | os.PathLike[str]) -> str | None:
    """Return the address of a remote file, None for a local path."""
    match = _ADDRESS.fullmatch(os.fspath(given))
    return None if match is None or os.path.lexists(given) else f"{match[1]}://{match[2]}"


def place_of(given: str | os.PathLike[str]) -> str:
    """Return the address of a remote file, or the absolute path of a local one."""
    return address_of(given) or os.path.abspath(given)


def videos_at(address: str) -> list[str]:
    """Return the addresses of a file, of the videos in a folder and below it, or of those that a glob matches.

    Raises:
        VideoError: nothing there, or it cannot be reached. ExtraError: fsspec is not installed.
    """
    with _reached(address) as files:
        if any(mark in address for mark in "*?["):
            found = files.glob(address)
        else:
            found = files.find(address) if files.isdir(address) else [address] if files.exists(address) else []
    scheme = address.partition("://")[0]
    named = (name if "://" in name else f"{scheme}://{name.lstrip('/')}" for name in found)
    videos = sorted(name for name in named if _is_video(name) or name == address)
    if not videos:
        raise VideoError(address, "no video there", "files ending in " + " ".join(sorted(VIDEO_EXTENSIONS)))
    return videos


def state_of(address: str) -> str:
    """Return the store's key of a file's version, which changes with its content. Raises VideoError."""
    with _reached(address) as files:
        return str(files.ukey(address))


@contextmanager
def fetched(path: str) -> Iterator[str]:
    """Yield a local path of a video: itself, or a temporary copy of a remote file. Raises VideoError."""
    if address_of(path) is None:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=Path(path).suffix) as copy:
        with _reached(path) as files, files.open(path, "rb") as content:
            shutil.copyfileobj(content, copy, 2**20)
        copy.flush()
        try:
            yield copy.name
        except VideoError as error:  # name the address, not the temporary file
            raise VideoError(path, error.found, error.expected, error.hint) from error


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS


@contextmanager
def _reached(address: str) -> Iterator[Any]:
    """Yield the file system of an address; convert its errors to VideoErrors."""
    require("cloud", address)
    import fsspec

    try:
        yield fsspec.core.url_to_fs(address)[0]
    except (OSError, ValueError, ImportError) as error:
        found = f"cannot be reached: {' '.join(str(error).split())[:160] or type(error).__name__}"
        raise VideoError(address, found) from error
