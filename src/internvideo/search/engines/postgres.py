"""Keep the vectors of a collection in PostgreSQL with pgvector, which compares them: for more than one machine holds.

The folder of the collection keeps its records as ever, and the table of the database takes the place of its segment
files: a row is a window's id (segment and row in it) and its vector. Vectors are stored before the records are
committed, so that rows which no record names are the rest of an interrupted run. Without an index the database compares
all vectors; an HNSW index compares fewer, and how many of the ten nearest it finds is measured when it is built.

Vectors travel in the binary format of COPY, whose rows are all of one size: NumPy reads and writes them at once.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RecipeError, RunError
from internvideo.extras import require
from internvideo.search.segments import ROW_BITS, Floats, StorageType

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
COPIED = 4096
"""Rows that are sent at once."""
MOST_KEPT = 1000
"""Largest value of `hnsw.ef_search` that pgvector takes."""


def connect(address: str) -> Any:
    """Connect to a database. Raises ExtraError, RecipeError for an address with a password, RunError."""
    require("postgres", "a collection in PostgreSQL")
    import psycopg

    try:
        known = psycopg.conninfo.conninfo_to_dict(address)
        if known.get("password"):  # it would be stored in the collection
            raise RecipeError("database", "an address with a password", "one without", "PGPASSWORD or ~/.pgpass")
        return psycopg.connect(address, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        raise RunError(address, f"cannot be opened: {_first_line(error)}", "postgresql://USER@HOST/DATABASE") from error


def create_table(address: str, dim: int, storage: StorageType) -> str:
    """Make the table of a new collection; return its name. Raises as `connect`, RunError without pgvector."""
    table = f"windows_{uuid.uuid4().hex}"
    vectors = PostgresVectors(address, table, dim, storage)
    with vectors.connected() as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, embedding {vectors.type}({dim}) NOT NULL)")
        # Vectors do not compress; kept in the row, so that a scan does not look each of them up.
        connection.execute(f"ALTER TABLE {table} ALTER embedding SET STORAGE MAIN")
    vectors.close()
    return table


class PostgresVectors:
    """The table of a collection (`VectorStorage`). Several threads may use it.

    Args:
        address: of the database. table: made by `create_table`. dim, storage: of the vectors.
    """

    def __init__(self, address: str, table: str, dim: int, storage: StorageType) -> None:
        self.address, self.table, self.dim, self.storage = address, table, dim, storage
        self.type = "vector" if storage == "float32" else "halfvec"
        number = np.dtype(storage).newbyteorder(">")
        value = [("bytes", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("values", number, (dim,))]
        self._row = np.dtype([("fields", ">i2"), ("id_bytes", ">i4"), ("id", ">i8"), *value])
        self._lock = threading.RLock()
        self._connection: Any = None

    def close(self) -> None:
        """Close the connection; it is opened again when it is needed."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Commit everything in the block, or nothing of it. Raises RunError."""
        with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self.address)
            import psycopg

            try:
                with self._connection.transaction():
                    yield self._connection
            except psycopg.Error as error:
                hint = "is the database there, with pgvector 0.8 or later?"
                raise RunError(self.address, f"table {self.table}: {_first_line(error)}", "", hint) from error

    def append(self, segment: int, num_rows: int, vectors: Floats) -> None:
        """Insert rows of a segment in one transaction."""
        first = (segment << ROW_BITS) + num_rows
        with self.connected() as connection:
            connection.execute(f"DELETE FROM {self.table} WHERE id >= {first} AND id < {(segment + 1) << ROW_BITS}")
            with connection.cursor().copy(f"COPY {self.table} FROM STDIN (FORMAT BINARY)") as copy:
                copy.write(HEADER)
                for start in range(0, len(vectors), COPIED):
                    part = vectors[start : start + COPIED]
                    rows = np.zeros(len(part), self._row)
                    rows["fields"], rows["id_bytes"], rows["id"] = 2, 8, first + start + np.arange(len(part))
                    rows["bytes"], rows["dim"], rows["values"] = 4 + rows["values"].nbytes // len(part), self.dim, part
                    copy.write(rows.tobytes())
                copy.write(TRAILER)

    def open(self, segment: int, num_rows: int) -> Floats:
        """Return the rows of a segment, which are fetched when they are taken."""
        rows: Any = PostgresSegment(self, segment, num_rows)  # as much of an array as is used
        _ = rows[num_rows - 1 : num_rows]  # raises if the last one is not there
        opened: Floats = rows
        return opened

    def keep(self, known: Collection[int]) -> None:
        """Delete the rows of other segments."""
        others = ", ".join(str(segment) for segment in known) or "-1"
        with self.connected() as connection:
            connection.execute(f"DELETE FROM {self.table} WHERE id >> {ROW_BITS} NOT IN ({others})")

    def read(self, condition: str) -> tuple[NDArray[np.int64], Floats]:
        """Return the ids, ascending, and vectors (n, D) of rows. Raises RunError."""
        query = f"SELECT id, embedding FROM {self.table} WHERE {condition} ORDER BY id"
        with self.connected() as connection, connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)") as c:
            content = b"".join(c)[len(HEADER) : -len(TRAILER)]
        rows = np.frombuffer(content, self._row)
        return rows["id"].astype(np.int64), rows["values"].astype(self.storage)

    def nearest(
        self, vector: Floats, count: int, *, kept: int | None = None, among: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Return the ids with the largest products with a vector (D,), best first.

        Args:
            kept: candidates that a search of the index keeps; None compares all vectors.
            among: ids that count.
        """
        values: list[Any] = [str(np.asarray(vector, np.float32).tolist()), count]
        condition = ""
        if among is not None:
            condition, values = "WHERE id = ANY(%s)", [among.tolist(), *values]
        query = f"SELECT id FROM {self.table} {condition} ORDER BY embedding <#> %s::{self.type} LIMIT %s"
        with self.connected() as connection:
            if kept is None:
                connection.execute("SET LOCAL enable_indexscan = off")
            else:
                connection.execute(f"SET LOCAL hnsw.ef_search = {min(kept, MOST_KEPT)}")
                connection.execute("SET LOCAL hnsw.iterative_scan = relaxed_order")
            return np.array([id_ for (id_,) in connection.execute(query, values)], np.int64)

    def build_index(self) -> None:
        """Build an HNSW index, which later rows join. Raises RunError."""
        with self.connected() as connection:
            self._drop_index(connection)
            name, operator = f"{self.table}_hnsw", f"{self.type}_ip_ops"
            connection.execute(f"CREATE INDEX {name} ON {self.table} USING hnsw (embedding {operator})")

    def remove_index(self) -> None:
        """Drop the index: all vectors are compared again. Raises RunError."""
        with self.connected() as connection:
            self._drop_index(connection)

    def _drop_index(self, connection: Any) -> None:
        connection.execute(f"DROP INDEX IF EXISTS {self.table}_hnsw")


class PostgresSegment:
    """Rows of a segment, as much of an array (n, D) as is used: slices and arrays of indices are fetched."""

    def __init__(self, vectors: PostgresVectors, segment: int, num_rows: int) -> None:
        self._vectors, self._first = vectors, segment << ROW_BITS
        self.shape, self.dtype = (num_rows, vectors.dim), np.dtype(vectors.storage)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: slice | NDArray[np.integer[Any]]) -> Floats:
        if isinstance(wanted, slice):
            start, stop, _ = wanted.indices(len(self))
            rows = np.arange(start, stop)
            condition = f"id >= {self._first + start} AND id < {self._first + stop}"
        else:
            rows = np.asarray(wanted)
            condition = f"id = ANY('{{{','.join(str(self._first + row) for row in np.unique(rows).tolist())}}}')"
        if not len(rows):
            return np.empty((0, self.shape[1]), self.dtype)
        ids, values = self._vectors.read(condition)
        places = np.searchsorted(ids, self._first + rows)
        if not len(ids) or not np.array_equal(ids[np.minimum(places, len(ids) - 1)], self._first + rows):
            found = f"table {self._vectors.table} lacks rows of the collection"
            raise RunError(self._vectors.address, found, "", "restore the database, or index again")
        return values[places]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
