"""`internvideo fit`: from a folder of folders to a saved classifier, and every mistake in one line."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import colour_clips
import in_process
import numpy as np
import pytest
import small_apps
import torch
from rich.console import Console
from torch import Tensor

from internvideo.cli.fit import fit as command
from internvideo.data.manifest import Manifest, read_manifest, write_manifest
from internvideo.errors import InternVideoError, ManifestError, RecipeError, RunError
from internvideo.inference.video_model import VideoModel
from internvideo.probing import cached_features as caching
from internvideo.probing.cached_features import FeatureCache, cache_key, read_features
from internvideo.probing.fit import CLASSIFIER_FILE, FitResult, FitSettings, fit
from internvideo.probing.probe import UNKNOWN, Probe


@cache
def clips() -> Path:
    return colour_clips.write_clips(Path(mkdtemp(prefix="internvideo-colours-")) / "clips", parts=2)


@pytest.fixture(scope="module", autouse=True)
def _tidy() -> Any:
    yield
    shutil.rmtree(clips().parent, ignore_errors=True)


def run(source: Path, output: Path, **settings: Any) -> tuple[FitResult, dict[str, Any], str]:
    """A fit, its report.json and what it printed."""
    told = io.StringIO()
    features = settings.pop("features", None)
    chosen = FitSettings(**{"workers": 0, "folds": 2, **settings})
    fitted = fit(
        source, colour_clips.encoder(), output, chosen, features=features, console=Console(file=told, width=200)
    )
    return fitted, json.loads((output / "report.json").read_text(encoding="utf-8")), told.getvalue()


class Counting:
    """Counts the clips that a model encodes; may break off after some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 10**9) -> None:
        self.clips, self.most, whole = 0, most, VideoModel.encode_clips

        def count(model: VideoModel, video: Tensor) -> Tensor:
            if self.clips >= self.most:
                raise KeyboardInterrupt
            self.clips += len(video)
            return whole(model, video)

        monkeypatch.setattr(VideoModel, "encode_clips", count)


# ------------------------------------------------------------------------------------------------------- the whole run


def test_a_folder_of_folders_becomes_a_classifier(tmp_path: Path) -> None:
    fitted, report, told = run(clips(), tmp_path / "fit", group_pattern=r"(.+)_part\d", folds=5)
    figures, protocol = report["figures"], report["protocol"]
    assert figures["top1"] > 0.9 > figures["majority"]
    assert figures["chance"] == pytest.approx(1 / 3)
    assert set(report["intervals"]) >= {"top1", "mean_class", "nearest_mean", "known_accepted"}
    assert len(report["folds"]) == protocol["folds"] == 5
    assert (protocol["videos"], protocol["sources"], protocol["classes"]) == (36, 18, 3)
    assert protocol["preprocessing"] == colour_clips.encoder().preprocessing.to_json()
    assert {"weights_sha256", "split_sha256", "frames", "temperature", "threshold"} <= protocol.keys()
    assert report["coverage"] == {"asked": 36, "read": 36, "unreadable": []}
    assert np.asarray(report["confusion"]).sum() == 36
    assert set(report["unknown_classes"]["classes"]) == set(colour_clips.COLOURS)
    assert report["seconds"].keys() == {"features", "fit"}
    picture = (tmp_path / "fit/confusion.svg").read_text(encoding="utf-8")
    assert picture.startswith("<?xml")
    assert all(name in picture for name in colour_clips.COLOURS)
    assert "36 videos of 18 groups" in told
    assert "counts as a separate group" not in told
    assert re.search(r"features of 36 videos: [\d.]+ s, [\d.]+ s each", told)
    assert re.search(r"features [\d.]+ s \(36 of 36 videos computed\), fit [\d.]+ s", told)
    probe = Probe.load(tmp_path / "fit" / CLASSIFIER_FILE)
    assert probe.classes == tuple(colour_clips.COLOURS)
    assert probe.metadata["figures"]["top1"] == figures["top1"]
    videos = [clips() / name / "clip_03_part0.mp4" for name in colour_clips.COLOURS]
    answers = probe.classify(colour_clips.encoder(), videos)
    assert [max(answer, key=lambda name: answer[name]) for answer in answers] == list(colour_clips.COLOURS)
    assert fitted.probe.predict(torch.zeros(1, 48))[0].keys() == answers[0].keys() >= {UNKNOWN}


def test_the_same_command_goes_on_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "SAVE_INTERVAL_S", 0.0)
    broken = Counting(monkeypatch, most=16)
    with pytest.raises(KeyboardInterrupt):
        run(clips(), tmp_path / "fit")
    assert broken.clips == 16
    assert len(list((tmp_path / "fit/features").glob("*.part-*.safetensors"))) == 2
    monkeypatch.undo()
    rest = Counting(monkeypatch)
    _, report, told = run(clips(), tmp_path / "fit")
    assert rest.clips == 20
    assert "features of 20 videos" in told
    assert "every video counts as a separate group" in told
    assert [path.name.count(".part-") for path in (tmp_path / "fit/features").iterdir()] == [0]
    _, again, told = run(clips(), tmp_path / "fit")
    assert rest.clips == 20
    assert "(0 of 36 videos computed)" in told
    whole = run(clips(), tmp_path / "other")[1]
    for name in ("figures", "intervals", "confusion", "folds", "surest_mistakes"):
        assert report[name] == again[name] == whole[name], name


def test_rows_marked_test_are_only_judged_on(tmp_path: Path) -> None:
    manifest = read_manifest(clips())
    rows = [
        row.model_copy(
            update={
                "path": str(clips() / row.path),
                "group": row.path.split("_part")[0],
                "split": "test" if "clip_05" in row.path or "clip_04" in row.path else "train",
            }
        )
        for row in manifest.rows
    ]
    write_manifest(tmp_path / "all.jsonl", rows, manifest.classes)
    _, report, _ = run(tmp_path / "all.jsonl", tmp_path / "fit", features=tmp_path / "shared")
    assert report["figures"]["test_top1"] > 0.9
    assert (report["protocol"]["videos"], report["protocol"]["test_videos"]) == (24, 12)
    assert np.asarray(report["confusion"]).sum() == 12
    _, alone, told = run(tmp_path / "all.jsonl", tmp_path / "alone", use_splits=False, features=tmp_path / "shared")
    assert "test_top1" not in alone["figures"]
    assert alone["protocol"]["videos"] == 36
    assert "(0 of 36 videos computed)" in told
    rows[-1] = rows[-1].model_copy(update={"split": "train"})
    write_manifest(tmp_path / "all.jsonl", rows, manifest.classes)
    with pytest.raises(ManifestError, match="1 groups have videos in both train and test"):
        run(tmp_path / "all.jsonl", tmp_path / "divided")
    rows[-1] = rows[-1].model_copy(update={"split": "tset"})
    write_manifest(tmp_path / "all.jsonl", rows, manifest.classes)
    with pytest.raises(ManifestError, match="split 'tset'"):
        run(tmp_path / "all.jsonl", tmp_path / "divided")


def test_unreadable_videos_are_counted_and_named_and_look_alikes_told(tmp_path: Path) -> None:
    source = tmp_path / "clips"
    shutil.copytree(clips(), source)
    (source / "red/clip_00_part0.mp4").write_bytes(b"no video")
    shutil.copy(source / "blue/clip_02_part0.mp4", source / "blue/copy.mp4")
    _, report, told = run(source, tmp_path / "fit")
    assert report["coverage"]["asked"] == 37
    assert report["coverage"]["read"] == 36
    (lost,) = report["coverage"]["unreadable"]
    assert lost["id"] == "red/clip_00_part0.mp4"
    assert lost["reason"]
    assert "1 videos cannot be read and are left out, such as 'red/clip_00_part0.mp4'" in told
    pairs = [set(pair["ids"]) for pair in report["near_duplicates"]]
    assert {"blue/clip_02_part0.mp4", "blue/copy.mp4"} in pairs
    assert "have nearly equal features" in told
    for place in range(1, 12):
        (source / f"red/clip_{place // 2:02d}_part{place % 2}.mp4").write_bytes(b"no video")
    with pytest.raises(ManifestError, match=r"class 'red' has no video \(12 videos cannot be read\)"):
        run(source, tmp_path / "worse")


def test_an_attentive_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from internvideo.probing import probe_fit

    monkeypatch.setattr(probe_fit, "EPOCHS", 10)
    _, report, _ = run(clips(), tmp_path / "fit", head="attentive")
    assert report["figures"]["top1"] > 0.9
    probe = Probe.load(tmp_path / "fit" / CLASSIFIER_FILE)
    assert probe.head.kind == "tokens"
    (answer,) = probe.classify(colour_clips.encoder(), clips() / "red/clip_03_part1.mp4")
    assert next(iter(answer)) == "red"


# --------------------------------------------------------------------------------------------------------- the cache


def some(count: int = 5) -> Manifest:
    manifest = read_manifest(clips())
    return replace(manifest, rows=manifest.rows[:count])


def test_features_are_those_of_the_model(tmp_path: Path) -> None:
    model, manifest = colour_clips.encoder(), some()
    found = read_features(model, manifest, tmp_path, batch_size=2)
    plain = model.encode_video([manifest.video_path(row) for row in manifest.rows], normalize=False)
    torch.testing.assert_close(found.values, plain)
    assert found.row_index.tolist() == [0, 1, 2, 3, 4]
    workers = read_features(model, manifest, tmp_path / "workers", batch_size=3, workers=1)
    torch.testing.assert_close(workers.values, found.values)


def test_tokens_are_averaged_to_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = colour_clips.encoder()
    every = read_features(model, some(2), tmp_path, kind="tokens").values
    assert every.dtype == torch.float16
    assert every.shape == (2, 32, 48)
    monkeypatch.setattr(caching, "MAX_TOKENS", 8)
    fewer = read_features(model, some(2), tmp_path, kind="tokens").values
    torch.testing.assert_close(fewer, every.float().reshape(2, 8, 4, 48).mean(dim=2).half(), atol=2e-3, rtol=2e-3)


def test_only_what_changed_is_computed_again(tmp_path: Path) -> None:
    source = tmp_path / "clips"
    shutil.copytree(clips() / "red", source)
    model, manifest = colour_clips.encoder(), read_manifest(source)
    first = read_features(model, manifest, tmp_path / "cache")
    assert first.num_computed == 12
    relabelled = replace(manifest, rows=tuple(row.model_copy(update={"group": "g"}) for row in manifest.rows))
    assert read_features(model, relabelled, tmp_path / "cache").num_computed == 0
    changed = source / "clip_02_part0.mp4"
    shutil.copy(clips() / "blue/clip_02_part0.mp4", changed)
    os.utime(changed, ns=(1, 1))
    again = read_features(model, manifest, tmp_path / "cache")
    assert again.num_computed == 1
    assert (again.values != first.values).any(dim=1).sum() == 1
    other = small_apps.random_model("supervised_multimodal")
    assert read_features(other, manifest, tmp_path / "cache").num_computed == 12
    assert cache_key(model, "video") != cache_key(model, "tokens") != cache_key(other, "tokens")
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"damaged")
    assert read_features(model, manifest, tmp_path / "cache").num_computed == 12


def test_two_rows_of_one_file_are_encoded_once_a_piece(tmp_path: Path) -> None:
    row = some(1).rows[0]
    spans = {"a": None, "b": None, "c": (0.0, 0.4)}
    rows = [row.model_copy(update={"id": name, "span": span}) for name, span in spans.items()]
    found = read_features(colour_clips.encoder(), replace(some(1), rows=tuple(rows)), tmp_path)
    assert found.num_computed == 2
    assert torch.equal(found.values[0], found.values[1])
    assert not torch.equal(found.values[0], found.values[2])


def test_a_feature_that_is_not_finite_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VideoModel, "encode_clips", lambda model, video: torch.full((len(video), 48), torch.nan))
    with pytest.raises(RunError, match=r"blue/clip_00_part0\.mp4: vector at 0 s is not finite"):
        read_features(colour_clips.encoder(), some(), tmp_path)


def test_parts_are_numbered_on(tmp_path: Path) -> None:
    store = FeatureCache(tmp_path, "video-x")
    store.add({"a": torch.ones(2)})
    store.add({"b": torch.zeros(2)})
    assert [path.name[:18] for path in store.part_files()] == ["video-x.part-00000", "video-x.part-00001"]
    other = FeatureCache(tmp_path, "video-x")
    other.load()
    other.merge_parts()
    assert sorted(other.rows) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["video-x.safetensors"]


def test_two_fits_on_one_folder_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = FeatureCache(tmp_path, "video-x"), FeatureCache(tmp_path, "video-x")
    monkeypatch.setattr(FeatureCache, "part_files", lambda cache: [])  # both count before either has written
    one.add({"a": torch.ones(2)})
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: 1)
        other.add({"b": torch.zeros(2)})
    monkeypatch.undo()
    assert len(one.part_files()) == 2
    seen = one.part_files()
    other.merge_parts()
    monkeypatch.setattr(FeatureCache, "part_files", lambda cache: seen)  # listed before the other one joined them
    one.merge_parts()
    whole = FeatureCache(tmp_path, "video-x")
    monkeypatch.undo()
    whole.load()
    assert sorted(whole.rows) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["video-x.safetensors"]


# ----------------------------------------------------------------------------------------------------------- mistakes


def one_line(error: InternVideoError) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_too_little_to_learn_from(tmp_path: Path) -> None:
    source = tmp_path / "clips"
    (source / "red").mkdir(parents=True)
    with pytest.raises(ManifestError) as told:
        run(source, tmp_path / "fit")
    assert "no video in this folder" in one_line(told.value)
    shutil.copy(clips() / "red/clip_00_part0.mp4", source / "red/a.mp4")
    shutil.copy(clips() / "red/clip_01_part0.mp4", source / "red/b.mp4")
    with pytest.raises(ManifestError) as told:
        run(source, tmp_path / "fit")
    assert "1 class, 'red'" in one_line(told.value)
    (source / "green").mkdir()
    shutil.copy(clips() / "green/clip_00_part0.mp4", source / "green/a.mp4")
    with pytest.raises(ManifestError) as told:
        run(source, tmp_path / "fit")
    assert "class 'green' has one video" in one_line(told.value)
    (source / "green").rename(source / "unknown")
    shutil.copy(clips() / "green/clip_01_part0.mp4", source / "unknown/b.mp4")
    with pytest.raises(ManifestError) as told:
        run(source, tmp_path / "fit")
    assert "a class called 'unknown'" in one_line(told.value)
    with pytest.raises(ManifestError) as missing:
        run(source / "red", tmp_path / "fit")
    assert "have no label" in one_line(missing.value)
    assert not (tmp_path / "fit").exists()


def test_two_videos_a_class_are_enough(tmp_path: Path) -> None:
    source = colour_clips.write_clips(tmp_path / "clips", each=2, classes=("blue", "red"))
    _, report, _ = run(source, tmp_path / "fit")
    assert report["protocol"]["folds"] == 2
    assert report["protocol"]["threshold"] == -1
    assert report["unknown_classes"] is None


def test_the_folder_of_another_fit(tmp_path: Path) -> None:
    run(clips(), tmp_path / "fit")
    before = (tmp_path / "fit" / CLASSIFIER_FILE).read_bytes()
    with pytest.raises(RunError) as told:
        run(clips(), tmp_path / "fit", folds=3)
    assert "folds" in one_line(told.value)
    assert (tmp_path / "fit" / CLASSIFIER_FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"head": "round"}, "--head: found 'round'; expected: linear, attentive"),
        ({"folds": 1}, "--folds"),
        ({"accept_known": 1.0}, "--accept-known"),
        ({"seed": -1}, "--seed"),
        ({"batch_size": 0}, "--batch-size"),
        ({"workers": -1}, "--workers"),
    ],
)
def test_wrong_settings(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as told:
        FitSettings(**setting)
    assert said in one_line(told.value)


def test_the_command(tmp_path: Path) -> None:
    model, output = tmp_path / "model", tmp_path / "fit"
    colour_clips.encoder().save_pretrained(model)
    words = ("-e", model, "-o", output, "--folds", 2, "--workers", 0, "--device", "cpu")
    told = in_process.command("fit", clips(), *words)
    assert told.code == 0, told.err
    assert f"classifier: {output / CLASSIFIER_FILE}" in told.out
    assert f"internvideo classify FILE --encoder {model} --model {output / CLASSIFIER_FILE}" in told.out
    assert Probe.load(output / CLASSIFIER_FILE).encoder.source
    wrong = in_process.command("fit", clips() / "red", *words)
    assert wrong.out == ""
    assert "have no label" in wrong.mistake()


def test_mistakes_are_told_before_a_model_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        command(tmp_path / "none", "no model at all", tmp_path / "other")
    with pytest.raises(RecipeError, match="--folds"):
        command(clips(), "no model at all", tmp_path / "other", folds=1)
    with pytest.raises(InternVideoError, match="no model at all"):
        command(clips(), "no model at all", tmp_path / "other")
    assert not (tmp_path / "other").exists()
