"""Collections: exact products, what is committed, incremental indexing, kill -9, models that do not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import forked
import in_process
import killed
import numpy as np
import odd_video
import pytest
import torch
import use_world

from internvideo.data.preprocessing import Span
from internvideo.errors import RecipeError, RunError, VideoError
from internvideo.inference.video_model import VideoModel
from internvideo.search import segments
from internvideo.search.collection import Collection
from internvideo.search.indexing import IndexSettings
from internvideo.search.records import VideoRecord
from internvideo.search.store import Store


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return use_world.language()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of four clips of 3 s that a test may change."""
    return Path(shutil.copytree(use_world.clips(), tmp_path / "clips"))


def record(name: str, count: int) -> VideoRecord:
    windows = np.column_stack([np.arange(count), np.arange(count) + 2.0, np.full(count, 2.0), np.ones(count)])
    return VideoRecord(0, f"/{name}", None, None, name, count + 1.0, 25.0, 64, 48, 0.0, "", 0, 0, windows)


def unit(count: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("storage", segments.STORAGE_TYPES)
def test_products_are_exact_over_segments_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: segments.StorageType
) -> None:
    monkeypatch.setattr(segments, "BLOCK_BYTES", 4000)
    parts = []
    for index, count in enumerate((301, 77)):
        rows = unit(count, seed=index)
        segments.append(tmp_path / f"{index}", 0, rows[:50], storage)
        segments.append(tmp_path / f"{index}", 50, rows[50:], storage)
        parts.append(segments.open_segment(tmp_path / f"{index}", count, 24, storage))
        np.testing.assert_array_equal(parts[-1], rows.astype(storage))
    whole = np.concatenate(parts).astype(np.float32)
    memory = segments.ProductMemory()
    for queries in (unit(1, seed=9), unit(33, seed=9), unit(5, seed=9)):  # held memory too small, then too large
        np.testing.assert_allclose(segments.dot_products(parts, queries), queries @ whole.T, atol=1e-6)
        held = segments.dot_products(parts, queries, memory)
        np.testing.assert_array_equal(held, segments.dot_products(parts, queries))
        skipped = np.arange(len(whole)) % 3 == 1
        products = segments.dot_products(parts, queries)
        products[:, skipped] = -np.inf
        for count in (1, 20, 400):
            found = segments.nearest(parts, queries, count, skipped)
            expected = [np.argsort(-own, kind="stable")[: min(count, (~skipped).sum())] for own in products]
            same = [np.array_equal(one, other) for one, other in zip(found, expected, strict=True)]
            assert np.mean(same) > 0.9, "blocks round in another order"
            for own, one, other in zip(products, found, expected, strict=True):
                np.testing.assert_allclose(own[one], own[other], atol=1e-6)


def test_the_largest_are_those_of_a_full_sort() -> None:
    draw = np.random.default_rng(0)
    many = draw.standard_normal(9001).astype(np.float32)
    many[draw.permutation(9001)[:8000]] = -np.inf
    for scores in (
        draw.integers(0, 40, 1000).astype(np.float32),
        draw.integers(0, 4000, 9001).astype(np.float32),
        many,
    ):
        for count in (1, 7, 30, 300, 1000, 2000):
            expected = np.argsort(-scores, kind="stable")[:count]
            np.testing.assert_array_equal(segments.largest(scores, count), expected)
    assert len(segments.largest(scores[:0], 5)) == 0


def test_a_torn_append_is_cut_off(tmp_path: Path) -> None:
    """Bytes of a run that was killed between the file and the commit are not part of the collection."""
    path = tmp_path / "s"
    segments.append(path, 0, unit(5), "float32")
    segments.append(path, 5, unit(3, seed=1), "float32")  # never committed
    with path.open("ab") as stream:
        stream.write(b"half a row")
    segments.append(path, 5, unit(2, seed=2), "float32")
    found = segments.open_segment(path, 7, 24, "float32")
    np.testing.assert_array_equal(found, np.concatenate([unit(5), unit(2, seed=2)]))
    assert path.stat().st_size == 7 * 24 * 4
    with pytest.raises(RunError, match="index again"):
        segments.append(path, 9, unit(1), "float32")
    with pytest.raises(RunError, match="shorter than the database says"):
        segments.open_segment(path, 9, 24, "float32")


def test_removed_videos_are_compacted_away(tmp_path: Path, model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 12 * 24 * 4)
    store = Store.create(tmp_path, model)
    ids = [store.add(record(f"{n}.mp4", 5), unit(5, seed=n), {}) for n in range(5)]
    before = store.snapshot()
    assert [len(part) for part in before.segments] == [10, 10, 5]
    store.remove([ids[0], ids[3]])
    assert store.compact() == 0, "not more than half is gone"
    store.remove([ids[1]])
    assert store.compact() == 1
    now = store.snapshot()
    assert [video.path for video in now.videos] == ["/2.mp4", "/4.mp4"]
    for index, seed in enumerate((2, 4)):
        np.testing.assert_array_equal(now.vectors(now.rows(index)), unit(5, seed=seed))
    scores = now.scores(unit(1))[0]
    assert np.isneginf(scores).sum() == 5, "the removed half of a segment"
    np.testing.assert_array_equal(before.vectors(before.rows(0)), unit(5, seed=0), "an old snapshot stays readable")
    assert sorted(path.name for path in tmp_path.glob("*.bin")) == ["segment-00001.bin", "segment-00002.bin"]


def test_every_window_is_the_model_s_answer(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    with Collection.create(tmp_path / "c", model, scales=(1.0, 2.0)) as collection:
        report = collection.add([clips])
        snapshot = collection.store.snapshot()
        assert (report.read, report.vectors, report.unreadable) == (4, 4 * 7, [])
        assert report.video_seconds == pytest.approx(12)
        for index, video in enumerate(snapshot.videos):
            rows = snapshot.rows(index)
            windows = snapshot.windows[rows]
            assert windows[:, :3].tolist() == [
                *([start, start + 1, 1] for start in (0, 0.5, 1, 1.5, 2)), [0, 2, 2], [1, 3, 2],
            ]  # fmt: skip
            expected = model.encode_video([Span(video.path, *window[:2]) for window in windows], normalize=False)
            np.testing.assert_allclose(snapshot.vectors(rows) * windows[:, 3:], expected, atol=1e-4)
            picture = collection.store.records.picture(video.id, 1.4)
            assert picture is not None
            assert picture.startswith(b"\xff\xd8")


def test_only_what_changed_is_read_again(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    collection = Collection.create(tmp_path / "c", model)
    collection.add([clips])
    before = {video.path: video.id for video in collection.videos}
    os.utime(clips / "1.mp4", (1, 1))
    (clips / "2.mp4").unlink()
    (clips / "3.mp4").write_bytes(b"broken now")
    (clips / "4.mp4").write_bytes(b"never a video")
    (clips / "deep").mkdir()
    shutil.copy(clips / "0.mp4", clips / "deep" / "5.mp4")
    report = collection.add([clips])
    names = [Path(path).name for path in report.removed]
    assert (report.read, report.resumed, [Path(path).name for path in report.changed]) == (2, 1, ["1.mp4"])
    assert sorted(names) == ["2.mp4", "3.mp4"]
    assert sorted(Path(path).name for path in collection.unreadable) == ["3.mp4", "4.mp4"]
    after = {video.path: video.id for video in collection.videos}
    assert sorted(Path(path).name for path in after) == ["0.mp4", "1.mp4", "5.mp4"]
    assert after[str(clips / "0.mp4")] == before[str(clips / "0.mp4")]
    assert after[str(clips / "1.mp4")] not in before.values()
    shutil.rmtree(clips)
    with pytest.raises(VideoError, match="no such file or folder"):
        collection.add([clips])
    assert len(collection.videos) == 3, "a folder that is not there (a disk that is not mounted) removes nothing"


def test_other_folders_stay(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    other = shutil.copytree(clips, tmp_path / "other")
    collection = Collection.create(tmp_path / "c", model)
    collection.add([clips])
    report = collection.add([other])
    assert (report.removed, len(collection.videos)) == ([], 8)
    assert collection.roots == (str(clips), str(other))


def test_damage_keeps_what_was_read(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    places = odd_video.sample_places(clips / "1.mp4")
    odd_video.patched(clips / "1.mp4", clips / "4.mp4", {places[30][0] + 8: b"\xff" * (places[30][1] - 8)})
    collection = Collection.create(tmp_path / "c", model, scales=(0.5,))
    report = collection.add([clips])
    assert [Path(failure.path).name for failure in report.truncated] == ["4.mp4"]
    assert collection.add([clips]).truncated == report.truncated, "told again"


def test_another_model_and_other_settings_are_refused(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    Collection.create(tmp_path / "c", model).add([clips])
    classifier = use_world.classifier()
    for call in (
        lambda: Collection.open(tmp_path / "c", classifier),
        lambda: Collection.create(tmp_path / "c", classifier),
    ):
        with pytest.raises(RunError, match="was made with model internvideo-mm-b16-caption"):
            call()
    preprocessing = model.preprocessing.with_settings(resize_backend="opencv")
    half = VideoModel(model.name, model.module, preprocessing=preprocessing)
    with pytest.raises(RunError, match="was made with preprocessing"):
        Collection.open(tmp_path / "c", half)
    with pytest.raises(RunError, match=r"has scales \[2.0, 8.0, 30.0\], not \[1.0\]"):
        Collection.create(tmp_path / "c", model, scales=(1,))
    with pytest.raises(RunError, match="has storage float32, not float16"):
        Collection.create(tmp_path / "c", model, storage="float16")
    for wrong in ((), (2, 1), (0,), (float("inf"),)):
        with pytest.raises(RecipeError, match="increasing numbers of seconds"):
            Collection.create(tmp_path / "d", model, scales=wrong)
    with pytest.raises(RunError, match="is not a collection"):
        Collection.open(tmp_path / "nothing")


def test_readers_see_whole_videos_while_another_thread_writes(tmp_path: Path, model: VideoModel) -> None:
    writer = Store.create(tmp_path, model)
    reader = Store(tmp_path)
    stop, wrong, states = threading.Event(), list[str](), set[int]()

    def read() -> None:
        while not stop.is_set():
            snapshot = reader.snapshot()
            states.add(len(snapshot.videos))
            for index, video in enumerate(snapshot.videos):
                if not np.array_equal(snapshot.vectors(snapshot.rows(index)), unit(6, seed=int(video.path[1:]))):
                    wrong.append(video.path)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(40):
        writer.add(record(f"{number}", 6), unit(6, seed=number), {})
        if number % 3 == 2:
            writer.remove([writer.snapshot().videos[0].id])
            writer.compact(0.2)
    while len(reader.snapshot().videos) != len(writer.snapshot().videos):
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert wrong == []
    assert len(states) > 1


def rows(folder: Path) -> dict[str, list[list[float]]]:
    """Windows and vectors of each video."""
    snapshot = Store(folder).snapshot()
    return {
        video.path: np.column_stack([snapshot.windows[snapshot.rows(index)], snapshot.vectors(snapshot.rows(index))])
        .round(4)
        .tolist()
        for index, video in enumerate(snapshot.videos)
    }


def test_kill_9_at_any_moment_loses_nothing(tmp_path: Path, clips: Path) -> None:
    """Killed after each of the first videos, before and after its commit; then the same rows as without."""
    encoder = use_world.language_folder()
    words = ["index", str(clips), "-e", str(encoder), "-o"]
    assert in_process.command(*words, tmp_path / "whole").code == 0
    for number, stop in enumerate(("before", "after", "before")):
        process = forked.fork(killed.index, words, tmp_path / "killed", stop, 2 if number == 0 else 1)
        assert process.ended() == -signal.SIGKILL
        assert len(rows(tmp_path / "killed")) == (1, 2, 2)[number]
    done = in_process.command(*words, tmp_path / "killed")
    assert "read: 4 of 4 videos (2 new, 2 as before)" in done.out
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def num_committed(folder: Path) -> int:
    """Number of videos in the database of a collection that may not be there yet."""
    try:
        with closing(sqlite3.connect(f"file:{folder / 'collection.sqlite'}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM videos").fetchone()[0])
    except sqlite3.OperationalError:  # no file, no table
        return 0


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    """Killed thirty times wherever it is; what is left is always a whole collection of the first videos."""
    clips, encoder, draw = use_world.clips(6), use_world.language_folder(), np.random.default_rng(0)
    words = ("index", clips, "-e", encoder, "-o")
    assert forked.fork(in_process.command, *words, tmp_path / "whole").told().code == 0
    began = time.monotonic()
    assert forked.fork(in_process.command, *words, tmp_path / "again").told().code == 0
    took = time.monotonic() - began
    whole, stages, unopened = rows(tmp_path / "whole"), set[int](), list[str]()
    folders = [tmp_path / f"killed{number}" for number in range(10)]
    for kill, folder in enumerate(folder for folder in folders for _ in range(3)):
        running = forked.fork(in_process.command, *words, folder)
        end = time.monotonic() + draw.uniform(0.0, 0.8) * took
        if kill % 2:  # the videos take a small part of the time: half of the runs end as soon as so many are committed
            count, end = int(draw.integers(1, 6)), end + took
            while num_committed(folder) < count and time.monotonic() < end:
                time.sleep(0.0005)
        else:
            time.sleep(max(end - time.monotonic(), 0.0))
        running.process.kill()
        running.process.join()
        if (folder / "collection.sqlite").is_file():
            try:
                left = rows(folder)
            except RunError as error:
                unopened.append(str(error))
                continue
            stages.add(len(left))
            assert left == {path: whole[path] for path in left}
    assert len(stages) > 2, f"not killed at different moments: {stages}"
    assert all("version 0" in error for error in unopened), "killed before the tables were committed"
    for folder in folders:
        assert in_process.command(*words, folder).code == 0
        assert rows(folder) == whole
        with Collection.open(folder) as one, Collection.open(tmp_path / "whole") as other:
            for kind, null in one.null.items():
                np.testing.assert_allclose(null.maxima, other.null[kind].maxima, atol=1e-4)


def test_what_follows_from_the_videos_is_made_after_a_kill_too(
    tmp_path: Path, clips: Path, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ends between the commit of its videos and the calibration; the next one finds nothing new to read."""
    (tmp_path / "captions.jsonl").write_text(
        "".join(f'{{"id": "{n}", "path": "clips/{n}.mp4", "captions": ["a word"]}}\n' for n in range(4))
    )
    late = clips / "3.mp4"
    late.rename(tmp_path / "late.mp4")
    with Collection.create(tmp_path / "c", model) as collection, Collection.create(tmp_path / "whole", model) as whole:
        collection.add([clips])
        collection.annotate(tmp_path / "captions.jsonl")
        before = collection.null["text"].maxima.tolist()
        (tmp_path / "late.mp4").rename(late)

        def killed(*given: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("internvideo.search.collection.calibrate", killed)
        with pytest.raises(KeyboardInterrupt):
            collection.add([clips])
        monkeypatch.undo()
        assert len(collection.videos) == 4
        assert collection.add([clips]).read == 0
        whole.add([clips])
        assert collection.null["text"].maxima.tolist() == pytest.approx(whole.null["text"].maxima.tolist(), abs=1e-4)
        assert collection.null["text"].maxima.tolist() != before
        assert len(collection.store.records.annotations("caption")) == 4
        assert collection.store.records.fact("unsettled") is False


def test_the_command_names_what_it_did(tmp_path: Path, clips: Path) -> None:
    (clips / "4.mp4").write_bytes(b"garbage")
    words = ("index", clips, "-o", tmp_path / "c", "-e", use_world.language_folder())
    done = in_process.command(*words)
    assert done.code == 0
    assert done.out.splitlines()[:2] == [f"{tmp_path / 'c'}: 12 windows of 4 videos", "read: 4 of 5 videos (4 new)"]
    assert done.err.startswith(f"unreadable: {clips / '4.mp4'}: not a readable video")
    (clips / "0.mp4").unlink()
    done = in_process.command("index", clips, "-o", tmp_path / "c")
    assert "read: 3 of 4 videos (3 as before, 1 removed)" in done.out
    assert f"removed: {clips / '0.mp4'}" in done.out
    other = in_process.command("index", clips, "-o", tmp_path / "c", "-e", use_world.classifier_folder())
    assert "was made with model" in other.mistake()
    assert "is not a collection" in in_process.command("index", clips, "-o", tmp_path / "d").mistake()
    wrong = in_process.command("index", clips, "-o", tmp_path / "d", "-e", use_world.language_folder(), "--scales", "a")
    assert "comma-separated seconds" in wrong.mistake()
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.mp4").write_bytes(b"garbage")
    nothing = in_process.command("index", tmp_path / "only", "-o", tmp_path / "d", "-e", use_world.language_folder())
    assert "not a readable video" in nothing.mistake()


def test_settings_out_of_range() -> None:
    for wrong in ({"batch_size": 0}, {"workers": -1}):
        with pytest.raises(RecipeError):
            IndexSettings(**wrong)


def test_vectors_must_be_finite(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    class Broken(VideoModel):
        def encode_clips(self, clips: torch.Tensor) -> torch.Tensor:
            return super().encode_clips(clips) / torch.tensor(0.0)

    broken = Broken(model.name, model.module, preprocessing=model.preprocessing)
    with pytest.raises(RunError, match=r"vector at .* is not finite"):
        Collection.create(tmp_path / "c", broken).add([clips])


def test_workers_give_the_same_rows(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    for workers in (0, 2):
        Collection.create(tmp_path / str(workers), model).add([clips], IndexSettings(workers=workers, batch_size=3))
    assert rows(tmp_path / "0") == rows(tmp_path / "2")
    json.dumps(Collection.open(tmp_path / "2").facts())
