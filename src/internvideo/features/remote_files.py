"""List, identify and download videos at URLs that fsspec opens (s3://, gs://, hf:// ...)."""

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

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)", re.DOTALL)  # a `Path` has one slash of the two


def url_of(given: str | os.PathLike[str]) -> str | None:
    """Return the URL of a remote file, None for a local path."""
    match = _URL.fullmatch(os.fspath(given))
    return None if match is None or os.path.lexists(given) else f"{match[1]}://{match[2]}"


def url_or_path(given: str | os.PathLike[str]) -> str:
    """Return the URL of a remote file, or the absolute path of a local one."""
    return url_of(given) or os.path.abspath(given)


def list_videos(url: str) -> list[str]:
    """Return the URLs of the videos at a URL: a file, a folder with its subfolders, or a glob.

    Raises:
        VideoError: nothing there, or it cannot be reached. ExtraError: fsspec is not installed.
    """
    with _open_filesystem(url) as files:
        if any(wildcard in url for wildcard in "*?["):
            names = files.glob(url)
        else:
            names = files.find(url) if files.isdir(url) else [url] if files.exists(url) else []
    scheme = url.partition("://")[0]
    urls = (name if "://" in name else f"{scheme}://{name.lstrip('/')}" for name in names)
    videos = sorted(name for name in urls if _is_video(name) or name == url)
    if not videos:
        raise VideoError(url, "no video there", "files ending in " + " ".join(sorted(VIDEO_EXTENSIONS)))
    return videos


def version_key(url: str) -> str:
    """Return the file system's key of a file's version (ETag, modification time ...). Raises VideoError."""
    with _open_filesystem(url) as files:
        return str(files.ukey(url))


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Yield a local path of a video: itself, or a temporary copy of a remote file. Raises VideoError."""
    if url_of(path) is None:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=Path(path).suffix) as copy:
        with _open_filesystem(path) as files, files.open(path, "rb") as content:
            shutil.copyfileobj(content, copy, 2**20)
        copy.flush()
        try:
            yield copy.name
        except VideoError as error:  # name the URL, not the temporary file
            raise VideoError(path, error.found, error.expected, error.hint) from error


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS


@contextmanager
def _open_filesystem(url: str) -> Iterator[Any]:
    """Yield the file system of a URL; convert its errors to VideoErrors."""
    require("cloud", url)
    import fsspec

    try:
        yield fsspec.core.url_to_fs(url)[0]
    except (OSError, ValueError, ImportError) as error:
        found = f"cannot be reached: {' '.join(str(error).split())[:160] or type(error).__name__}"
        raise VideoError(url, found) from error
