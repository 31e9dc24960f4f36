"""The clips of one video from several readers in threads: the same ones, in their order, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import odd_video
import pytest
import torch
from PIL import Image
from torch import Tensor

from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import VideoError
from internvideo.features import engine, extract, read_ahead
from internvideo.features import parallel_windows as home
from internvideo.features.feature_folder import find_items
from internvideo.features.parallel_windows import default_readers, parallel_clips
from internvideo.features.window_sampling import WindowRule, frame_grid
from internvideo.features.windows import iter_clips
from internvideo.inference.video_model import VideoModel
from internvideo.model_table import create_model
from internvideo.video import cache
from internvideo.video.reader import Video

COUNT, GROUP = 150, 12
CLIPS = Preprocessing(4, 16, short_side=32)


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(home, "MIN_BLOCK_FRAMES", 20)
    yield
    assert reading() == []


def reading() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "reading videos"]


@pytest.fixture(scope="module", params=["plain", "B-frames", "open", "mkv", "vp9", "avi", "folder"])
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 pictures with a key frame every 12, as several containers and codecs keep them; `avi` tells too little."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    frames = odd_video.moving_frames(COUNT)
    if kind == "folder":
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{number:05}.png")
        return folder
    if kind in ("vp9", "avi"):
        codec, name = {"vp9": ("libvpx-vp9", "film.webm"), "avi": ("mpeg4", "film.avi")}[kind]
        return odd_video.encode(folder / name, frames, codec=codec, gop=GROUP)
    options = {"bf": str(2 * (kind != "plain"))} | ({"x264-params": "open-gop=1"} if kind == "open" else {})
    return odd_video.encode(folder / f"film.{'mkv' if kind == 'mkv' else 'mp4'}", frames, gop=GROUP, options=options)


def damaged(folder: Path, numbers: list[int]) -> Path:
    """A film whose pictures of these numbers are junk, which shows only when they are decoded."""
    whole = odd_video.encode(folder / "whole.mp4", odd_video.moving_frames(COUNT), gop=GROUP, options={"bf": "0"})
    places = odd_video.sample_places(whole)
    patches = {places[number][0] + 12: b"\xff" * (places[number][1] - 12) for number in numbers}
    return odd_video.patched(whole, folder / "damaged.mp4", patches)


Told = tuple[list[Tensor], str, list[tuple[float, float]], str]


def all_of(path: Path, rule: WindowRule, readers: int, damage: str | None = None, clips: Preprocessing = CLIPS) -> Told:
    """The clips up to an error, the error, gaps and trouble; each time by readers that know nothing from before."""
    cache._indexes.clear()
    cache._total_bytes = 0
    found, error = list[Tensor](), ""
    with Video(path, short_side=clips.short_side, damage=damage, fps=25) as video:
        chosen = frame_grid(video.info, rule).frame_indices(clips.frames)
        try:
            # What came before an error stays in the list.
            found.extend(parallel_clips(video, clips, chosen, readers) if readers else iter_clips(video, clips, chosen))
        except VideoError as error_:
            error = str(error_)
        return found, error, video.gaps, video.damage_report


def same(one: Told, other: Told) -> None:
    assert len(one[0]) == len(other[0])
    for here, there in zip(one[0], other[0], strict=True):
        assert here.dtype == there.dtype
        assert torch.equal(here, there)
    assert one[1:] == other[1:]


@pytest.mark.parametrize(
    ("rule", "readers"),
    [
        (WindowRule(4, 4), 2),
        (WindowRule(8, 3), 20),
        (WindowRule(4, 2, fps=11.0), 3),
        (WindowRule(40, 25), 1),
    ],
)
def test_the_clips_are_those_of_one_reader(film: Path, rule: WindowRule, readers: int) -> None:
    alone = all_of(film, rule, 0)
    assert len(alone[0]) > 3
    assert alone[1:] == ("", [], "")
    same(all_of(film, rule, readers), alone)


def test_floats_and_few_pieces_ahead(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "MAX_READY_BYTES", 0)  # two clips of each reader
    clips = Preprocessing(4, 16, resize_backend="torch")
    same(all_of(film, WindowRule(4, 4), 3, clips=clips), all_of(film, WindowRule(4, 4), 0, clips=clips))


@pytest.mark.parametrize("damage", ["skip", "stop", "repeat"])
@pytest.mark.parametrize("numbers", [[30], [3], [70, 71, 130], [146], [12, 24, 36, 48, 60]])
def test_damage_is_met_in_its_place(tmp_path: Path, numbers: list[int], damage: str) -> None:
    path = damaged(tmp_path, numbers)
    for rule, readers in ((WindowRule(4, 4), 4), (WindowRule(8, 3), 2), (WindowRule(4, 10), 4)):
        alone = all_of(path, rule, 0, damage)
        assert alone[1 if damage == "stop" else 2] or rule.stride_frames > 8
        same(all_of(path, rule, readers, damage), alone)


def test_there_are_blocks_and_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = odd_video.encode(tmp_path / "film.mp4", odd_video.moving_frames(COUNT), gop=GROUP)
    read: list[tuple[str, int]] = []
    plain = home.decode_clips

    def told(video: Video, clips: Preprocessing, chosen: list[np.ndarray]) -> Iterator[Tensor]:  # type: ignore[type-arg]  # int64
        read.append((str(threading.get_ident()), int(chosen[0][0])))
        return plain(video, clips, chosen)

    monkeypatch.setattr(home, "decode_clips", told)
    assert len(all_of(path, WindowRule(4, 4), 3)[0]) == 37
    assert sorted(start for _, start in read) == [0, 24, 48, 72, 96, 120, 144], "each block once, from a key frame on"
    assert len({thread for thread, _ in read}) == 3


def test_leaving_early_ends_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "MAX_READY_BYTES", 1)  # two clips ahead: no thread ends before it is told to
    path = odd_video.encode(tmp_path / "film.mp4", odd_video.moving_frames(COUNT), gop=GROUP)
    with Video(path, short_side=32) as video:
        clips = parallel_clips(video, CLIPS, frame_grid(video.info, WindowRule(4, 4)).frame_indices(4), 3)
        next(clips)
        assert len(reading()) == 3
        clips.close()  # type: ignore[attr-defined]  # a generator
        assert reading() == []


@pytest.mark.parametrize("error", [VideoError("film.mp4", "cannot be opened"), RuntimeError("of another kind")])
def test_a_reader_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    path = odd_video.encode(tmp_path / "film.mp4", odd_video.moving_frames(COUNT), gop=GROUP)
    alone = all_of(path, WindowRule(4, 4), 0)

    def again(_: Video) -> Video:
        raise error

    monkeypatch.setattr(Video, "again", again)
    if isinstance(error, VideoError):
        same(all_of(path, WindowRule(4, 4), 3), alone)
    else:
        with pytest.raises(RuntimeError, match="another kind"):
            all_of(path, WindowRule(4, 4), 3)


def test_readers_beside_a_model() -> None:
    assert default_readers("cpu") == 1
    assert 1 <= default_readers("cuda") <= 4


@pytest.mark.parametrize(("workers", "asked", "readers"), [(0, 0, 1), (1, 1, 1), (2, 1, 2), (5, 1, 5)])
def test_workers_without_a_video_read_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, asked: int, readers: int
) -> None:
    odd_video.encode(tmp_path / "film.mp4", odd_video.moving_frames(COUNT), gop=GROUP)
    sizes = {"image_size": 16, "frames": 4, "width": 8, "depth": 1, "heads": 2, "num_classes": 2}
    model = VideoModel("videomae-s-classifier", create_model("videomae-s-classifier", sizes), preprocessing=CLIPS)
    found = []

    def told(reader: engine._Reader, processes: int, *, in_order: bool) -> Iterator[engine._Piece]:
        found.append((processes, reader.readers))
        return read_ahead.read_ahead(reader, 0)

    rows = []
    for stream in (read_ahead.read_ahead, told):
        monkeypatch.setattr(engine, "read_ahead", stream)
        settings = extract.ExtractSettings(WindowRule(4, 4), workers=workers if stream is told else 0)
        extract.extract(find_items([tmp_path])[0], model, tmp_path / "out", settings, overwrite=True, progress=False)
        rows.append(np.load(tmp_path / "out" / "film.npy"))
    assert found == [(asked, readers)]
    np.testing.assert_array_equal(*rows)
