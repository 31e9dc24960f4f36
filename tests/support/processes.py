"""A process that takes itself for one of several, without the others: what a loader gives to it alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from internvideo import distributed


@contextmanager
def as_process(rank: int, world_size: int) -> Iterator[None]:
    """`distributed.rank()` and `distributed.world_size()` give these numbers; nothing can be collected."""
    with (
        patch.object(distributed, "rank", lambda: rank),
        patch.object(distributed, "world_size", lambda: world_size),
    ):
        yield
