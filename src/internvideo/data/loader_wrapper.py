"""What loaders over another loader share: they change its batches, not how many there are or how long they take."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar


class _Counted(Protocol):
    def __len__(self) -> int: ...

    @property
    def data_time(self) -> float: ...


L = TypeVar("L", bound=_Counted)


class WrappedLoader(Generic[L]):
    """As many batches as another loader, and its waiting."""

    def __init__(self, loader: L) -> None:
        self.loader = loader

    def __len__(self) -> int:
        """Batches per epoch on this process."""
        return len(self.loader)

    @property
    def data_time(self) -> float:
        """Seconds the consumer waited for data so far."""
        return self.loader.data_time
