"""Read a manifest table: validate it once, and keep the validated copy as an Arrow file that processes memory-map."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from internvideo import untrusted
from internvideo.data.tables.rows import BATCH_ROWS, TableRows
from internvideo.errors import ManifestError, RunError, shown
from internvideo.extras import require
from internvideo.storage import write_text

VERSION = 1
"""Version of the checks and of the copy's format."""
SUFFIXES = (".parquet", ".arrow", ".feather")


@dataclass(frozen=True)
class Table:
    """A manifest table: lazily read rows, or, if it has nested columns, unvalidated dictionaries.

    Attributes:
        rows: validated samples, None with nested columns. raw: (row number, fields) to be validated instead.
        classes: names in order. used: class indices of the rows.
    """

    rows: TableRows | None
    raw: Iterator[tuple[int, dict[str, Any]]]
    classes: tuple[str, ...] = ()
    used: frozenset[int] = frozenset()


def read_table(source: Path, classes: Sequence[str] | None) -> Table:
    """Read a Parquet or Arrow file (IPC file format, Feather 2).

    A table of the columns id, path, span, label, captions, group, split, fps and attributes is validated and copied to
    the cache folder (`cache_folder`) as a file that can be memory-mapped; later starts, and other processes of the
    machine, open that copy as long as the source does not change.

    Raises:
        ManifestError: unreadable, an unknown column, an invalid value. ExtraError: pyarrow is not installed.
        RunError: the copy cannot be written.
    """
    require("parquet", source)
    from internvideo.data.tables.checks import NESTED, check_columns

    with _batches_of(source) as (schema, batches):
        check_columns(source, schema)
        if NESTED & set(schema.names):
            return Table(None, _raw_rows(list(batches)))
    status = source.stat()
    given = None if classes is None else [*classes]
    version = (VERSION, str(source.resolve()), status.st_size, status.st_mtime_ns, given)
    name = hashlib.sha256(str(source.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    name += "-" + hashlib.sha256(json.dumps(version).encode()).hexdigest()[:16]
    copy = cache_folder() / f"{name}.arrow"
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(copy.with_suffix(".lock")):
            report = _read_report(copy)
            if report is None:
                report = _write_copy(source, copy, classes)
    except OSError as error:
        hint = "set XDG_CACHE_HOME to a folder with enough space for the table"
        raise RunError(str(copy), f"cannot be written: {error.strerror or error}", "", hint) from error
    return Table(TableRows(copy, report["digest"]), iter(()), tuple(report["classes"]), frozenset(report["used"]))


def cache_folder() -> Path:
    """Return the folder of validated copies: XDG_CACHE_HOME/internvideo/manifests, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "internvideo" / "manifests"


@contextmanager
def _batches_of(source: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Open a file; yield its schema and record batches of at most `BATCH_ROWS` rows. Raises ManifestError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if source.suffix == ".parquet":
            with pq.ParquetFile(source) as file:
                yield file.schema_arrow, file.iter_batches(BATCH_ROWS)
        else:
            with pa.memory_map(str(source)) as content, pa.ipc.open_file(content) as file:
                yield file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
    except (pa.ArrowException, OSError) as error:
        found = f"cannot be read as a table: {shown(' '.join(str(error).split()))[:160]}"
        raise ManifestError(source, found, "a whole Parquet or Arrow file") from error


def _raw_rows(batches: list[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            fields = {name: value for name, value in row.items() if value is not None}
            if isinstance(fields.get("attributes"), list):
                fields["attributes"] = dict(fields["attributes"])
            yield number, {name: _without_nulls(value) for name, value in fields.items()}


def _without_nulls(value: Any) -> Any:
    """Remove null fields from records, because a table has all fields in all rows."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _write_copy(source: Path, copy: Path, classes: Sequence[str] | None) -> dict[str, Any]:
    """Validate a table; write its copy, and a report beside it."""
    import pyarrow as pa

    from internvideo.data.tables.checks import as_stored, check_values

    fixed = classes is not None
    names = list(classes) if classes is not None else _class_names(source)
    class_index = None if names is None else {name: index for index, name in enumerate(names)}
    temporary = copy.with_suffix(f".{os.getpid()}.part")
    used, total, writer = set[int](), 0, None
    pending: list[Any] = []
    try:
        with _batches_of(source) as (_, batches):
            for raw in _regrouped(batches):
                named = zip(raw.schema.names, raw.columns, strict=True)
                columns = [as_stored(source, name, column, class_index) for name, column in named]
                batch = pa.record_batch(columns, names=raw.schema.names)
                check_values(source, batch, total, len(names) if names is not None else None)
                if "label" in batch.schema.names:
                    used |= set(batch.column("label").unique().to_pylist()) - {None}
                pending.append(batch.column("id"))
                if writer is None:
                    writer = pa.ipc.new_file(str(temporary), batch.schema)
                writer.write_batch(batch)
                total += batch.num_rows
        if writer is None or not total:
            raise ManifestError(source, "no sample in it", "at least one row")
        writer.close()
        writer = None
        if names is None:
            names = [str(index) for index in range(max(used, default=-1) + 1)]
        with ThreadPoolExecutor(1) as beside:  # both take seconds for millions of rows, and release the GIL
            unique = beside.submit(_check_unique, source, pending)
            with open(temporary, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256")
            unique.result()
        digest.update(json.dumps(names).encode())
        report = {"digest": digest.hexdigest(), "classes": names, "used": sorted(used), "rows": total, "fixed": fixed}
        for old in copy.parent.glob(f"{copy.stem.split('-')[0]}-*.arrow"):
            old.with_suffix(".json").unlink(missing_ok=True)
            old.unlink(missing_ok=True)  # a copy of an earlier version; processes that have it open keep it
        os.replace(temporary, copy)
        write_text(copy.with_suffix(".json"), json.dumps(report))
        return report
    finally:
        if writer is not None:
            writer.close()
        temporary.unlink(missing_ok=True)


def _regrouped(batches: Iterator[Any]) -> Iterator[Any]:
    """Regroup rows into batches of exactly `BATCH_ROWS`; the last one may be shorter."""
    import pyarrow as pa

    buffer: list[Any] = []
    count = 0
    for batch in batches:
        if not buffer and batch.num_rows == BATCH_ROWS:
            yield batch
            continue
        buffer.append(batch)
        count += batch.num_rows
        while count >= BATCH_ROWS:
            table = pa.Table.from_batches(buffer)
            yield _one_batch(table.slice(0, BATCH_ROWS))
            rest = table.slice(BATCH_ROWS)
            buffer, count = rest.to_batches(), rest.num_rows
    if count:
        yield _one_batch(pa.Table.from_batches(buffer))


def _one_batch(table: Any) -> Any:
    import pyarrow as pa

    columns = [column.combine_chunks() for column in table.unify_dictionaries().columns]
    whole = [column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns]
    return pa.record_batch(whole, names=table.schema.names)


def _class_names(source: Path) -> list[str] | None:
    """Return the sorted class names of a table whose labels are names; None if they are numbers or missing."""
    import pyarrow as pa

    names: set[str] = set()
    with _batches_of(source) as (schema, batches):
        if "label" not in schema.names:
            return None
        form = schema.field("label").type
        form = form.value_type if pa.types.is_dictionary(form) else form
        if not (pa.types.is_string(form) or pa.types.is_large_string(form)):
            return None
        for batch in batches:
            names |= set(batch.column("label").unique().to_pylist()) - {None}
    if any(not name.strip() for name in names):
        raise ManifestError(f"{source} column label", "''", "a class name that is not empty")
    return sorted(names)


def _check_unique(source: Path, ids: list[Any]) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pa.chunked_array(ids)
    if pc.count_distinct(column).as_py() == len(column):
        return
    counts = pc.value_counts(column)
    duplicate = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
    rows = np.flatnonzero(pc.equal(column, duplicate).to_numpy())[:2] + 1
    found = f"'{shown(duplicate)}', which row {rows[0]} has too"
    raise ManifestError(f"{source} row {rows[1]} id", found, "unique ids")


def _read_report(copy: Path) -> dict[str, Any] | None:
    """Read the report of a copy; None if there is no complete copy."""
    try:
        report = untrusted.read_json(copy.with_suffix(".json"))
        return report if copy.is_file() and report["rows"] > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this machine during the block."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes may make the copy twice, and the later one stays
        yield
        return
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
