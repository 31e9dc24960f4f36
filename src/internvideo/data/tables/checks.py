"""Validate a manifest table column by column, with the same checks as `Sample` for a row of JSONL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from internvideo.data.sample import MAX_CLASSES, Sample, did_you_mean
from internvideo.errors import ManifestError, shown

NESTED = {"segments", "boxes", "qa", "choices"}
"""Columns of lists of records; tables with one of them are validated row by row, as JSONL."""


TEXT = pa.large_string()
FORMS = {
    "id": TEXT,
    "path": TEXT,
    "span": pa.list_(pa.float64()),
    "label": pa.int64(),
    "captions": pa.list_(TEXT),
    "group": TEXT,
    "split": TEXT,
    "fps": pa.float64(),
    "attributes": pa.map_(pa.string(), pa.string()),
}
"""Column -> its type in a validated table."""


def check_columns(source: Path, schema: pa.Schema) -> None:
    """Raise ManifestError for a table without id or path, with a duplicate column or an unknown one."""
    known = list(Sample.model_fields)
    for name in schema.names:
        if name not in known:
            raise ManifestError(source, f"unknown column '{shown(name)}'{did_you_mean(name, known)}", ", ".join(known))
        if schema.names.count(name) > 1:
            raise ManifestError(source, f"two columns '{name}'", "each column once")
    for name in ("id", "path"):
        if name not in schema.names:
            raise ManifestError(source, f"no column '{name}'", f"the columns {', '.join(schema.names)}")


def as_stored(source: Path, name: str, column: Any, classes: dict[str, int] | None) -> Any:
    """Convert a column to its stored type; class names become indices. Raises ManifestError: another type."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if name == "label" and _is_text(column.type):
        return _class_indices(source, column, classes)
    form, number = FORMS[name], pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    fits = {
        "id": _is_text(column.type) or pa.types.is_integer(column.type),
        "label": number,
        "fps": number,
        "span": _is_list(column.type) and not pa.types.is_boolean(column.type.value_type),
        "captions": _is_list(column.type) and _is_text(column.type.value_type),
        "attributes": pa.types.is_map(column.type) or pa.types.is_struct(column.type),
    }.get(name, _is_text(column.type))
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), form)
    if fits and pa.types.is_struct(column.type):
        return _attributes(source, column)
    try:
        if not fits:
            raise pa.ArrowInvalid("")
        return column.cast(form)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # values that do not convert; no such conversion
        raise ManifestError(f"{source} column {name}", f"values of type {column.type}", str(form)) from None


def _is_text(form: pa.DataType) -> bool:
    return bool(pa.types.is_string(form) or pa.types.is_large_string(form) or pa.types.is_string_view(form))


def _is_list(form: pa.DataType) -> bool:
    return bool(pa.types.is_list(form) or pa.types.is_large_list(form) or pa.types.is_fixed_size_list(form))


def _class_indices(source: Path, column: Any, classes: dict[str, int] | None) -> Any:
    assert classes is not None  # names were collected or given
    index = pc.index_in(column, value_set=pa.array(list(classes), column.type))
    unknown = pc.and_(pc.is_null(index), pc.is_valid(column))
    if pc.any(unknown).as_py():
        name = column.filter(unknown)[0].as_py()
        found = f"'{shown(name)}'"
        expected = f"one of the {len(classes)} class names{did_you_mean(name, classes)}"
        raise ManifestError(f"{source} column label", found, expected)
    return index.cast(pa.int64())


def _attributes(source: Path, column: Any) -> Any:
    rows = [row and [pair for pair in row.items() if pair[1] is not None] for row in column.to_pylist()]
    try:
        return pa.array(rows, FORMS["attributes"])
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise ManifestError(f"{source} column attributes", f"values of type {column.type}", "texts") from None


def check_values(source: Path, batch: Any, first_row: int, classes: int | None) -> None:
    """Check the values of a stored record batch.

    Args:
        source: for messages. first_row: index of the batch's first row. classes: number of classes, None if unknown.

    Raises ManifestError: an invalid value, with the row, counted from 1, and the column.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ManifestError(source, f"damaged: {' '.join(str(error).split())[:120]}", "a whole table") from None
    num_classes = MAX_CLASSES if classes is None else classes
    tests: dict[str, tuple[Callable[[Any], Any], str]] = {
        "id": (lambda c: pc.fill_null(pc.equal(pc.binary_length(c), 0), True), "a text"),
        "path": (
            lambda c: pc.fill_null(pc.or_(pc.equal(pc.binary_length(c), 0), pc.match_substring(c, "\0")), True),
            "a path without a NUL character",
        ),
        "span": (_wrong_spans, "[start, end] in seconds from 0, start before end"),
        "label": (
            lambda c: pc.or_(pc.less(c, 0), pc.greater_equal(c, num_classes)),
            f"a class index 0 to {num_classes - 1}",
        ),
        "captions": (_blank_captions, "texts that are not blank"),
        "fps": (lambda c: pc.invert(pc.and_(pc.greater(c, 0.0), pc.less_equal(c, 1000.0))), "above 0, up to 1000"),
        "attributes": (_wrong_attributes, "texts"),
    }
    for name in batch.schema.names:
        if name in tests:
            column = batch.column(name)
            wrong = pc.fill_null(tests[name][0](column), False)
            index = pc.index(wrong, True).as_py() if len(column) else -1
            if index >= 0:
                found = shown(repr(column[index].as_py()))
                where = f"{source} row {first_row + index + 1} {name}"
                raise ManifestError(where, found if len(found) <= 80 else found[:77] + "...", tests[name][1])


def _wrong_spans(column: Any) -> Any:
    two = pc.fill_null(pc.equal(pc.list_value_length(column), 2), True)
    if not pc.all(two).as_py():
        return pc.invert(two)
    whole = column.drop_null()
    start, end = pc.list_element(whole, 0), pc.list_element(whole, 1)
    right = pc.and_(pc.and_(pc.greater_equal(start, 0.0), pc.less(start, end)), pc.is_finite(end))
    wrong = pc.invert(pc.fill_null(right, False))
    return pc.replace_with_mask(pa.array([False] * len(column)), column.is_valid(), wrong)


def _blank_captions(column: Any) -> Any:
    texts = pc.list_flatten(column)
    blank = pc.fill_null(pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts)), True)
    return _any_in_list(column, blank)


def _any_in_list(column: Any, wrong: Any) -> Any:
    """Return which lists have a wrong entry."""
    if not pc.any(wrong).as_py():
        return pa.nulls(len(column), pa.bool_())
    parents = pc.list_parent_indices(column).filter(wrong)
    return pc.is_in(pa.array(range(len(column)), pa.int64()), value_set=parents.cast(pa.int64()))


def _wrong_attributes(column: Any) -> Any:
    missing = [row is not None and any(value is None for _, value in row) for row in column.to_pylist()]
    return pa.array(missing, pa.bool_())
