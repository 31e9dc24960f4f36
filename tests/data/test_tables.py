"""Manifests as Parquet and Arrow tables: the rows, checks and batches of JSONL, read lazily."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from grey_clips import Letters, grey_clips, loader, same

from internvideo.data.manifest import Manifest, read_manifest, write_manifest
from internvideo.data.tables import rows as table_rows
from internvideo.data.tables.rows import TableRows
from internvideo.errors import ManifestError

ROWS = [
    {"id": "a", "path": "a.mp4", "label": 2, "captions": ["one", "two"], "split": "train", "span": [0.5, 2.0]},
    {"id": "b", "path": "b.mp4", "label": 0, "split": "test", "fps": 25.0, "attributes": {"stride": "2"}},
    {"id": "c", "path": "c.mp4", "captions": ["three"], "split": "train", "group": "g"},
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def table(rows: list[dict[str, object]] = ROWS, **changed: pa.DataType) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    kinds = {"attributes": pa.map_(pa.string(), pa.string()), **changed}
    plain = [[row.get(name) for row in rows] for name in names]
    values = [
        [None if value is None else list(value.items()) for value in column] if name == "attributes" else column
        for name, column in zip(names, plain, strict=True)
    ]
    columns = [pa.array(column, kinds.get(name)) for name, column in zip(names, values, strict=True)]
    return pa.table(columns, names=names)


def written(folder: Path, content: pa.Table, name: str = "m.parquet") -> Path:
    (pq.write_table if name.endswith("parquet") else feather.write_feather)(content, str(folder / name))
    return folder / name


def jsonl(folder: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


@pytest.mark.parametrize("name", ["m.parquet", "m.arrow", "m.feather"])
@pytest.mark.parametrize("rows_a_batch", [2**16, 2])
def test_rows_are_those_of_jsonl(tmp_path: Path, name: str, rows_a_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "BATCH_ROWS", rows_a_batch)
    monkeypatch.setattr("internvideo.data.tables.reading.BATCH_ROWS", rows_a_batch)
    expected, found = read_manifest(jsonl(tmp_path)), read_manifest(written(tmp_path, table(), name))
    assert isinstance(found.rows, TableRows)
    assert tuple(found.rows) == expected.rows
    assert (found.classes, found.notes, found.root) == (expected.classes, expected.notes, expected.root)
    assert [row.id for row in found.rows[1:]] == ["b", "c"]
    assert found.rows[-1].group == "g"
    assert tuple(pickle.loads(pickle.dumps(found)).rows) == expected.rows
    train = found.subset("train")
    assert tuple(train.rows) == expected.subset("train").rows
    assert len({found.fingerprint, train.fingerprint, found.subset("test").fingerprint}) == 3
    assert found.fingerprint == read_manifest(tmp_path / name).fingerprint
    train.require("captions")
    for use in (lambda m: m.require("captions"), lambda m: m.subset("val"), lambda m: m.require("label")):
        with pytest.raises(ManifestError) as jsonl_says:
            use(expected)
        with pytest.raises(ManifestError) as table_says:
            use(found)
        assert str(table_says.value).replace(name, "m.jsonl") == str(jsonl_says.value)
    assert found.labeled


def test_names_of_classes_become_indices(tmp_path: Path) -> None:
    rows = [{**row, "label": name} for row, name in zip(ROWS, ("walk", "jump", None), strict=True)]
    found = read_manifest(written(tmp_path, table(rows)))
    assert found.classes == ("jump", "walk")
    assert [row.label for row in found.rows] == [1, 0, None]
    (tmp_path / "classes.txt").write_text("jump\nrun\nwalk\n")
    assert [row.label for row in read_manifest(tmp_path / "m.parquet").rows] == [2, 0, None]
    (tmp_path / "classes.txt").write_text("jump\nrun\n")
    with pytest.raises(ManifestError, match="'walk'"):
        read_manifest(tmp_path / "m.parquet")


def test_nested_columns_are_read_row_by_row(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "segments": [{"start": 0.0, "end": 1.0, "label": 1}]}, {**ROWS[1], "segments": []}]
    found = read_manifest(written(tmp_path, table(rows)))
    assert tuple(found.rows) == read_manifest(jsonl(tmp_path, rows)).rows
    rows[0]["segments"] = [{"start": 2.0, "end": 1.0, "label": 1}]
    with pytest.raises(ManifestError, match="start before end"):
        read_manifest(written(tmp_path, table(rows)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(capions=["x"]), r"unknown column 'capions' \(did you mean 'captions'"),
        (lambda row: row.update(id="a"), "row 2 id: 'a', which row 1 has too"),
        (lambda row: row.update(id=""), "row 2 id"),
        (lambda row: row.update(path="x\0.mp4"), "row 2 path"),
        (lambda row: row.update(path=None), "row 2 path"),
        (lambda row: row.update(label=-1), "row 2 label: -1"),
        (lambda row: row.update(label=10**6), "row 2 label: 1000000"),
        (lambda row: row.update(captions=["x", " \t"]), "row 2 captions"),
        (lambda row: row.update(captions=["x", None]), "row 2 captions"),
        (lambda row: row.update(span=[2.0, 1.0]), "row 2 span"),
        (lambda row: row.update(span=[1.0]), "row 2 span"),
        (lambda row: row.update(span=[1.0, float("nan")]), "row 2 span"),
        (lambda row: row.update(span=[1.0, float("inf")]), "row 2 span"),
        (lambda row: row.update(fps=0.0), "row 2 fps"),
        (lambda row: row.update(attributes={"stride": None}), "row 2 attributes"),
    ],
)
def test_what_jsonl_refuses_is_refused(
    tmp_path: Path, change: Callable[[dict[str, object]], None], message: str
) -> None:
    rows = [dict(row) for row in ROWS]
    change(rows[1])
    with pytest.raises(ManifestError, match=message):
        read_manifest(written(tmp_path, table(rows)))
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize(("column", "kind"), [("label", pa.bool_()), ("split", pa.int64()), ("fps", pa.string())])
def test_columns_of_another_type_are_refused(tmp_path: Path, column: str, kind: pa.DataType) -> None:
    rows = [{"id": "a", "path": "a.mp4", column: {"label": True, "split": 3, "fps": "25"}[column]}]
    with pytest.raises(ManifestError, match=f"column {column}"):
        read_manifest(written(tmp_path, table(rows, **{column: kind})))


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    whole = written(tmp_path, table()).read_bytes()
    for name in ("m.parquet", "m.arrow"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ManifestError, match="cannot be read as a table"):
            read_manifest(tmp_path / name)
    with pytest.raises(ManifestError, match="no column 'id'"):
        read_manifest(written(tmp_path, table([{"path": "a.mp4"}])))
    with pytest.raises(ManifestError, match="no sample"):
        read_manifest(written(tmp_path, table().slice(0, 0)))


def test_a_changed_table_is_checked_anew_and_its_old_copy_goes(tmp_path: Path, cache: Path) -> None:
    first = read_manifest(written(tmp_path, table()))
    second = read_manifest(written(tmp_path, table([*ROWS, {"id": "d", "path": "d.mp4"}])))
    assert (len(first.rows), len(second.rows)) == (3, 4)
    assert first.rows[2].id == "c"  # who has the old copy open keeps it
    assert len(list(cache.rglob("*.arrow"))) == 1


def test_batches_of_a_table_are_those_of_jsonl(tmp_path: Path) -> None:
    manifest = grey_clips(tmp_path)
    write_manifest(tmp_path / "m.jsonl", manifest.rows, manifest.classes)
    rows = [row.model_dump(exclude_defaults=True) for row in manifest.rows]
    read: list[Manifest] = [read_manifest(written(tmp_path, table(rows))), read_manifest(tmp_path / "m.jsonl")]
    batches = [list(loader(one, workers=2, tokenizer=Letters()).epoch(1)) for one in read]
    assert same(*batches)
