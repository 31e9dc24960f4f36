"""Samples of a checked table, made when they are asked for; the table stays in its memory-mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from internvideo.data.sample import Sample

BATCH_ROWS = 2**16
"""Rows of every record batch of a checked table but the last."""


class TableRows(Sequence[Sample]):
    """The rows of a checked table, or some of them.

    All processes of a machine share the pages of the file; a process that gets the rows opens it anew.

    Args:
        path: Arrow file that `checked_copy` wrote. digest: fingerprint of its rows and classes.
        chosen: (n,) numbers of the rows that are meant; None for all.
    """

    def __init__(self, path: Path, digest: str, chosen: NDArray[np.int64] | None = None) -> None:
        self.path, self.digest, self.chosen = path, digest, chosen
        self._open()

    def _open(self) -> None:
        import pyarrow as pa

        self._file = pa.ipc.open_file(pa.memory_map(str(self.path)))
        self._batches: dict[int, Any] = {}
        self._total = sum(self._batch(number).num_rows for number in range(self._file.num_record_batches))

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "digest": self.digest, "chosen": self.chosen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self._total if self.chosen is None else len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> TableRows: ...
    def __getitem__(self, index: int | slice) -> Sample | TableRows:
        """The sample at a place, or those of a slice."""
        if isinstance(index, slice):
            return self._choose(np.arange(len(self), dtype=np.int64)[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        number, place = divmod(index if self.chosen is None else int(self.chosen[index]), BATCH_ROWS)
        return _sample(self._batch(number).slice(place, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self)):
            yield self[index]

    def fingerprint(self) -> str:
        """16 hex digits that change with the rows, their order and the class names."""
        digest = hashlib.sha256(self.digest.encode())
        if self.chosen is not None:
            digest.update(self.chosen.tobytes())
        return digest.hexdigest()[:16]

    def with_split(self, splits: Collection[str]) -> TableRows:
        """The rows whose split is one of these."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(sorted(splits), pa.string())
        return self._choose(np.flatnonzero(self._mask("split", lambda column: pc.is_in(column, value_set=wanted))))

    def splits(self) -> list[str]:
        """The names of splits that there are."""
        found: set[str] = set()
        for _, batch in self._parts():
            if "split" in batch.schema.names:
                found |= set(batch.column("split").unique().to_pylist()) - {None}
        return sorted(found)

    def without(self, field: str) -> NDArray[np.int64]:
        """Places of the rows that have nothing in a field."""
        import pyarrow.compute as pc

        def empty(column: Any) -> Any:
            if field != "captions":
                return column.is_null()
            return pc.fill_null(pc.equal(pc.list_value_length(column), 0), True)

        return np.flatnonzero(self._mask(field, empty, absent=True))

    def _mask(self, field: str, test: Any, *, absent: bool = False) -> NDArray[np.bool_]:
        """(len,) bool, `test` of a column; `absent` where the table has no such column."""
        parts = [
            np.asarray(test(batch.column(field)).to_numpy(zero_copy_only=False), dtype=bool)
            if field in batch.schema.names
            else np.full(batch.num_rows, absent)
            for _, batch in self._parts()
        ]
        mask = np.concatenate(parts)
        return mask if self.chosen is None else mask[self.chosen]

    def _parts(self) -> Iterator[tuple[int, Any]]:
        for number in range(self._file.num_record_batches):
            yield number, self._batch(number)

    def _choose(self, places: NDArray[np.intp]) -> TableRows:
        if len(places) == len(self):
            return self
        chosen = places.astype(np.int64) if self.chosen is None else self.chosen[places]
        return TableRows(self.path, self.digest, chosen)

    def _batch(self, number: int) -> Any:
        if number not in self._batches:
            self._batches[number] = self._file.get_batch(number)  # pointers into the memory map
        return self._batches[number]


def _sample(fields: dict[str, Any]) -> Sample:
    """A row of a table; values were checked when the table was."""
    told = {name: value for name, value in fields.items() if value is not None}
    if "attributes" in told:
        told["attributes"] = dict(told["attributes"])
    return Sample.model_validate(told)
