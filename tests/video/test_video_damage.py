"""After damage: skip, stop or repeat; the gaps are told, and nothing wrong is handed out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import av
import forked
import in_process
import numpy as np
import pytest
import torch
import use_world
from odd_video import Frames, decode_all, encode, moving_frames, patched, sample_places

from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.manifest import read_manifest
from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import VideoError
from internvideo.features.embedding import EmbeddingSettings, embed
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import INDEX, find_items
from internvideo.features.video_files import find_videos
from internvideo.features.window_sampling import WindowRule
from internvideo.features.windows import windows
from internvideo.inference.video_model import VideoModel
from internvideo.model_table import create_model
from internvideo.video.damage import DamageError, corrupt_frames
from internvideo.video.reader import Video, read_video_info
from internvideo.video.sequential import iter_frames

COUNT, GROUP, FPS = 60, 10, 15
DAMAGED = range(24, 30)  # frames that cannot be sound: without B-frames, from the damage to the next key frame


class Case(NamedTuple):
    path: Path
    frames: Frames


def damaged(folder: Path, kind: str) -> Case:
    """A clip whose frame 24 is damaged. `lengths`: found at opening; `slices`: only when it is decoded; `ts`, `avi`:
    other containers, where everything is decoded."""
    suffix = "mp4" if kind in ("lengths", "slices") else kind
    codec = "mpeg4" if kind == "avi" else "libx264"
    options = {} if kind == "avi" else {"bf": "0"}
    whole = encode(folder / f"whole.{suffix}", moving_frames(COUNT), codec=codec, gop=GROUP, options=options)
    frames, _ = decode_all(whole)
    if suffix == "mp4":
        position, size = sample_places(whole)[24]
        junk = bytes(size) if kind == "lengths" else b"\xff" * (size - 12)
        return Case(patched(whole, folder / f"{kind}.mp4", {position + (0 if kind == "lengths" else 12): junk}), frames)
    data = whole.read_bytes()
    at = packet_places(whole)[24]
    return Case(patched(whole, folder / f"{kind}.{suffix}", {at + 40: b"\xff" * min(24, len(data) - at)}), frames)


def packet_places(path: Path) -> list[int]:
    """Byte offset of every packet in the file."""
    with av.open(str(path)) as container:
        return [packet.pos for packet in container.demux(video=0) if packet.size]


@pytest.fixture(scope="module", params=["lengths", "slices", "ts", "avi"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return damaged(tmp_path_factory.mktemp(request.param), request.param)


def numbers_of(video: Video) -> list[int]:
    """Which picture of the whole clip each frame is, by its time."""
    return np.rint(video.info.times * FPS).astype(int).tolist()


def test_skip_refuses_the_damaged_and_goes_on(case: Case) -> None:
    with Video(case.path) as video:
        assert video.damage == "skip"
        assert video.info.times[-1] == pytest.approx((COUNT - 1) / FPS, abs=2e-3)
        refused = []
        for index, number in enumerate(numbers_of(video)):
            try:
                np.testing.assert_array_equal(video.frames([index])[0], case.frames[number])
            except DamageError:
                refused.append(number)
        assert set(refused) <= set(DAMAGED)
        assert len(video.gaps) == 1
        begin, end = video.gaps[0]
        assert (begin, end) == pytest.approx((DAMAGED[0] / FPS, DAMAGED[-1] / FPS + 1 / FPS), abs=3e-3)
        assert video.damage_report.startswith("damaged, 0.")
        with pytest.raises(DamageError):
            video.frames_at([25.5 / FPS])
        with pytest.raises(DamageError):
            list(iter_frames(video, range(video.info.frames)))


def test_stop_ends_there(case: Case) -> None:
    given: list[Any] = []
    with Video(case.path, damage="stop") as video:
        with pytest.raises(VideoError, match=r"is damaged|the video ends"):
            given.extend(iter_frames(video, range(COUNT)))
        np.testing.assert_array_equal(np.stack(given), case.frames[: DAMAGED[0]])


def test_repeat_shows_the_last_sound_picture(case: Case) -> None:
    with Video(case.path, damage="repeat") as video:
        numbers = numbers_of(video)
        expected = case.frames[[DAMAGED[0] - 1 if number in DAMAGED else number for number in numbers]]
        np.testing.assert_array_equal(video.frames(range(len(numbers))), expected)
        np.testing.assert_array_equal(np.stack(list(iter_frames(video, range(len(numbers))))), expected)
        np.testing.assert_array_equal(video.frames_at([25.5 / FPS])[0], case.frames[DAMAGED[0] - 1])
    with Video(case.path, damage="repeat") as video:  # walking first, before the damage has come to light
        np.testing.assert_array_equal(np.stack(list(iter_frames(video, range(len(numbers))))), expected)


def test_the_policy_comes_from_the_environment(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVIDEO_DAMAGE", "stop")
    with Video(case.path) as video:
        assert video.damage == "stop"
    with Video(case.path, damage="repeat") as video:
        assert video.damage == "repeat"
    monkeypatch.setenv("INTERNVIDEO_DAMAGE", "ignore")
    with pytest.raises(VideoError, match="INTERNVIDEO_DAMAGE: 'ignore'; expected: skip, stop, repeat"):
        read_video_info(case.path)


def test_clips_leave_the_damaged_frames_out(case: Case) -> None:
    """Training and single clips: chosen among the sound frames, anew when damage comes to light."""
    (case.path.parent / "list.csv").write_text(f"path,label\n{case.path.name},a\n")
    manifest = read_manifest(case.path.parent / "list.csv")
    sound = np.array([number for number in range(COUNT) if number not in DAMAGED])
    clips = ManifestClipDecoder(manifest).clips(manifest.rows[0], lambda times: [np.arange(len(times))])
    np.testing.assert_array_equal(clips[0].numpy(), case.frames[sound])
    rule = Preprocessing(8, 32)
    with Video(case.path) as video:
        assert rule.clip(video).shape == (3, 8, 32, 32)


def small_model() -> VideoModel:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "frames": 4, "width": 8, "depth": 1, "heads": 2, "num_classes": 3}
    module = create_model("videomae-s-classifier", sizes)
    return VideoModel("videomae-s-classifier", module, preprocessing=Preprocessing(4, 16))


def test_windows_without_a_sound_frame_are_left_out(case: Case) -> None:
    found = list(windows(case.path, Preprocessing(4, 16), window_seconds=0.2))
    assert [round(window.start, 3) for window in found] == [
        round(0.2 * k, 3) for k in range(20) if not 24 <= 3 * k + 0.01 < 30
    ]


def test_features_tell_the_gaps(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, _ = find_items([case.path], recursive=False)
    rule = ExtractSettings(WindowRule(4, 4, fps=FPS))
    found = extract(items, small_model(), tmp_path / "f", rule, progress=False)
    assert (found.read, len(found.truncated), len(found.unreadable)) == (1, 1, 0)
    assert found.truncated[0].reason.startswith("damaged, 0.")
    entry: dict[str, Any] = next(iter(json.loads((tmp_path / "f" / INDEX).read_text())["database"].values()))
    assert np.array(entry["gaps"]) == pytest.approx(np.array([[24 / FPS, 30 / FPS]]), abs=3e-3)
    assert entry["vectors"] == 15
    monkeypatch.setenv("INTERNVIDEO_DAMAGE", "stop")
    stopped = extract(items, small_model(), tmp_path / "g", rule, progress=False)
    assert stopped.vectors < 10


def test_vectors_tell_the_gaps(case: Case, tmp_path: Path) -> None:
    videos = find_videos([case.path], recursive=False)
    coverage = embed(videos, small_model(), tmp_path / "t.npy", EmbeddingSettings(window_seconds=0.2), progress=False)
    assert (coverage.vectors, len(coverage.truncated)) == (18, 1)
    assert "damaged, 0." in (tmp_path / "t.skipped.jsonl").read_text()


def test_the_option(tmp_path: Path) -> None:
    path = damaged(tmp_path, "lengths").path
    common = ("-e", use_world.classifier_folder(), "--window-frames", 4, "--stride-frames", 4)
    process = forked.fork(in_process.command, "extract", path, "-o", tmp_path / "f", *common, "--damage", "stop")
    done = process.told()
    assert done.code == 0, done
    index = json.loads((tmp_path / "f" / INDEX).read_text())
    assert index["protocol"]["damage"] == "stop"
    assert next(iter(index["database"].values()))["vectors"] == 6
    told = in_process.command("extract", path, "-o", tmp_path / "g", *common)
    assert "read in part: " in told.err
    assert "damaged, 0." in told.err
    told = in_process.command("extract", path, "-o", tmp_path / "h", *common, "--damage", "ignore")
    assert "expected: skip, stop, repeat" in told.mistake()


def test_what_follows_a_fault_is_not_trusted() -> None:
    numbers, keys = [1, 3, 4, 2, 5, 7, 8, 6, 9], [True, *[False] * 3, True, *[False] * 4]
    # Packet 2 is a P picture shown fourth; 3 and 4, shown before it, are decoded after it.
    assert corrupt_frames(numbers, keys, [2], from_start=False).nonzero()[0].tolist() == [1, 2, 3]
    assert corrupt_frames(numbers, keys, [5], from_start=False).nonzero()[0].tolist() == [4, 5, 6, 7, 8]
    assert corrupt_frames(numbers, keys, [], from_start=True).nonzero()[0].tolist() == []
    # An open group: packets 6 and 7 are shown before the key frame 5 and lean on what was before it.
    opened, keys = [1, 2, 3, 6, 7, 5, 8], [True, *[False] * 4, True, False]
    assert corrupt_frames(opened, keys, [3], from_start=False).nonzero()[0].tolist() == [2, 3, 4]
