"""Pool of open videos of a process, so that the clips of one long video open it once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from internvideo.video.cache import Stamp, is_unchanged, stamp_of
from internvideo.video.conversion import Conversion, resolve_conversion
from internvideo.video.damage import resolve_policy
from internvideo.video.frame_folder import resolve_rate
from internvideo.video.reader import BUDGET, MAX_SECONDS, Video
from internvideo.video.torchcodec_backend import resolve_backend

MAX_IDLE = 4
"""Maximum number of idle open videos."""


class _Key(NamedTuple):
    stamp: Stamp | None
    backend: str
    short_side: int | None
    max_seconds: float
    budget: float
    damage: str
    conversion: Conversion
    fps: float | None


_lock = threading.Lock()
_idle: list[tuple[_Key, Video]] = []


def borrow(
    path: str | os.PathLike[str],
    *,
    short_side: int | None = None,
    max_seconds: float = MAX_SECONDS,
    budget: float = BUDGET,
    fps: float | None = None,
) -> AbstractContextManager[Video]:
    """Borrow an open `Video` of a local file or folder of frames; an idle one is reused if the file has not changed.

    The caller has it exclusively until the block ends; after an error it is closed. Arguments and errors are those of
    `Video`; it is opened immediately.
    """
    name = os.fspath(path)
    rate = resolve_rate(fps) if os.path.isdir(name) else None
    choices = resolve_policy(None), resolve_conversion(), rate
    key = _Key(stamp_of(name), resolve_backend(None, name), short_side, max_seconds, budget, *choices)
    video = _take_idle(key)
    if video is None:
        video = Video(
            path,
            short_side=short_side,
            max_seconds=max_seconds,
            budget=budget,
            backend=key.backend,
            fps=fps,
            stamp=key.stamp,
        )
        still = video.stamp is not None and is_unchanged(video.stamp)
        key = key._replace(stamp=video.stamp if still else None)
    return _borrowed(key, video)


@contextmanager
def _borrowed(key: _Key, video: Video) -> Iterator[Video]:
    try:
        yield video
    except BaseException:
        video.close()
        raise
    _return(key, video)


def _take_idle(key: _Key) -> Video | None:
    with _lock:
        for position, (other, _) in enumerate(_idle):
            if key.stamp is not None and other == key:
                return _idle.pop(position)[1]
    return None


def _return(key: _Key, video: Video) -> None:
    if key.stamp is None:
        video.close()
        return
    with _lock:
        for _, other in _idle:
            other.clear_cache()
        _idle.append((key, video))
        if len(_idle) > MAX_IDLE:
            _idle.pop(0)[1].close()


def _close_all() -> None:
    while _idle:
        _idle.pop()[1].close()


def _before_fork() -> None:
    # A forked process would share the file offset with this one.
    _lock.acquire()
    _close_all()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)
