"""Collections in files and in a database: both hold to the same tests, and answer the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import in_process
import numpy as np
import postgres_server
import pytest
import use_world

from internvideo.errors import RecipeError, RunError
from internvideo.search import approximate, segments
from internvideo.search.collection import Collection
from internvideo.search.engines.postgres import PostgresVectors
from internvideo.search.finding import Answer
from internvideo.search.query import Query
from internvideo.search.records import VideoRecord
from internvideo.search.segments import SegmentFiles, VectorStorage
from internvideo.search.store import Store

KINDS = ("files", "postgres")
QUERIES = ("a red circle falls", "a dog", "something blue turns")


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "files" else postgres_server.new_database()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return Path(shutil.copytree(use_world.clips(5), tmp_path / "clips"))


def unit(count: int, dim: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def record(name: str, count: int) -> VideoRecord:
    windows = np.column_stack([np.arange(count), np.arange(count) + 2.0, np.full(count, 2.0), np.ones(count)])
    return VideoRecord(0, f"/{name}", None, None, name, count + 1.0, 25.0, 64, 48, 0.0, "", 0, 0, windows)


# ---------------------------------------------------------------------------------------------------------- segments


@pytest.fixture(params=[(kind, storage) for kind in KINDS for storage in segments.STORAGE_TYPES], ids="-".join)
def vectors(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorStorage]:
    kind, storage = request.param
    if kind == "files":
        yield SegmentFiles(tmp_path, 24, storage)
        return
    from internvideo.search.engines.postgres import create_table

    address = postgres_server.new_database()
    made = PostgresVectors(address, create_table(address, 24, storage), 24, storage)
    yield made
    made.close()


def test_rows_come_back_as_they_were_stored(vectors: VectorStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internvideo.search.engines.postgres.COPIED", 16)
    rows = unit(50, 24)
    vectors.append(3, 0, rows[:40])
    vectors.append(3, 40, rows[40:])
    vectors.append(4, 0, rows[:5])
    opened = vectors.open(3, 50)
    expected = rows.astype(opened.dtype)
    assert (len(opened), opened.shape) == (50, (50, 24))
    np.testing.assert_array_equal(opened[:], expected)
    np.testing.assert_array_equal(opened[7:31], expected[7:31])
    np.testing.assert_array_equal(opened[np.array([9, 2, 2, 49])], expected[[9, 2, 2, 49]])
    assert opened[50:60].shape == (0, 24)
    np.testing.assert_allclose(
        segments.dot_products([opened, vectors.open(4, 5)], rows[:3]),
        rows[:3] @ np.concatenate([expected, expected[:5]]).astype(np.float32).T,
        atol=1e-6,
    )


def test_rows_of_an_interrupted_run_are_dropped(vectors: VectorStorage) -> None:
    vectors.append(0, 0, unit(5, 24))
    vectors.append(0, 5, unit(8, 24, seed=1))  # never committed
    vectors.append(0, 5, unit(2, 24, seed=2))
    np.testing.assert_allclose(vectors.open(0, 7)[5:], unit(2, 24, seed=2), atol=1e-3)
    with pytest.raises(RunError):
        vectors.open(0, 8)
    vectors.append(1, 0, unit(3, 24))
    vectors.keep([1])
    with pytest.raises(RunError):
        vectors.open(0, 7)
    assert len(vectors.open(1, 3)[:]) == 3


# -------------------------------------------------------------------------------------------------------- collections


def test_indexing_searching_filtering_removing(tmp_path: Path, clips: Path, database: str | None) -> None:
    model = use_world.language()
    with (
        Collection.create(tmp_path / "c", model, scales=(1.0, 2.0), database=database) as collection,
        Collection.create(tmp_path / "files", model, scales=(1.0, 2.0)) as plain,
    ):
        assert (collection.database, collection.facts()["database"]) == (database, database)
        for one in (collection, plain):
            report = one.add([clips])
            assert (report.read, report.vectors) == (5, 35)

        def same(one: Answer, other: Answer) -> None:
            assert (one.windows, one.nothing_fits, len(one.moments)) == (
                other.windows, other.nothing_fits, len(other.moments),
            )  # fmt: skip
            for got, expected in zip((*one.moments, *one.nearest), (*other.moments, *other.nearest), strict=True):
                assert (got.path, got.start, got.end) == (expected.path, expected.start, expected.end)
                assert (got.score, got.p_value) == pytest.approx((expected.score, expected.p_value), abs=2e-3)

        def all_same() -> None:
            for query in QUERIES:
                for limits in ({}, {"threshold": 0.2}, {"where": 'name in ("1.mp4", "3.mp4") and start < 1.2'}):
                    same(collection.search(query, top=4, **limits), plain.search(query, top=4, **limits))  # type: ignore[arg-type]
            (empty,) = collection.search_many(["a dog"], where='name = "none"')
            assert (empty.windows, empty.nothing_fits) == (0, True)

        all_same()
        assert collection.near_duplicates(least=0.2)[0].one[0] == plain.near_duplicates(least=0.2)[0].one[0]
        assert [odd.one for odd in collection.odd_windows()] == [odd.one for odd in plain.odd_windows()]
        (clips / "0.mp4").unlink()
        shutil.copy(use_world.clips(6) / "5.mp4", clips / "9.mp4")
        for one in (collection, plain):
            report = one.add([clips])
            assert (report.read, report.resumed, len(report.removed)) == (1, 4, 1)
        all_same()


def test_removed_videos_are_compacted_away(
    tmp_path: Path, database: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = use_world.language()
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 12 * model.embed_dim * 4)
    store = Store.create(tmp_path, model, database=database)
    dim = model.embed_dim
    ids = [store.add(record(f"{n}.mp4", 5), unit(5, dim, seed=n), {}) for n in range(5)]
    assert [len(part) for part in store.snapshot().segments] == [10, 10, 5]
    store.remove([ids[0], ids[3]])
    assert store.compact() == 0
    store.remove([ids[1]])
    assert store.compact() == 1
    now = store.snapshot()
    assert [video.path for video in now.videos] == ["/2.mp4", "/4.mp4"]
    for index, seed in enumerate((2, 4)):
        np.testing.assert_array_equal(now.vectors(now.rows(index)), unit(5, dim, seed=seed))
    store.close()


def test_a_crash_before_the_commit_loses_nothing(tmp_path: Path, clips: Path, database: str | None) -> None:
    """The vectors of a video are stored, its record is not: the next run replaces them."""
    with Collection.create(tmp_path / "c", use_world.language(), database=database) as collection:
        dim = collection.store.dim
        collection.store.vectors.append(0, 0, unit(7, dim))
        collection.add([clips])
        snapshot = collection.store.snapshot()
        assert len(snapshot.video_index) == 15
        best = collection.search("a dog", top=5).moments
        assert best[0].score == pytest.approx(
            float(snapshot.scores(collection.encode(Query("a dog"))[None]).max()), abs=1e-5
        )


def test_the_index_of_a_database_is_measured_and_kept_up_to_date(tmp_path: Path) -> None:
    database = postgres_server.new_database()
    with Collection.create(tmp_path / "c", use_world.language(), database=database) as collection:
        dim = collection.store.dim
        for number in range(60):
            middle = unit(1, dim, seed=number) + 0.1 * unit(20, dim, seed=1000 + number)
            spread = (middle / np.linalg.norm(middle, axis=1, keepdims=True)).astype(np.float32)
            collection.store.add(record(f"{number}.mp4", 20), spread, {})
        exact = collection.search("a dog", top=5)
        facts = collection.build_index()
        assert str(facts).startswith("hnsw, 1,200 windows, ")
        assert str(facts) == collection.facts()["index"]
        assert min(facts.recall.values()) >= approximate.LEAST_RECALL
        assert collection.search("a dog", top=5) == exact
        vectors = collection.store.vectors
        assert isinstance(vectors, PostgresVectors)
        with vectors.connected() as connection:
            connection.execute("SET LOCAL enable_seqscan = off")
            plan = "\n".join(
                line
                for (line,) in connection.execute(
                    f"EXPLAIN SELECT id FROM {vectors.table} ORDER BY embedding <#> %s::vector LIMIT 5",
                    [str(unit(1, dim)[0].tolist())],
                )
            )
        assert "_hnsw" in plan
        collection.store.add(record("new.mp4", 1), collection.encode(Query("a dog"))[None], {})
        assert collection.search("a dog", top=1).moments[0].path == "/new.mp4"
        assert not approximate.is_stale(collection.store, facts)
        collection.remove_index()
        assert collection.facts()["index"] == "exact"
        assert collection.search("a dog", top=1).moments[0].path == "/new.mp4"


def test_the_command(tmp_path: Path, clips: Path) -> None:
    database = postgres_server.new_database()
    words = ("index", clips, "-o", tmp_path / "c", "-e", use_world.language_folder(), "--storage", "float16")
    done = in_process.command(*words, "--database", database, "--index", "hnsw")
    assert done.code == 0, done.err
    assert "index: hnsw, 15 windows" in done.out
    assert not [*(tmp_path / "c").glob("segment-*")]
    assert len(in_process.command("search", tmp_path / "c", "a dog", "--top", 3).out.splitlines()) == 3
    assert "hnsw or exact" in in_process.command(*words, "--index", "ivf").mistake()
    assert in_process.command(*words).code == 0, "its database is remembered"
    assert "ivf or exact" in in_process.command(*words[:3], tmp_path / "d", *words[4:], "--index", "hnsw").mistake()


def test_databases_that_cannot_be_used(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    model = use_world.language()
    with pytest.raises(RecipeError, match="PGPASSWORD"):
        Collection.create(tmp_path / "a", model, database="postgresql://me:secret@localhost/x")
    with pytest.raises(RunError, match="cannot be opened"):
        Collection.create(tmp_path / "b", model, database="postgresql://me@localhost:1/x")
    Collection.create(tmp_path / "c", model).close()
    with pytest.raises(RunError, match="has database None"):
        Collection.create(tmp_path / "c", model, database="postgresql://me@localhost:1/x")
