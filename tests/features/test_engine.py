"""The engine of windows with a writer of one's own: what is called, in which order, and what is left to others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
import torch
import use_world
from torch import Tensor

from internvideo.data.preprocessing import Span
from internvideo.features import parallel_windows
from internvideo.features.engine import FrameWindows, TimedWindows, VectorWriter, VideoEnd, Window, Windows, run_engine
from internvideo.features.video_files import VideoFile, find_videos
from internvideo.features.window_sampling import WindowRule


def _not_of_others(index: int) -> bool:  # named: processes that are not forked get it pickled
    return index != 1


class InMemory(VectorWriter):
    """Keeps vectors in memory; video 1 belongs to another process."""

    def __init__(self, videos: Sequence[VideoFile]) -> None:
        super().__init__(videos, _not_of_others)
        self.spans: dict[int, list[list[float]]] = {}
        self.values: dict[int, list[Tensor]] = {}
        self.finished: dict[int, tuple[VideoEnd, int]] = {}
        self.left_open: list[int] = []
        self.closed = False

    def pending(self) -> list[int]:
        return [index for index in range(len(self.videos)) if index != 1 or not self.finished]

    def begin(self, index: int) -> None:
        self.spans[index], self.values[index] = [], []

    def write(self, index: int, windows: Sequence[Window], values: Tensor) -> None:
        assert len(windows) == len(values)
        self.spans[index] += [[window.start, window.end] for window in windows]
        self.values[index] += values

    def finish(self, index: int, end: VideoEnd, num_vectors: int) -> None:
        assert len(self.values[index]) == num_vectors
        self.finished[index] = end, num_vectors

    def after_batch(self, unfinished: Collection[int]) -> None:
        self.left_open.append(len(unfinished))

    def close(self) -> None:
        self.closed = True


def windows(kind: str) -> Windows:
    preprocessing = use_world.language().preprocessing
    if kind == "seconds":
        return TimedWindows(preprocessing, 1.0)
    return FrameWindows(preprocessing, WindowRule(10, 10))


@pytest.mark.parametrize("kind", ["seconds", "frames"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_writer_gets_every_vector_of_its_videos(tmp_path: Path, kind: str, workers: int) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"garbage")
    model, videos = use_world.language(), find_videos([use_world.clips(), tmp_path / "bad.mp4"])
    writer = InMemory(videos)
    encode = model.encode_clips
    run_engine(writer, windows(kind), encode, model, batch_size=5, workers=workers, in_order=True, progress=False)
    assert sorted(writer.finished) == [0, 2, 3, 4]
    assert writer.closed
    assert (writer.report.read, writer.report.dim) == (3, model.embed_dim)
    end, count = writer.finished[4]
    assert (count, end.extent.frames, bool(end.reason)) == (0, 0, True)
    for index in (0, 2, 3):
        end, count = writer.finished[index]
        assert (end.reason, end.identity, end.extent.duration) == ("", videos[index].identity(), pytest.approx(3.0))
        step = 1.0 if kind == "seconds" else 10 / end.extent.fps
        assert [start for start, _ in writer.spans[index]] == pytest.approx([n * step for n in range(count)])
    if kind == "seconds":
        pieces = [Span(videos[2].path, *span) for span in writer.spans[2]]
        plain = model.encode_video(pieces, normalize=False)
        torch.testing.assert_close(torch.stack(writer.values[2]), plain, atol=1e-5, rtol=1e-4)


def test_a_writer_is_closed_after_an_error() -> None:
    def fail(clips: Tensor) -> Tensor:
        raise KeyboardInterrupt

    writer = InMemory(find_videos([use_world.clips()]))
    with pytest.raises(KeyboardInterrupt):
        run_engine(writer, windows("seconds"), fail, use_world.language(), batch_size=2, progress=False)
    assert writer.closed
    assert not writer.finished


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_small_model_runs_on_one_thread_beside_the_reader(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before, seen = use_world.language(), torch.get_num_threads(), set[int]()

    def encode(clips: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return model.encode_clips(clips)

    monkeypatch.setattr(parallel_windows, "SMALL_MODEL_FLOPS", limit)
    torch.set_num_threads(2)
    try:
        writer = InMemory(find_videos([use_world.clips()]))
        run_engine(writer, windows("seconds"), encode, model, batch_size=2, progress=False)
        assert seen == {1 if limit else 2}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
