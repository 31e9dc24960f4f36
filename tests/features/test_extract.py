"""`internvideo extract`: windows in frames, resuming, sharing, and a folder that others read as it is."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import in_process
import numpy as np
import pytest
import torch
from torch import Tensor

from internvideo.data.manifest import Sample, Segment, write_manifest
from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError, RunError, VideoError
from internvideo.features.extract import ExtractSettings, extract, plan
from internvideo.features.feature_folder import FeatureFolder, find_items
from internvideo.features.feature_layers import create_feature_extractor, encode_tiles, tiled_frame_size
from internvideo.features.leases import LeaseQueue
from internvideo.features.window_sampling import WindowRule, frame_grid
from internvideo.inference.video_model import VideoModel
from internvideo.model_table import create_model
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector
from internvideo.video.reader import Video, VideoInfo, read_frames, read_video_info
from internvideo.video.writer import write_video

RULE = WindowRule(window_frames=4, stride_frames=2)


def small_model(seed: int = 0) -> VideoModel:
    torch.manual_seed(seed)
    sizes = {"image_size": 16, "patch_size": 8, "frames": 4, "width": 8, "depth": 2, "heads": 2, "num_classes": 3}
    module = create_model("videomae-s-classifier", sizes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return VideoModel("videomae-s-classifier", module, preprocessing=Preprocessing(4, 16, short_side=16))


def movie(path: Path, frames: int, seed: int = 0, fps: float = 10) -> Path:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, rng.integers(0, 255, (frames, 16, 24, 3), dtype=np.uint8), fps, crf=10)
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number, frames in enumerate((11, 3, 20)):
        movie(tmp_path / "videos" / f"v{number}.mp4", frames, number)
    return tmp_path / "videos"


def info(frames: int, fps: float = 10.0, times: list[float] | None = None) -> VideoInfo:
    shown = np.arange(frames) / fps if times is None else np.asarray(times)
    return VideoInfo("x", 8, 8, fps, frames, frames / fps, 0, "", "", times is not None, shown)


# --- where windows lie -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "window", "stride", "starts"),
    [(16, 16, 4, [0]), (19, 16, 4, [0]), (20, 16, 4, [0, 4]), (5, 16, 4, [0]), (48, 16, 16, [0, 16, 32])],
)
def test_all_windows_that_lie_in_the_video(frames: int, window: int, stride: int, starts: list[int]) -> None:
    grid = frame_grid(info(frames), WindowRule(window, stride))
    assert list(grid.starts) == starts
    assert [chosen[0] for chosen in grid.frame_indices(window)] == starts
    assert grid.frame_indices(window)[-1].tolist() == [min(starts[-1] + i, frames - 1) for i in range(window)]


def test_fewer_frames_are_the_middles_of_equal_pieces() -> None:
    assert frame_grid(info(24), WindowRule(24, 4)).frame_indices(8)[0].tolist() == [1, 4, 7, 10, 13, 16, 19, 22]


def test_another_rate_takes_what_is_shown_then() -> None:
    half = frame_grid(info(20), WindowRule(4, 2, fps=5.0))
    assert half.fps == 5.0
    assert half.indices.tolist() == list(range(0, 20, 2))
    varying = frame_grid(info(4, 10.0, [0.0, 0.1, 0.3, 0.31]), WindowRule(2, 1))
    assert varying.indices.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("wrong", [{"window_frames": 0}, {"stride_frames": 0}, {"fps": 0.0}, {"fps": float("nan")}])
def test_wrong_windows_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError):
        WindowRule(**wrong)  # type: ignore[arg-type]  # numbers


# --- what is written -------------------------------------------------------------------------------------------------


def test_a_row_is_the_model_on_the_frames_of_its_window(videos: Path, tmp_path: Path) -> None:
    model, (items, classes) = small_model(), find_items([videos])
    found = extract(items, model, tmp_path / "out", ExtractSettings(RULE, batch_size=3), classes=classes)
    assert (found.requested, found.read, found.vectors, found.dim) == (3, 3, 4 + 1 + 9, 8)
    rows = np.load(tmp_path / "out" / "v0.npy")
    assert rows.dtype == np.float32
    frames = read_frames(videos / "v0.mp4", range(11), short_side=16)
    for number in range(4):
        clip = model.preprocessing.transform_frames(frames[2 * number : 2 * number + 4])
        np.testing.assert_allclose(rows[number], model.encode_clips(clip[None])[0].numpy(), atol=1e-5)


def test_the_index_is_an_annotation_file(videos: Path, tmp_path: Path) -> None:
    rows = [
        Sample(id="a", path="v0.mp4", split="train", segments=(Segment(start=0.2, end=0.7, label=1),)),
        Sample(id="b", path="v2.mp4", split="test", span=(0.5, 1.5), segments=(Segment(start=0.4, end=9, label=0),)),
    ]
    write_manifest(videos / "m.jsonl", rows, ["run", "jump"])
    items, classes = find_items([videos / "m.jsonl"])
    extract(items, small_model(), tmp_path / "out", ExtractSettings(RULE), classes=classes)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    first, second = index["database"]["a"], index["database"]["b"]
    assert (first["subset"], first["fps"], first["frame"], first["duration"]) == ("train", 10.0, 11, 1.1)
    assert first["annotations"] == [{"label": "jump", "label_id": 1, "segment": [0.2, 0.7]}]
    assert second["annotations"] == [{"label": "run", "label_id": 0, "segment": [0.0, 1.0]}], "cut to the piece"
    assert second["vectors"] == 4
    assert index["protocol"]["window"] == 4
    assert (tmp_path / "out" / "classes.txt").read_text() == "run\njump\n"


def test_actions_in_another_unit_than_seconds_are_told(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segments = (
        Segment(start=2.0, end=7.0, label=0),
        Segment(start=0.4, end=9, label=0),
        Segment(start=0, end=2, label=0),
    )
    write_manifest(videos / "m.jsonl", [Sample(id="a", path="v0.mp4", segments=segments)], ["run"])
    items, classes = find_items([videos / "m.jsonl"])
    extract(items, small_model(), tmp_path / "out", ExtractSettings(RULE), classes=classes)
    assert "1 actions outside their video left out; times are seconds" in caplog.text
    assert "1 actions that end more than 1 s after their video end there now" in caplog.text
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(VideoError, match=r"is a \.json file.*internvideo prepare"):
        find_items([tmp_path / "annotations.json"])


@pytest.mark.parametrize("layer", ["1", "-1", "2"])
def test_a_layer_is_the_mean_of_its_tokens(layer: str) -> None:
    model = small_model()
    clips = torch.randint(0, 256, (3, 3, 4, 16, 16), dtype=torch.uint8)
    found = create_feature_extractor(model, layer)(clips)
    if layer in ("-1", "2"):
        torch.testing.assert_close(found, model.tokens(clips).mean(dim=1))
    else:
        assert not torch.allclose(found, model.tokens(clips).mean(dim=1))
    again = model.encode_clips(clips)
    torch.testing.assert_close(again, create_feature_extractor(model)(clips))


def test_scores_are_probabilities_and_unknown_layers_are_refused() -> None:
    model = small_model()
    scores = create_feature_extractor(model, "scores")(torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8))
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(2))
    for wrong in ("3", "0", "-3", "last"):
        with pytest.raises(RecipeError, match="layer"):
            create_feature_extractor(model, wrong)


def picture_model(name: str) -> tuple[VideoModel, Tensor]:
    """A model of 32 px with 4 x 4 tokens a frame, and clips for it."""
    torch.manual_seed(0)
    sizes: dict[str, object] = {"image_size": 32, "patch_size": 8, "frames": 4, "width": 16}
    sizes |= {"heads": 2, "num_classes": 3}
    if name == "uniformerv2-b16":
        sizes |= {"depth": 2, "heads": 2, "global_layers": [0, 1], "global_heads": 2, "local_blocks": 1}
        sizes |= {"mlp_factor": 2.0, "temporal_downsample": False}
    else:
        sizes["depth"] = 2
    module = create_model(name, sizes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    clips = torch.randint(0, 256, (3, 3, 4, 32, 32), dtype=torch.uint8)
    return VideoModel(name, module, preprocessing=Preprocessing(4, 32, short_side=32)), clips


def tokens_with_places(model: VideoModel, clips: Tensor) -> Tensor:
    """The last layer's tokens (B, T, 4, 4, D), by the layout that each model documents."""
    tokens = model.tokens(clips)
    if model.name == "uniformerv2-b16":
        return tokens.reshape(3, 4, 17, 16)[:, :, 1:].reshape(3, 4, 4, 4, 16)  # the class token is the first of a frame
    return tokens.reshape(3, 2, 4, 4, 16)


@pytest.mark.parametrize("name", ["videomae-s-classifier", "uniformerv2-b16"])
@pytest.mark.parametrize("grid", [2, 4])
def test_a_grid_keeps_where_things_are(name: str, grid: int) -> None:
    model, clips = picture_model(name)
    found = create_feature_extractor(model, "-1", grid)(clips)
    places, side = tokens_with_places(model, clips), 4 // grid
    cells = [
        places[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side].mean(dim=(1, 2, 3))
        for row in range(grid)
        for column in range(grid)
    ]
    assert found.shape == (3, grid * grid * 16)
    torch.testing.assert_close(found, torch.cat(cells, dim=1))


def test_a_detector_of_actions_in_boxes_gives_features_of_any_layer_and_frame() -> None:
    module = picture_model("action-detector-s")[0].module
    assert isinstance(module, ActionDetector)
    model = VideoModel("action-detector-s", module, preprocessing=Preprocessing(4, 48, short_side=48))
    clips = torch.randint(0, 256, (2, 3, 4, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        places = create_feature_extractor(model, "-1", 3)(clips).reshape(2, 9, 16)
        whole = module.grid_tokens(module.normalize(clips))
    assert (model.class_names, model.embed_dim) == ((), 16)
    torch.testing.assert_close(model.encode_clips(clips), whole.mean(dim=(1, 2, 3)))
    seen: list[Tensor] = []
    hook = module.blocks[-1].register_forward_hook(lambda block, inputs, output: seen.append(output))
    with torch.no_grad():
        module.grid_tokens(module.normalize(clips))
    hook.remove()
    torch.testing.assert_close(module.norm(seen[0]).view(2, 2, 6, 6, 16), whole)
    cell = seen[0].view(2, 2, 6, 6, 16)[:, :, 2:4, 4:6].mean(dim=(1, 2, 3))
    torch.testing.assert_close(places[:, 5], cell)


@pytest.mark.parametrize("layer", ["pooled", "scores", "-1"])
def test_tiles_are_clips_of_their_own(layer: str) -> None:
    model, _ = picture_model("videomae-s-classifier")
    frames = torch.randint(0, 256, (2, 3, 4, 64, 64), dtype=torch.uint8)
    encode = create_feature_extractor(model, layer)
    found = encode_tiles(encode, 32, 3)(frames)
    assert (tiled_frame_size(32, 3), tiled_frame_size(32, 1), tiled_frame_size(224, 2)) == (64, 32, 336)
    width = found.shape[1] // 9
    torch.testing.assert_close(found[:, 5 * width : 6 * width], encode(frames[..., 16:48, 32:64]))
    torch.testing.assert_close(found[:, 6 * width : 7 * width], encode(frames[..., 32:64, :32]))


def test_features_of_tiles_are_of_larger_frames(tmp_path: Path) -> None:
    path = movie(tmp_path / "v.mp4", 6)
    model = small_model()
    extract(find_items([path])[0], model, tmp_path / "out", ExtractSettings(RULE, tiles=2))
    frames = model.preprocessing.with_settings(size=24, short_side=24)
    with Video(path, short_side=24) as video:
        clip = frames.clips(video, 0.0, 0.4)[0]
    first = np.load(tmp_path / "out" / "v.npy")[0]
    corner = model.encode_clips(clip[None, ..., 8:24, 8:24])
    np.testing.assert_allclose(first[-8:], corner[0], rtol=1e-4, atol=1e-5)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert (index["protocol"]["tiles"], first.shape) == (2, (4 * 8,))
    with pytest.raises(RunError, match="tiles"):
        extract(find_items([path])[0], model, tmp_path / "out", ExtractSettings(RULE))


def test_a_grid_that_does_not_fit_is_refused() -> None:
    model, clips = picture_model("videomae-s-classifier")
    for layer in ("pooled", "scores"):
        with pytest.raises(RecipeError, match="spatial_pool_size"):
            create_feature_extractor(model, layer, 2)
    with pytest.raises(RecipeError, match="spatial_pool_size"):
        create_feature_extractor(model, "-1", 0)
    with pytest.raises(RecipeError, match="at most 4"):
        create_feature_extractor(model, "-1", 5)(clips)


def test_the_index_tells_the_grid_and_folders_without_one_go_on(videos: Path, tmp_path: Path) -> None:
    items, _ = find_items([videos])
    extract(items, small_model(), tmp_path / "out", ExtractSettings(RULE, "-1", spatial_pool_size=2))
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["protocol"]["grid"] == 2
    assert np.load(tmp_path / "out" / "v0.npy").shape[1] == 4 * 8
    with pytest.raises(RunError, match="grid"):
        extract(items, small_model(), tmp_path / "out", ExtractSettings(RULE, "-1"))
    extract(items, small_model(), tmp_path / "plain", ExtractSettings(RULE, "-1"))
    assert "grid" not in json.loads((tmp_path / "plain" / "index.json").read_text())["protocol"]


# --- going on --------------------------------------------------------------------------------------------------------


def test_finished_videos_are_kept_and_changed_ones_read_again(videos: Path, tmp_path: Path) -> None:
    items, _ = find_items([videos])
    first = extract(items[:2], small_model(), tmp_path / "out", ExtractSettings(RULE))
    assert (first.read, first.resumed) == (2, 0)
    movie(videos / "v0.mp4", 13, 7)
    second = extract(items, small_model(), tmp_path / "out", ExtractSettings(RULE))
    assert (second.read, second.resumed) == (2, 1)
    assert len(np.load(tmp_path / "out" / "v0.npy")) == 5
    assert set(json.loads((tmp_path / "out" / "index.json").read_text())["database"]) == {"v0", "v1", "v2"}
    assert [path.name for path in (tmp_path / "out" / ".work").iterdir() if path.suffix != ".json"] == []


def test_a_stopped_run_keeps_what_is_finished(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, _ = find_items([videos])
    model, calls = small_model(), []
    whole = model.encode_clips

    def stops(clips: torch.Tensor) -> torch.Tensor:
        calls.append(len(clips))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(clips)

    monkeypatch.setattr(model, "encode_clips", stops)
    with pytest.raises(KeyboardInterrupt):
        extract(items, model, tmp_path / "out", ExtractSettings(RULE, batch_size=4))
    assert set(json.loads((tmp_path / "out" / "index.json").read_text())["database"]) == {"v0", "v1"}
    found = extract(items, small_model(), tmp_path / "out", ExtractSettings(RULE, batch_size=4))
    assert (found.read, found.resumed) == (1, 2)


def test_another_model_or_other_windows_are_refused(videos: Path, tmp_path: Path) -> None:
    items, _ = find_items([videos])
    extract(items[:1], small_model(), tmp_path / "out", ExtractSettings(RULE))
    with pytest.raises(RunError, match="weights_sha256"):
        extract(items, small_model(1), tmp_path / "out", ExtractSettings(RULE))
    with pytest.raises(RunError, match="stride"):
        extract(items, small_model(), tmp_path / "out", ExtractSettings(WindowRule(4, 3)))
    assert extract(items, small_model(1), tmp_path / "out", ExtractSettings(RULE), overwrite=True).read == 3


def test_what_cannot_be_read_is_named_and_tried_again(videos: Path, tmp_path: Path) -> None:
    broken = videos / "v1.mp4"
    good = broken.read_bytes()
    broken.write_bytes(b"no video")
    items, _ = find_items([videos])
    found = extract(items, small_model(), tmp_path / "out", ExtractSettings(RULE))
    assert [lost.id for lost in found.unreadable] == ["v1"]
    assert json.loads((tmp_path / "out" / "index.json").read_text())["unreadable"][0]["id"] == "v1"
    broken.write_bytes(good)
    found = extract(items, small_model(), tmp_path / "out", ExtractSettings(RULE))
    assert (found.read, found.resumed, found.unreadable) == (1, 2, [])
    assert json.loads((tmp_path / "out" / "index.json").read_text())["unreadable"] == []


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"a\.mp4"):
        extract(find_items([tmp_path / "a.mp4"])[0], small_model(), tmp_path / "out", ExtractSettings(RULE))


def test_equal_names_get_the_names_of_their_folders(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        movie(tmp_path / folder / "clip.mp4", 5)
    assert [item.id for item in find_items([tmp_path], recursive=True)[0]] == ["one_clip", "two_clip"]


def test_a_dry_run_tells_vectors_and_reads_nothing(videos: Path, tmp_path: Path) -> None:
    (videos / "v1.mp4").write_bytes(b"no video")
    lines = list(plan(find_items([videos])[0], tmp_path / "out", RULE))
    assert lines[0].endswith("v0.npy: 4 vectors of 1.1 s at 10 fps")
    assert lines[1].startswith("unreadable")
    assert lines[-1].startswith("2 read, 0 done, 1 unreadable; 13 vectors")
    assert not (tmp_path / "out").exists()


def test_workers_give_the_same_files(videos: Path, tmp_path: Path) -> None:
    items, _ = find_items([videos])
    for name, workers in (("alone", 0), ("workers", 2)):
        extract(items, small_model(), tmp_path / name, ExtractSettings(RULE, workers=workers))
    for item in items:
        here, there = (np.load(tmp_path / name / f"{item.id}.npy") for name in ("alone", "workers"))
        np.testing.assert_allclose(here, there, atol=1e-6)


# --- sharing ---------------------------------------------------------------------------------------------------------


def test_videos_of_others_are_left_to_them(videos: Path, tmp_path: Path) -> None:
    items, _ = find_items([videos])
    theirs = LeaseQueue(FeatureFolder(tmp_path / "out").work)
    assert theirs.acquire("v1")
    found = extract(items, small_model(), tmp_path / "out", ExtractSettings(RULE))
    assert (found.read, found.other_workers) == (2, 1)
    assert not (tmp_path / "out" / "v1.npy").exists()


def test_the_command_runs_twice_on_one_folder(videos: Path, tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model")
    words = ("extract", videos, "-o", tmp_path / "out", "-e", tmp_path / "model")
    words += ("--window-frames", 4, "--stride-frames", 2, "--device", "cpu")
    runs = [forked.fork(in_process.command, *words) for _ in range(2)]
    told = [run.told() for run in runs]
    assert [run.code for run in told] == [0, 0], told
    database = json.loads((tmp_path / "out" / "index.json").read_text())["database"]
    assert {name: entry["vectors"] for name, entry in database.items()} == {"v0": 4, "v1": 1, "v2": 9}
    assert read_video_info(videos / "v0.mp4").frames == 11
