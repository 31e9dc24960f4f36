"""Readers that stay open between two requests of a process: the clips of a film open it once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from internvideo.video.cache import Stamp, stamp_of, stands_still
from internvideo.video.conversion import Conversion, chosen_conversion
from internvideo.video.damage import chosen_policy
from internvideo.video.frame_folder import chosen_rate
from internvideo.video.reader import BUDGET, MAX_SECONDS, Video
from internvideo.video.torchcodec_backend import chosen

RESTING = 4
"""Readers that may rest at a time."""


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
_resting: list[tuple[_Key, Video]] = []


def lent(
    path: str | os.PathLike[str],
    *,
    short_side: int | None = None,
    max_seconds: float = MAX_SECONDS,
    budget: float = BUDGET,
    fps: float | None = None,
) -> AbstractContextManager[Video]:
    """An open `Video` of a local file or folder of frames: that of an earlier request where it has not changed since.

    It belongs to the caller alone until the block ends; after an error it is closed. Arguments and errors are those of
    `Video`, and it is opened at once.
    """
    name = os.fspath(path)
    rate = chosen_rate(fps) if os.path.isdir(name) else None
    choices = chosen_policy(None), chosen_conversion(), rate
    key = _Key(stamp_of(name), chosen(None, name), short_side, max_seconds, budget, *choices)
    video = _taken(key)
    if video is None:
        video = Video(path, short_side=short_side, max_seconds=max_seconds, budget=budget, backend=key.backend, fps=fps)
        still = video.stamp is not None and stands_still(video.stamp)
        key = key._replace(stamp=video.stamp if still else None)
    return _until_given_back(key, video)


@contextmanager
def _until_given_back(key: _Key, video: Video) -> Iterator[Video]:
    try:
        yield video
    except BaseException:
        video.close()
        raise
    _give_back(key, video)


def _taken(key: _Key) -> Video | None:
    with _lock:
        for place, (other, _) in enumerate(_resting):
            if key.stamp is not None and other == key:
                return _resting.pop(place)[1]
    return None


def _give_back(key: _Key, video: Video) -> None:
    if key.stamp is None:
        video.close()
        return
    with _lock:
        for _, other in _resting:
            other.forget()
        _resting.append((key, video))
        if len(_resting) > RESTING:
            _resting.pop(0)[1].close()


def close_resting() -> None:
    """Close all readers that rest."""
    with _lock:
        _close_all()


def _close_all() -> None:
    while _resting:
        _resting.pop()[1].close()


def _before_fork() -> None:
    # A copy of the process would share the place in the file with this one.
    _lock.acquire()
    _close_all()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)
