"""`internvideo localize`: from a video file to segments and a timeline."""

from __future__ import annotations

import json
from pathlib import Path

import in_process
import pytest
from test_extract import movie, small_model
from test_temporal_localization import recipe

from internvideo.cli.localize import localize
from internvideo.data.manifest import Sample, Segment, write_manifest
from internvideo.errors import RecipeError
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import find_items
from internvideo.features.window_sampling import WindowRule
from internvideo.pipeline import run_recipe
from internvideo.plots.charts import timeline
from internvideo.recipe import build_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, features of two videos, and a detector that has hardly learned."""
    folder = tmp_path_factory.mktemp("localize")
    rows = []
    for number in range(4):
        movie(folder / f"v{number}.mp4", 40, number)
        segment = Segment(start=0.5, end=1.5, label=number % 2)
        rows.append(Sample(id=f"v{number}", path=f"v{number}.mp4", split="train", segments=(segment,)))
    write_manifest(folder / "m.jsonl", rows, ["jump", "run"])
    items, classes = find_items([folder / "m.jsonl"])
    model = small_model()
    model.save_pretrained(folder / "model")
    extract(items, model, folder / "features", ExtractSettings(WindowRule(4, 2)), classes=classes)
    settings = recipe(folder / "features", schedule={"steps": 8}).model_dump(mode="json")
    settings["model"]["overrides"]["input_width"] = 8
    run_recipe(build_recipe(settings), folder / "run", device="cpu")
    return folder


def test_segments_are_printed_and_drawn(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = trained / "run" / "model.safetensors"
    localize([trained / "v1.mp4"], str(trained / "model"), detector, score_threshold=0.0, output=tmp_path, device="cpu")
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("actions, video of 4.0 s")
    assert told[1].split()[-1] in ("jump", "run")
    assert (tmp_path / "v1.svg").read_text().startswith("<svg")
    words = ("localize", trained / "v1.mp4", "-e", trained / "model", "-d", detector, "--score-threshold", 0)
    content = json.loads(in_process.command(*words, "--device", "cpu", "--json").out)
    assert content["duration"] == 4.0
    assert all(0 <= action["start"] <= action["end"] <= 4.0 for action in content["actions"])


def test_kept_features_give_the_same_and_are_not_made_again(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "protocol.mp4").write_bytes((trained / "v2.mp4").read_bytes())  # a name of the folder's own files
    files = (trained / "v1.mp4", tmp_path / "broken.mp4", tmp_path / "protocol.mp4")
    words = ("localize", *files, "-e", trained / "model", "-d", trained / "run" / "model.safetensors", "--json")
    plain = in_process.command(*words, "--score-threshold", 0, "--device", "cpu")
    for _ in range(2):
        kept = in_process.command(
            *words, "--score-threshold", 0, "--device", "cpu", "--features", tmp_path / "features"
        )
        assert (kept.code, kept.out) == (plain.code, plain.out)
        assert (plain.code, len(plain.out.splitlines())) == (2, 2)
        made = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("*.npy")}
        assert len(made) == 2
        assert "1 of 3 could not be read" in kept.err
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("*.npy")}


def test_another_encoder_is_refused(trained: Path, tmp_path: Path) -> None:
    small_model(3).save_pretrained(tmp_path / "other")
    with pytest.raises(RecipeError, match="on whose features the detector was trained"):
        localize([trained / "v1.mp4"], str(tmp_path / "other"), trained / "run" / "model.safetensors", device="cpu")


def test_a_timeline_has_a_lane_for_each_class() -> None:
    picture = timeline(10.0, [(1, 2, "run", 0.9), (3, 4, "jump", 0.4)], [(1, 2, "run"), (5, 6, "sit")], "a <b>")
    assert all(f">{name}<" in picture for name in ("run", "jump", "sit"))
    assert picture.startswith("<svg")
    assert timeline(10.0, []).startswith("<svg"), "nothing was found"
