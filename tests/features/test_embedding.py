"""Collections to vectors: the table, resuming, what cannot be read, other settings, worker processes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import lance
import numpy as np
import odd_video
import pyarrow.parquet as pq
import pytest
import torch
import use_world

from internvideo.data.manifest import Sample, write_manifest
from internvideo.data.preprocessing import Span
from internvideo.errors import ManifestError, RecipeError, RunError, VideoError
from internvideo.extras import ExtraError
from internvideo.features.embedding import EmbeddingSettings, embed, plan
from internvideo.features.vector_files import PartsFolder, check_output
from internvideo.features.video_files import VideoFile, find_videos
from internvideo.inference.video_model import VideoModel

WINDOWS = EmbeddingSettings(window_seconds=1.0, stride_seconds=0.5, batch_size=3)


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return use_world.language()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of four clips of 3 s that a test may change."""
    return Path(shutil.copytree(use_world.clips(), tmp_path / "clips"))


def table(path: Path) -> tuple[list[dict[str, Any]], np.ndarray, dict[str, Any]]:
    """Rows without vectors, vectors, protocol of an output of any kind."""
    if path.suffix != ".npy":
        found = pq.read_table(path) if path.suffix == ".parquet" else lance.dataset(str(path)).to_table()
        rows = [{"path": row["path"], "start": row["start"], "end": row["end"]} for row in found.to_pylist()]
        values = np.stack(found["embedding"].to_numpy())
        return rows, values, json.loads(found.schema.metadata[b"internvideo"])
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert [row.pop("row") for row in rows] == list(range(len(rows)))
    return rows, np.load(path), json.loads(path.with_suffix(".protocol.json").read_text())


@pytest.mark.parametrize("name", ["out.parquet", "out.npy"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_is_the_model_s_answer_for_its_span(
    tmp_path: Path, clips: Path, model: VideoModel, name: str, workers: int
) -> None:
    settings = EmbeddingSettings(window_seconds=1.0, stride_seconds=0.5, batch_size=3, workers=workers)
    videos = find_videos([clips])
    coverage = embed(videos, model, tmp_path / name, settings)
    rows, values, protocol = table(tmp_path / name)
    assert [row["path"] for row in rows] == [str(clips / f"{n}.mp4") for n in range(4) for _ in range(5)]
    assert [row["start"] for row in rows[:5]] == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert rows[4]["end"] == pytest.approx(3)
    expected = model.encode_video([Span(row["path"], row["start"], row["end"]) for row in rows]).numpy()
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, atol=2e-6)
    assert (coverage.vectors, coverage.dim, coverage.unreadable) == (20, model.embed_dim, [])
    assert coverage.video_seconds == pytest.approx(12)
    assert coverage.speed > 0
    assert protocol["model"] == model.name
    assert len(protocol["weights_sha256"]) == 64
    assert (protocol["window"], protocol["stride"], protocol["normalized"]) == (1.0, 0.5, True)
    assert protocol["preprocessing"] == model.preprocessing.to_json()
    assert not (tmp_path / "out.skipped.jsonl").exists()
    if name.endswith("parquet"):
        kind = pq.read_schema(tmp_path / name).field("embedding").type
        assert str(kind) == f"fixed_size_list<element: float>[{model.embed_dim}]"


def test_a_lance_data_set_has_the_rows_of_the_parquet_table(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    videos = find_videos([clips])
    for name in ("a.parquet", "a.lance"):
        embed(videos, model, tmp_path / name, WINDOWS)
    expected = table(tmp_path / "a.parquet")
    for _ in range(2):  # written again, as another version
        for one, other in zip(table(tmp_path / "a.lance"), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert embed(videos, model, tmp_path / "a.lance", WINDOWS).resumed == 4
    (tmp_path / "file.lance").write_text("no folder")
    with pytest.raises(RunError, match="cannot be written"):
        embed(videos, model, tmp_path / "file.lance", WINDOWS, overwrite=True)


def test_without_a_window_there_is_one_vector_a_video(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    embed(find_videos([clips]), model, tmp_path / "a.npy", EmbeddingSettings(normalize=False))
    rows, values, protocol = table(tmp_path / "a.npy")
    files = [clips / f"{n}.mp4" for n in range(4)]
    np.testing.assert_allclose(values, model.encode_video(files, normalize=False).numpy(), rtol=1e-4, atol=1e-5)
    assert [(row["start"], row["end"]) for row in rows] == [(0.0, pytest.approx(3.0))] * 4
    assert protocol["window"] is protocol["stride"] is None


class CountingModel(VideoModel):
    """Counts clips and, if asked, is interrupted after some."""

    def __init__(self, model: VideoModel, stop_after: int = 10**9) -> None:
        super().__init__(model.name, model.module, preprocessing=model.preprocessing)
        self.seen, self.stop_after = 0, stop_after

    def encode_clips(self, clips: torch.Tensor) -> torch.Tensor:
        if self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(clips)
        return super().encode_clips(clips)


def test_an_interrupted_run_goes_on(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    output, videos = tmp_path / "a.parquet", find_videos([clips])
    embed(videos, model, tmp_path / "whole.parquet", WINDOWS)
    with pytest.raises(KeyboardInterrupt):
        embed(videos, CountingModel(model, stop_after=12), output, WINDOWS)
    assert not output.exists()
    *files, counts = plan(videos, output)
    assert [line.split(":")[0] for line in files] == ["done", "done", "read", "read"]
    assert counts == "2 to read, 2 done before, 0 absent"
    second = CountingModel(model)
    coverage = embed(videos, second, output, WINDOWS)
    assert (second.seen, coverage.resumed, coverage.vectors) == (10, 2, 20)
    for one, other in zip(table(output), table(tmp_path / "whole.parquet"), strict=True):
        if isinstance(one, np.ndarray):
            np.testing.assert_allclose(one, other, atol=2e-6)
        else:
            assert one == other
    third = CountingModel(model)
    again = output.read_bytes()
    assert embed(videos, third, output, WINDOWS).resumed == 4
    assert third.seen == 0
    assert output.read_bytes() == again


def test_changed_and_damaged_things_are_done_anew(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    output, videos = tmp_path / "a.npy", find_videos([clips])
    embed(videos, model, output, WINDOWS)
    os.utime(clips / "1.mp4", (1, 1))
    part = next((tmp_path / "a.npy.parts").glob(f"{videos[2].identity()}.npz"))
    part.write_bytes(part.read_bytes()[:100])
    counting = CountingModel(model)
    assert embed(videos, counting, output, WINDOWS).resumed == 2
    assert counting.seen == 10
    assert embed(videos[:1], model, output, WINDOWS).vectors == 5, "the table holds what was asked for"
    assert len(np.load(output)) == 5


@pytest.mark.parametrize("other", ["window", "model", "raw"])
def test_other_settings_do_not_mix(tmp_path: Path, clips: Path, model: VideoModel, other: str) -> None:
    output, videos = tmp_path / "a.npy", find_videos([clips])
    embed(videos, model, output, WINDOWS)
    changed = {"window": EmbeddingSettings(window_seconds=2.0), "raw": EmbeddingSettings(1.0, 0.5, normalize=False)}
    settings = changed.get(other, WINDOWS)
    second = use_world.classifier() if other == "model" else model
    told = {"window": "another window: 1.0, now 2.0", "raw": "another normalized", "model": "another model"}[other]
    with pytest.raises(RunError, match=told) as error:
        embed(videos, second, output, settings)
    assert "--overwrite" in str(error.value)
    assert embed(videos, second, output, settings, overwrite=True).resumed == 0


def test_a_table_whose_parts_are_gone_is_not_overwritten(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    output = tmp_path / "a.npy"
    np.save(output, np.ones(3))
    with pytest.raises(RunError, match="exists already"):
        embed(find_videos([clips]), model, output)
    assert np.load(output).tolist() == [1, 1, 1]


def test_what_cannot_be_read_is_named_and_counted(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    places = odd_video.sample_places(clips / "1.mp4")
    odd_video.patched(clips / "1.mp4", clips / "4.mp4", {places[30][0] + 8: b"\xff" * (places[30][1] - 8)})
    (clips / "5.mp4").write_bytes(b"garbage")
    videos = [*find_videos([clips]), VideoFile(str(clips / "absent.mp4"))]
    for workers in (0, 2):
        settings = EmbeddingSettings(window_seconds=0.5, batch_size=3, workers=workers)
        coverage = embed(videos, model, tmp_path / "a.npy", settings, overwrite=True)
        rows = [json.loads(line) for line in (tmp_path / "a.skipped.jsonl").read_text().splitlines()]
        told = sorted((Path(row["path"]).name, row["read"]) for row in rows)
        assert told == [("4.mp4", "in part"), ("5.mp4", "nothing"), ("absent.mp4", "nothing")]
        assert all(row["reason"] and row["path"] not in row["reason"] for row in rows)
        assert (len(coverage.truncated), len(coverage.unreadable)) == (1, 2)
        kept = [row["start"] for row in table(tmp_path / "a.npy")[0] if row["path"].endswith("4.mp4")]
        assert len(kept) == 6, "it goes on after the damage"
    os.remove(clips / "4.mp4")
    embed(find_videos([clips / f"{n}.mp4" for n in range(4)]), model, tmp_path / "a.npy", settings)
    assert not (tmp_path / "a.skipped.jsonl").exists(), "an old list does not stay"


def test_a_recording_that_was_cut_off_is_named(tmp_path: Path, model: VideoModel) -> None:
    whole = odd_video.encode(tmp_path / "whole.avi", odd_video.moving_frames(40), codec="mpeg4")
    position, size = odd_video.sample_places(whole)[25]
    odd_video.patched(whole, tmp_path / "a.avi", {position: b"\xff" * size})
    coverage = embed(
        find_videos([tmp_path / "a.avi"]), model, tmp_path / "a.npy", EmbeddingSettings(window_seconds=0.5)
    )
    assert coverage.vectors >= 3
    assert len(coverage.truncated) == 1


def test_nothing_readable_is_an_error(tmp_path: Path, model: VideoModel) -> None:
    (tmp_path / "a.mp4").write_bytes(b"garbage")
    (tmp_path / "b.mp4").write_bytes(b"")
    with pytest.raises(VideoError, match="none of 2 videos could be read"):
        embed(find_videos([tmp_path]), model, tmp_path / "a.npy")
    assert not (tmp_path / "a.npy").exists()


def test_numbers_must_be_finite(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    class Broken(CountingModel):
        def encode_clips(self, clips: torch.Tensor) -> torch.Tensor:
            return super().encode_clips(clips) / torch.tensor(0.0)

    with pytest.raises(RunError, match=r"0\.mp4: vector at 0 s is not finite"):
        embed(find_videos([clips]), Broken(model), tmp_path / "a.npy", EmbeddingSettings(normalize=False))


def test_a_manifest_s_spans_are_its_rows(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    rows = [Sample(id="a", path="0.mp4", span=(0.5, 2.0)), Sample(id="b", path="0.mp4", span=(2.0, 3.0))]
    write_manifest(clips / "m.jsonl", rows, ())
    embed(find_videos([clips / "m.jsonl"]), model, tmp_path / "a.npy", EmbeddingSettings(window_seconds=1.0))
    found = [(row["start"], row["end"]) for row in table(tmp_path / "a.npy")[0]]
    assert found == [(0.5, 1.5), (1.5, 2.0), (2.0, pytest.approx(3.0))]


def test_which_videos_are_meant(tmp_path: Path, clips: Path) -> None:
    (clips / "inner").mkdir()
    (clips / ".hidden").mkdir()
    for name in ("inner/x.MKV", ".hidden/y.mp4", ".z.mp4", "notes.doc"):
        shutil.copy(clips / "0.mp4", clips / name)
    names = [Path(video.path).name for video in find_videos([clips])]
    assert names == [f"{n}.mp4" for n in range(4)]
    deep = find_videos([clips, clips / "0.mp4", str(clips) + "/../clips/1.mp4"], recursive=True)
    assert [Path(video.path).name for video in deep] == [*names, "x.MKV"]
    assert find_videos([clips / "notes.doc"])[0].path.endswith("notes.doc"), "a file that is named is tried"
    with pytest.raises(VideoError, match="add --recursive"):
        find_videos([tmp_path])
    with pytest.raises(VideoError, match="no such file or folder"):
        find_videos([clips / "absent.mp4"])
    with pytest.raises(VideoError, match="none given"):
        find_videos([])
    with pytest.raises(ManifestError):
        find_videos([clips / "absent.jsonl"])


@pytest.mark.parametrize(
    "settings", [{"batch_size": 0}, {"workers": -1}, {"stride_seconds": 1.0}, {"window_seconds": -1.0}]
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        EmbeddingSettings(**settings)


def test_outputs_have_one_of_three_endings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"expected: a name that ends in \.parquet, \.lance or \.npy"):
        check_output(tmp_path / "a.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExtraError, match=r"pip install 'internvideo\[parquet\]'"):
        check_output(tmp_path / "a.parquet")


def test_parts_without_settings_are_not_trusted(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    output, videos = tmp_path / "a.npy", find_videos([clips])
    embed(videos, model, output, WINDOWS)
    output.unlink()
    PartsFolder(output)._settings.unlink()
    counting = CountingModel(model)
    embed(videos, counting, output, EmbeddingSettings(window_seconds=1.5))
    assert counting.seen == 8


def test_the_index_of_a_table_never_replaces_a_manifest(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    manifest, output = clips / "mine.jsonl", clips / "mine.npy"
    write_manifest(manifest, [Sample(id="a", path="0.mp4")], ())
    before = manifest.read_bytes()
    for attempt in (lambda: embed(find_videos([manifest]), model, output), lambda: [*plan([], output)]):
        with pytest.raises(RecipeError, match=r"mine\.jsonl: is no index of a table"):
            attempt()
    assert manifest.read_bytes() == before
    assert not output.exists()
    embed(find_videos([manifest]), model, clips / "other.npy")
    embed(find_videos([manifest]), model, clips / "other.npy")  # its own index is no hindrance
    embed(find_videos([manifest]), model, clips / "mine.parquet")  # has none


def test_coverage_counts_what_was_read(tmp_path: Path, clips: Path, model: VideoModel) -> None:
    (clips / "4.mp4").write_bytes(b"garbage")
    coverage = embed(find_videos([clips]), model, tmp_path / "a.npy", WINDOWS)
    assert (coverage.requested, coverage.read, coverage.resumed) == (5, 4, 0)
    assert coverage.throughput == f"12.0 s of video in {coverage.seconds:.1f} s, {coverage.speed:.1f}x real time"
    again = embed(find_videos([clips]), model, tmp_path / "a.npy", WINDOWS)
    assert (again.read, again.resumed, again.throughput) == (0, 4, "")
