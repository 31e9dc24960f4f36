"""Clips around key frames: which frames, the transforms and the boxes that move along, the loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS

from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.key_frame_indices import Floats, positions_before
from internvideo.data.loader import LoaderSettings
from internvideo.data.manifest import Manifest, Sample, read_manifest, write_manifest
from internvideo.data.sample import Box
from internvideo.errors import ManifestError, RecipeError, VideoError
from internvideo.tasks.spatio_temporal_localization.box_transforms import (
    BoxedTransform,
    resized_size,
    shift_color,
    square_around,
)
from internvideo.tasks.spatio_temporal_localization.data import (
    KeyFrame,
    KeyFrameClipSettings,
    KeyFrameLoader,
    KeyFrameViews,
    centered_positions,
    key_frames,
    with_detected_persons,
)
from internvideo.video.writer import write_video

FPS = 12


def key_frame(time: float, **row: object) -> KeyFrame:
    sample = Sample.model_validate({"id": "v", "path": "v.mp4", **row})
    return KeyFrame(sample, "v", time, np.zeros((0, 4)), np.zeros(0), ())


def world(folder: Path, videos: int = 2) -> Manifest:
    """White squares in the left half that grow brighter with time; boxes at .5 and 1.5 s."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(videos):
        frames = np.zeros((24, 32, 48, 3), np.uint8)
        frames[:, 8:24, 6:18] = (np.arange(24) * 10)[:, None, None, None]
        write_video(folder / f"{number}.mp4", frames, FPS, crf=0, pixel_format="yuv444p")
        boxes = [
            Box(time=time, x1=6 / 48, y1=0.25, x2=18 / 48, y2=0.75, labels=labels, actor=0)
            for time, labels in ((0.5, (0,)), (1.5, (0, 1)))
        ]
        boxes.append(Box(time=1.5, x1=0.9, y1=0.0, x2=1.0, y2=0.1, labels=(), actor=1))
        rows.append(Sample(id=f"v{number}", path=f"{number}.mp4", boxes=tuple(boxes)))
    write_manifest(folder / "m.jsonl", rows, ["be", "stand"])
    return read_manifest(folder / "m.jsonl")


FORM = KeyFrameClipSettings(4, 2, BoxedTransform(size=16, short=16, longest=40, hue=0, saturation=0, value=0), 2)
SETTINGS = LoaderSettings(batch_size=2)


# --- which frames ----------------------------------------------------------------------------------------------------


def around(frames: int) -> list[int]:
    """Which of the raw frames around a key frame make a clip of 16, 4 apart, as published."""
    start = (frames - 64) // 2 + 1
    return [min(max(start + 4 * step, 0), frames - 1) for step in range(16)]


@pytest.mark.parity
def test_the_frames_expected_here_are_the_published_ones() -> None:
    stored = json.loads((GOLDENS / "tasks/ava_head/expected.json").read_text("utf-8"))
    for frames, indices in stored["temporal_crop_indices_16x4_by_raw_frames"].items():
        assert around(int(frames)) == indices


def test_a_clip_in_the_middle_of_a_film() -> None:
    places = centered_positions(np.arange(3000) / 25, key_frame(60.0), frames=16, stride=4)
    center = 60 * 25
    expected = np.arange(center - 32, center + 32)[around(64)]
    assert places.tolist() == expected.tolist()
    assert places[8] == center + 1


@pytest.mark.parametrize("time", [0.4, 119.6])
def test_at_an_end_both_sides_are_as_long_as_the_shorter_one(time: float) -> None:
    places = centered_positions(np.arange(3000) / 25, key_frame(time), frames=16, stride=4)
    center = round(time * 25)
    side = min(center, 3000 - center)
    raw = np.arange(center - side, center + side)
    assert places.tolist() == raw[around(2 * side)].tolist()


@pytest.mark.parametrize(("time", "low"), [(105.0, 5.0), (100.5, 0.5), (109.9, 9.9)])
def test_a_kinetics_clip_is_stretched_where_a_side_is_missing(time: float, low: float) -> None:
    frame = key_frame(time, path="abc_000100_000110.mp4", attributes={"source": "kinetics"})
    places = centered_positions(np.arange(300) / 30, frame, frames=16, stride=4)
    center = round(low * 30)
    assert len(places) == 16
    assert (np.diff(places) >= 0).all()
    assert places.min() >= 0
    assert places.max() <= 299
    if 32 <= center <= 268:
        assert places.tolist() == np.arange(center - 32, center + 32)[around(64)].tolist()
    else:
        assert (places % 1 > 0).any()  # made between two frames


def test_half_a_side_is_spread_evenly() -> None:
    frame = key_frame(10.0 + 16 / 30, path="abc_000010_000020.mp4", attributes={"source": "kinetics"})
    places = centered_positions(np.arange(300) / 30, frame, frames=64, stride=1)
    assert places[:5].tolist() == [0.25, 0.75, 1.25, 1.75, 2.25]  # 16 frames become 32
    assert places[31:].tolist() == [*range(16, 48), 47]


@pytest.mark.parametrize("positions", [centered_positions, positions_before])
@pytest.mark.parametrize(("time", "right"), [(59.99, True), (60.4, True), (60.6, False), (902.0, False)])
def test_a_key_frame_behind_the_end_is_an_error(positions: Callable[..., Floats], time: float, right: bool) -> None:
    times = np.arange(1500) / 25
    if right:
        assert positions(times, key_frame(time), frames=4, stride=2).max() >= 1498
        return
    with pytest.raises(VideoError, match=r"no frame at .* expected: 0 s to 60\.000 s; .*--offset"):
        positions(times, key_frame(time), frames=4, stride=2)


def test_times_of_a_clip_count_from_its_start_or_from_that_of_the_upload() -> None:
    times, path = np.arange(300) / 30, "abc_000117_000127.mp4"
    box = {"x1": 0, "y1": 0, "x2": 1, "y2": 1}
    kinetics = {"source": "kinetics", "timestamp": "121.281427"}
    prepared = {"path": path, "group": "abc", "attributes": kinetics, "boxes": [{"time": 121.281427 - 117, **box}]}
    rows = (Sample.model_validate({"id": "v", **prepared}),)
    (frame,) = key_frames(Manifest(rows, ("a",), Path(), Path("m.jsonl")))
    assert (frame.video, frame.time) == ("abc", 121.281427)  # as the annotations and the files of results have it
    assert frame.seconds == pytest.approx(4.281427)
    places = centered_positions(times, frame, frames=16, stride=4)
    by_upload = key_frame(121.281427, path=path, attributes={"source": "kinetics"})
    assert places.tolist() == centered_positions(times, by_upload, frames=16, stride=4).tolist()
    assert 90 < places[0] < places[-1] < 165  # around frame 128
    (with_detected_boxes,) = with_detected_persons([frame], {("abc", 121.281): [(0, 0, 1, 1, 0.9)]}, 0.5)
    assert centered_positions(times, with_detected_boxes, frames=16, stride=4).tolist() == places.tolist()
    for odd in (116.0, 128.0):
        with pytest.raises(VideoError):
            centered_positions(times, key_frame(odd, path=path, attributes=kinetics), frames=16, stride=4)


def test_a_part_of_a_film_keeps_the_times_of_the_film() -> None:
    box = {"time": 2.0, "x1": 0, "y1": 0, "x2": 1, "y2": 1}
    row = {"id": "v", "path": "v.mp4", "group": "v", "attributes": {"timestamp": "902"}, "boxes": [box]}
    rows = (Sample.model_validate(row),)
    (frame,) = key_frames(Manifest(rows, ("a",), Path(), Path("m.jsonl")))
    assert (frame.time, frame.seconds) == (902.0, 2.0)
    assert centered_positions(np.arange(1500) / 25, frame, frames=4, stride=2).tolist() == [47, 49, 51, 53]


def test_a_span_must_begin_in_its_video(tmp_path: Path) -> None:
    row = world(tmp_path, 1).rows[0]  # 24 frames, 2 s
    reader = ManifestClipDecoder(read_manifest(tmp_path / "m.jsonl"))
    (clip,) = reader.clips(row.model_copy(update={"span": (1.5, 99.0)}), lambda times: [np.arange(len(times))])
    assert len(clip) == 6
    with pytest.raises(VideoError, match=r"no frame from 2\.5 s to 3 s"):
        reader.clips(row.model_copy(update={"span": (2.5, 3.0)}), lambda times: [np.asarray([0])])


# --- transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "size"), [(480, 640, (256, 341)), (640, 480, (341, 256)), (240, 576, (193, 464))]
)
def test_short_side_and_cap(height: int, width: int, size: tuple[int, int]) -> None:
    assert resized_size(height, width, 256, 464) == size


def square(left: int = 12, top: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """A white rectangle of 12 x 16 in 48 x 32 and its box as fractions."""
    clip = torch.zeros(2, 32, 48, 3, dtype=torch.uint8)
    clip[:, top : top + 16, left : left + 12] = 255
    box = torch.tensor([[left / 48, top / 32, (left + 12) / 48, (top + 16) / 32]])
    return clip, box


@pytest.mark.parametrize("seed", range(12))
def test_boxes_move_with_what_is_in_them(seed: int) -> None:
    transform = BoxedTransform(size=24, short=32, longest=99, flip=True, hue=0, saturation=0, value=0)
    made = transform.train(*square(), np.random.RandomState(seed))
    assert made.clip.shape == (3, 2, 24, 24)
    bright = (made.clip[0, 0] > 128).nonzero()
    if not len(made.boxes):
        assert len(set(bright[:, 1].tolist())) <= 1
        return
    low, high = bright.min(0).values, bright.max(0).values + 1
    assert made.boxes[0].tolist() == [low[1], low[0], high[1], high[0]]


def test_the_whole_frame_in_testing_and_padding_in_training() -> None:
    clip, box = square()
    whole = BoxedTransform(short=16, longest=99).resize(clip, box)
    assert whole.clip.shape == (3, 2, 16, 24)
    torch.testing.assert_close(whole.boxes, torch.tensor([[6.0, 4, 12, 12]]))
    narrow = BoxedTransform(size=24, short=32, longest=30, hue=0, saturation=0, value=0)
    made = narrow.train(clip, box, np.random.RandomState(0))
    assert made.clip.shape == (3, 2, 24, 24)
    assert (made.clip[:, :, 20:] == 0).all()


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((20, 10, 30, 14), (15, 2, 20)),  # twice the longer side around the middle (25, 12)
        ((0, 0, 10, 10), (0, 0, 20)),  # pushed into the frame
        ((38, 22, 48, 32), (28, 12, 20)),
        ((1, 1, 2, 2), (0, 0, 8)),  # never below the least
        ((0, 0, 48, 32), (8, 0, 32)),  # never wider than the frame's shorter side
    ],
)
def test_a_square_around_a_box(box: tuple[float, ...], expected: tuple[int, int, int]) -> None:
    assert tuple(square_around(box, (32, 48), 2.0)) == expected


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_a_clip_around_every_box_shows_what_is_in_it(seed: int | None) -> None:
    clip = torch.zeros(2, 40, 60, 3, dtype=torch.uint8)
    clip[:, 4:12, 4:12, 0], clip[:, 20:32, 40:48, 1] = 255, 255
    boxes = torch.tensor([[4 / 60, 4 / 40, 12 / 60, 12 / 40], [40 / 60, 20 / 40, 48 / 60, 32 / 40]])
    transform = BoxedTransform(size=32, flip=True, hue=0, saturation=0, value=0, around=1.5)
    rng = None if seed is None else np.random.RandomState(seed)
    made = transform.crop_boxes(clip, boxes, rng)
    assert [piece.box_index.tolist() for piece in made] == [[0], [1]]
    for colour, piece in enumerate(made):
        assert piece.clip.shape == (3, 2, 32, 32)
        lit = (piece.clip[colour, 0] > 127).nonzero().float()
        low, high = lit.amin(dim=0), lit.amax(dim=0) + 1
        seen = torch.stack([low[1], low[0], high[1], high[0]])
        torch.testing.assert_close(piece.boxes[0], seen, rtol=0, atol=1.5)
        assert piece.clip[1 - colour].max() < 50, "the other one is not seen"


def test_a_key_frame_becomes_as_many_clips_as_boxes(tmp_path: Path) -> None:
    manifest = world(tmp_path)
    form = KeyFrameClipSettings(4, 2, BoxedTransform(size=16, hue=0, saturation=0, value=0, around=2.0), 2)
    (batch,) = KeyFrameLoader(manifest, form, LoaderSettings(batch_size=4, shuffle=False)).epoch(0)
    # One box at .5 s and two at 1.5 s, in both videos.
    assert batch.video.shape == (6, 3, 4, 16, 16)
    assert batch.clip_index.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.ids == ("v0@0.5", "v0@1.5", "v0@1.5", "v1@0.5", "v1@1.5", "v1@1.5")
    assert batch.targets.tolist() == [[1, 0], [1, 1], [0, 0]] * 2
    views = KeyFrameViews(manifest, key_frames(manifest), form, SETTINGS)
    tested = [(index, part.video.shape[0], part.clip_index.tolist()) for (index,), part in views]
    assert tested == [(0, 1, [0]), (1, 2, [0, 1]), (2, 1, [0]), (3, 2, [0, 1])]


def test_colour() -> None:
    torch.manual_seed(0)
    clip = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    assert torch.equal(shift_color(clip, 0, 0, 0), clip)
    assert torch.equal(shift_color(clip, 360, 0, 0), clip)
    assert torch.equal(shift_color(clip, 120, 0, 0), clip[:, [2, 0, 1]])
    grey = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    assert torch.equal(shift_color(grey, 20, 0.1, 0.1), torch.full_like(grey, 126))
    pale = torch.tensor([200, 150, 150], dtype=torch.uint8).view(1, 3, 1, 1)
    assert shift_color(pale, 0, 0.1, 0).flatten().tolist() == [200, 130, 130]


# --- key frames and persons ------------------------------------------------------------------------------------------


def test_boxes_of_one_time_are_one_key_frame(tmp_path: Path) -> None:
    frames = key_frames(world(tmp_path))
    assert [(frame.video, frame.time, len(frame.boxes)) for frame in frames[:2]] == [("v0", 0.5, 1), ("v0", 1.5, 2)]
    assert frames[1].labels == ((0, 1), ())
    row = Sample(id="film_0902", path="film.mp4", group="film", attributes={"timestamp": "902"},
                 boxes=(Box(time=902, x1=0, y1=0, x2=1, y2=1, labels=(0,), actor=0),))  # fmt: skip
    write_manifest(tmp_path / "ava.jsonl", [row], ["a"])
    assert key_frames(read_manifest(tmp_path / "ava.jsonl"))[0].video == "film"
    write_manifest(tmp_path / "none.jsonl", [Sample(id="a", path="a.mp4")], ["a"])
    with pytest.raises(ManifestError, match="no row has boxes"):
        key_frames(read_manifest(tmp_path / "none.jsonl"))


def test_person_boxes_take_the_place_of_the_annotated_ones(tmp_path: Path) -> None:
    frames = key_frames(world(tmp_path))
    box = (0.1, 0.1, 0.5, 0.5)
    persons = {
        ("v0", 0.5): [(*box, 0.9), (*box, 0.7)],
        ("v0", 1.0): [(*box, 0.8)],
        ("v1", 0.5): [(*box, 0.5)],
        ("elsewhere", 0.5): [(*box, 1.0)],
    }
    found = with_detected_persons(frames, persons, 0.8)
    assert [(frame.video, frame.time, frame.scores.tolist()) for frame in found] == [
        ("v0", 0.5, [0.9]),
        ("v0", 1.0, [0.8]),
    ]


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches_depend_on_their_place_alone(tmp_path: Path) -> None:
    manifest = world(tmp_path)
    loader = KeyFrameLoader(manifest, FORM, SETTINGS)
    whole = list(loader.epoch(1))
    (last,) = KeyFrameLoader(manifest, FORM, LoaderSettings(batch_size=2, cache_megabytes=50)).epoch(1, start=1)
    assert len(whole) == len(loader) == 2
    for name in ("video", "clip_index", "boxes", "targets"):
        assert torch.equal(getattr(whole[1], name), getattr(last, name)), name
    assert sorted(name for batch in whole for name in batch.ids) == ["v0@0.5", "v0@1.5", "v1@0.5", "v1@1.5"]
    batch = whole[0]
    assert batch.video.shape == (2, 3, 4, 16, 16)
    assert len(batch.boxes) == len(batch.clip_index) == len(batch.targets)
    with pytest.raises(RecipeError, match="batch_size"):
        KeyFrameLoader(manifest, FORM, LoaderSettings(batch_size=5))


def test_targets_belong_to_their_boxes(tmp_path: Path) -> None:
    for batch in KeyFrameLoader(world(tmp_path), FORM, SETTINGS).epoch(0):
        for name, index in zip(batch.ids, range(2), strict=True):
            wide = (batch.boxes[:, 2] - batch.boxes[:, 0] > 3) & (batch.clip_index == index)
            for row in batch.targets[wide]:
                assert row.tolist() == ([1, 1] if name.endswith("1.5") else [1, 0])


def test_testing_sees_every_key_frame_whole_and_names_what_is_lost(tmp_path: Path) -> None:
    manifest = world(tmp_path)
    (tmp_path / "1.mp4").unlink()
    frames = key_frames(manifest)
    views = KeyFrameViews(manifest, frames, FORM, SETTINGS)
    seen = list(views)
    assert [index for (index,), _ in seen] == [0, 1]
    assert [clip.id for clip in views.unreadable] == ["v1", "v1"]
    batch = seen[0][1]
    assert batch.video.shape == (1, 3, 4, 16, 24)
    torch.testing.assert_close(batch.boxes, torch.tensor([[3.0, 4, 9, 12]]))
    levels = batch.video[0, 0, :, 8, 6].float() / 10  # number of the frame
    torch.testing.assert_close(levels, torch.tensor([3.0, 5, 7, 9]), atol=0.5, rtol=0)
