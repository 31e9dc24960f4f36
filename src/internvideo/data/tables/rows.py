"""Samples of a validated table, created on access from its memory-mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from internvideo.data.sample import Sample

BATCH_ROWS = 2**16
"""Rows per record batch of a validated table; the last one may have fewer."""


class TableRows(Sequence[Sample]):
    """The rows of a validated table, or a selection of them.

    All processes of a machine share the pages of the file; a pickled object opens it again.

    Args:
        path: Arrow file that `read_table` wrote. digest: fingerprint of its rows and classes.
        chosen: (n,) indices of the selected rows; None for all.
    """

    def __init__(self, path: Path, digest: str, chosen: NDArray[np.int64] | None = None) -> None:
        self.path, self.digest, self.chosen = path, digest, chosen
        self._open()

    def _open(self) -> None:
        import pyarrow as pa

        self._file = pa.ipc.open_file(pa.memory_map(str(self.path)))
        self._batches: dict[int, Any] = {}
        self._total = sum(batch.num_rows for batch in self._parts())

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
        """Return the sample at an index, or the rows of a slice."""
        if isinstance(index, slice):
            return self._choose(np.arange(len(self), dtype=np.int64)[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        number, offset = divmod(index if self.chosen is None else int(self.chosen[index]), BATCH_ROWS)
        return _sample(self._batch(number).slice(offset, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self)):
            yield self[index]

    def fingerprint(self) -> str:
        """Hash of the rows, their order and the class names, 16 hex digits."""
        digest = hashlib.sha256(self.digest.encode())
        if self.chosen is not None:
            digest.update(self.chosen.tobytes())
        return digest.hexdigest()[:16]

    def with_split(self, splits: Collection[str]) -> TableRows:
        """Select the rows of these splits."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(sorted(splits), pa.string())
        return self._choose(np.flatnonzero(self._mask("split", lambda column: pc.is_in(column, value_set=wanted))))

    def splits(self) -> list[str]:
        """List the splits of all rows, sorted."""
        batches = [batch for batch in self._parts() if "split" in batch.schema.names]
        return sorted({split for batch in batches for split in batch.column("split").unique().to_pylist()} - {None})

    def without(self, field: str) -> NDArray[np.int64]:
        """Return the indices of rows whose field is empty."""
        import pyarrow.compute as pc

        def empty(column: Any) -> Any:
            if field != "captions":
                return column.is_null()
            return pc.fill_null(pc.equal(pc.list_value_length(column), 0), True)

        return np.flatnonzero(self._mask(field, empty, absent=True))

    def _mask(self, field: str, test: Any, *, absent: bool = False) -> NDArray[np.bool_]:
        """Apply `test` to a column, (len,) bool; `absent` is the value if the table has no such column."""
        parts = []
        for batch in self._parts():
            known = field in batch.schema.names
            values = test(batch.column(field)).to_numpy(zero_copy_only=False) if known else None
            parts.append(np.full(batch.num_rows, absent) if values is None else np.asarray(values, dtype=bool))
        mask = np.concatenate(parts)
        return mask if self.chosen is None else mask[self.chosen]

    def _parts(self) -> Iterator[Any]:
        return (self._batch(number) for number in range(self._file.num_record_batches))

    def _choose(self, indices: NDArray[np.intp]) -> TableRows:
        if len(indices) == len(self):
            return self
        chosen = indices.astype(np.int64) if self.chosen is None else self.chosen[indices]
        return TableRows(self.path, self.digest, chosen)

    def _batch(self, number: int) -> Any:
        if number not in self._batches:
            self._batches[number] = self._file.get_batch(number)  # pointers into the memory map
        return self._batches[number]


def _sample(fields: dict[str, Any]) -> Sample:
    """Create the sample of a row; its values are validated already."""
    values = {name: value for name, value in fields.items() if value is not None}
    if "attributes" in values:
        values["attributes"] = dict(values["attributes"])
    return Sample.model_validate(values)
