"""Base class of loaders that wrap another loader: same length and data time, other batches."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar


class _Counted(Protocol):
    def __len__(self) -> int: ...

    @property
    def data_time(self) -> float: ...


L = TypeVar("L", bound=_Counted)


class WrappedLoader(Generic[L]):
    """Forward length and data time of the wrapped loader."""

    def __init__(self, loader: L) -> None:
        self.loader = loader

    def __len__(self) -> int:
        """Number of batches per epoch on this process."""
        return len(self.loader)

    @property
    def data_time(self) -> float:
        """Seconds spent waiting for batches so far."""
        return self.loader.data_time
