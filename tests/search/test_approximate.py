"""An approximate index: exact scores, measured recall, newest state; built, built again and removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import in_process
import numpy as np
import pytest
import use_world

from internvideo import extras
from internvideo.errors import RunError
from internvideo.search import approximate
from internvideo.search.collection import Collection
from internvideo.search.finding import Answer, find
from internvideo.search.records import VideoRecord
from internvideo.search.segments import Floats

pytest.importorskip("faiss")
WINDOWS = 20


def add_videos(collection: Collection, numbers: range, center: Floats | None = None) -> None:
    """Videos of windows about a random direction each, or about a given one."""
    spans = np.column_stack([np.arange(WINDOWS), np.arange(WINDOWS) + 2.0, np.full(WINDOWS, 2.0), np.ones(WINDOWS)])
    for number in numbers:
        draw = np.random.default_rng(number)
        middle = draw.standard_normal(collection.store.dim) if center is None else center
        vectors = middle / np.linalg.norm(middle) + 0.1 * draw.standard_normal((WINDOWS, collection.store.dim))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        record = VideoRecord(0, f"/v/{number}.mp4", None, None, "", 21.0, 15.0, 64, 48, 0.0, "", 0, 0, spans)
        collection.store.add(record, vectors, {})


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    with Collection.create(tmp_path / "c", use_world.language()) as opened:
        add_videos(opened, range(200))
        yield opened


def both(collection: Collection, vector: Floats) -> tuple[Answer, Answer]:
    """(exact, approximate)."""
    snapshot = collection.store.snapshot()
    index = collection.candidates
    assert index is not None
    return find(collection.store, snapshot, vector), find(collection.store, snapshot, vector, candidates=index)


def test_what_it_finds_is_exact_and_its_recall_is_measured(collection: Collection) -> None:
    assert collection.candidates is None
    assert collection.facts()["index"] == "exact"
    facts = collection.build_index()
    assert (facts.windows, facts.lists) == (4000, 63)
    assert set(facts.recall) == {"clip", "text"}
    assert min(facts.recall.values()) >= approximate.LEAST_RECALL
    assert facts.probes < facts.lists, "no gain from reading every list"
    assert str(facts) == collection.facts()["index"]
    snapshot = collection.store.snapshot()
    hits = []
    for row in range(0, 4000, 97):
        vector = snapshot.vectors(np.array([row]))[0]
        exact, quick = both(collection, vector)
        assert quick.moments[0] == exact.moments[0]
        assert quick.windows == 4000
        hits.append(len({*quick.moments} & {*exact.moments}))
    assert np.mean(hits) > 6, "of ten; far ones of a random world share nothing with the query"
    with Collection.open(collection.store.folder, use_world.language()) as again:
        assert again.search("a dog", top=1).windows == 4000
        assert again.search("a dog", top=1, where='name = "7.mp4"').moments[0].path == "/v/7.mp4", "a filter is exact"


def test_fewer_lists_have_the_recall_that_is_told(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "LEAST_RECALL", 0.0)
    monkeypatch.setattr(approximate, "CANDIDATES", 10)
    facts = collection.build_index()
    assert facts.probes == 1
    assert facts.recall["text"] < 0.9, "random directions are not all in the nearest list"


def test_later_and_removed_videos(collection: Collection) -> None:
    collection.build_index()
    center = np.random.default_rng(12345).standard_normal(collection.store.dim).astype(np.float32)
    center /= np.linalg.norm(center)
    add_videos(collection, range(900, 902), center)
    exact, quick = both(collection, center)
    assert {moment.path for moment in quick.moments} >= {"/v/900.mp4", "/v/901.mp4"}
    assert quick.moments[:2] == exact.moments[:2]
    facts = approximate.stored_facts(collection.store)
    assert facts is not None
    assert not approximate.is_stale(collection.store, facts)
    gone = quick.moments[0]
    collection.store.remove([gone.video])
    assert gone.path not in {moment.path for moment in both(collection, center)[1].moments}
    collection.store.remove([video.id for video in collection.videos[:150]])
    assert approximate.is_stale(collection.store, facts)
    assert collection.store.compact() == 1
    exact, quick = both(collection, center)  # its rows lie elsewhere now: all are compared
    assert quick.moments == exact.moments
    collection.store.remove([video.id for video in collection.videos])
    collection.store.compact()
    assert collection.candidates is None, "numbers of segments are given again"


def test_index_builds_it_again_where_too_little_is_in_it(tmp_path: Path) -> None:
    folder, clips = tmp_path / "c", use_world.clips()
    encoder = use_world.language_folder()
    done = in_process.command("index", clips / "0.mp4", "-o", folder, "-e", encoder, "--index", "ivf")
    assert "index: ivf, 3 windows, 1 of 1 lists read, recall@10 1.000 of clip queries" in done.out, done.err
    done = in_process.command("index", clips, "-o", folder)
    assert "index: ivf, 12 windows" in done.out
    assert len(in_process.command("search", folder, "a dog", "--top", 4).out.splitlines()) == 4
    (folder / approximate.FILE).write_bytes(b"huh")
    assert "--index exact" in in_process.command("search", folder, "a dog").mistake()
    done = in_process.command("index", clips, "-o", folder, "--index", "exact")
    assert "index:" not in done.out
    assert not (folder / approximate.FILE).exists()
    assert in_process.command("search", folder, "a dog").code == 0


def test_a_full_disk_is_told(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    def full(*given: object) -> None:
        raise RuntimeError("write error: No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(RunError, match="free space"):
        collection.build_index()
    assert collection.candidates is None


def test_without_faiss(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    collection.build_index()
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(extras.ExtraError, match=r"internvideo\[ann\]"):
        collection.search("a dog")
    monkeypatch.undo()
    (collection.store.folder / approximate.FILE).unlink()
    with pytest.raises(RunError, match="--index exact"):
        collection.search("a dog")
