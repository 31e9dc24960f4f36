"""Boxes of persons from detectors of the transformers package: small random ones, saved in their own form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForObjectDetection, YolosConfig

from internvideo.apps.persons import PersonDetector, Persons, find_persons, write_persons
from internvideo.cli.persons import persons
from internvideo.data.manifest import Box, Manifest, Sample, read_manifest, write_manifest
from internvideo.datasets.ava import read_person_boxes
from internvideo.errors import VideoError, WeightsError
from internvideo.video.writer import write_video

HERE = torch.device("cpu")


def detector(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 6,
        "id2label": {0: "N/A", 1: "person"}, "label2id": {"N/A": 0, "person": 1},
    }  # fmt: skip
    AutoModelForObjectDetection.from_config(YolosConfig(**{**config, **changes})).save_pretrained(folder)
    told = {"size": {"shortest_edge": 64, "longest_edge": 96}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


def world(folder: Path) -> Manifest:
    """Two films whose frame n is of grey n, key frames at 1 and 2 s and at 1.5 s; a third one that is not there."""
    rows = []
    for name, times in (("a", (1.0, 2.0)), ("b", (1.5,)), ("gone", (1.0,))):
        if name != "gone":
            frames = (np.full((48, 64, 3), 4 * n, dtype=np.uint8) for n in range(30))
            write_video(folder / f"{name}.mp4", frames, 10, crf=1)
        boxes = tuple(Box(time=time, x1=0, y1=0, x2=0.5, y2=1, labels=(0,)) for time in times)
        rows.append(Sample(id=name, path=f"{name}.mp4", boxes=boxes))
    write_manifest(folder / "test.jsonl", rows, ["standing"])
    return read_manifest(folder / "test.jsonl")


def test_boxes_are_those_of_the_package_at_the_key_frame_itself(tmp_path: Path) -> None:
    found = find_persons(world(tmp_path), PersonDetector(str(detector(tmp_path / "yolos")), HERE), score_threshold=0.0)
    assert (found.read, [path for path, _ in found.unreadable]) == (3, ["gone.mp4"])
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "yolos").eval()
    frame = torch.full((1, 3, 64, 85), (4 * 20 / 255 - 0.5) / 0.25)  # grey 80 at 2 s, the short side 48 -> 64
    with torch.no_grad():
        output = model(pixel_values=frame)
    scores = output.logits.softmax(-1)[0, :, 1]
    best = int(scores.argmax())
    x, y, width, height = output.pred_boxes[0, best].tolist()
    row = next(row for row in found.rows if row[:2] == ("a", 2.0))
    assert row[6] == pytest.approx(scores[best].item(), abs=2e-3)  # the film is coded, its grey is off by one at most
    expected = np.clip([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 0, 1)
    assert row[2:6] == pytest.approx(expected.tolist(), abs=2e-3)


def test_the_file_is_read_as_the_evaluation_reads_it(tmp_path: Path) -> None:
    manifest = world(tmp_path)
    persons(
        manifest.source, str(detector(tmp_path / "yolos")), tmp_path / "persons.csv", score_threshold=0.0, device="cpu"
    )
    boxes = read_person_boxes(tmp_path / "persons.csv")
    assert set(boxes) == {("a", 1.0), ("a", 2.0), ("b", 1.5)}
    assert all(len(own) <= 6 for own in boxes.values())
    scores = [box[4] for box in boxes["a", 1.0]]
    assert scores == sorted(scores, reverse=True)


def test_times_are_written_whole_and_low_scores_are_left_out(tmp_path: Path) -> None:
    rows = [("film", 1234.567, 0.1, 0.2, 0.3, 0.4, 0.9), ("film", 902.0, 0.0, 0.0, 1.0, 1.0, 0.5)]
    write_persons(Persons(rows), tmp_path / "p.csv")
    assert set(read_person_boxes(tmp_path / "p.csv")) == {("film", 1234.567), ("film", 902.0)}
    found = find_persons(world(tmp_path), PersonDetector(str(detector(tmp_path / "yolos")), HERE), score_threshold=1.0)
    assert (found.rows, found.read) == ([], 3)


def test_a_detector_without_persons_or_of_another_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json"):
        PersonDetector(str(tmp_path), HERE)
    other = detector(tmp_path / "cats", id2label={0: "cat"}, label2id={"cat": 0})
    with pytest.raises(WeightsError, match="no 'person'"):
        PersonDetector(str(other), HERE)
    config = json.loads((other / "config.json").read_text()) | {"model_type": "bert"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="'bert'"):
        PersonDetector(str(other), HERE)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    folder = detector(tmp_path / "yolos")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        PersonDetector(str(folder), HERE)


def test_a_span_that_ends_behind_its_video_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row.model_copy(update={"span": (0.5, 9.0 if row.id == "a" else 2.9)}) for row in world(tmp_path).rows]
    write_manifest(tmp_path / "test.jsonl", rows, ["standing"])
    source = str(detector(tmp_path / "yolos"))
    persons(tmp_path / "test.jsonl", source, tmp_path / "persons.csv", device="cpu")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("the span")]
    assert told == ["the span of 'a' to 9 s of 3.000 s ends after its video and is read up to its end"]


def test_nothing_is_written_where_no_film_can_be_read(tmp_path: Path) -> None:
    manifest = world(tmp_path)
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "b.mp4").write_bytes(b"no film")
    with pytest.raises(VideoError, match="not one key frame"):
        persons(manifest.source, str(detector(tmp_path / "yolos")), tmp_path / "persons.csv", device="cpu")
    assert not (tmp_path / "persons.csv").exists()


def test_a_key_frame_outside_its_video_loses_no_other(tmp_path: Path) -> None:
    manifest = world(tmp_path)
    boxes = manifest.rows[0].boxes
    late = boxes[0].model_copy(update={"time": 902.0})
    rows = [manifest.rows[0].model_copy(update={"boxes": (*boxes, late)}), manifest.rows[1]]
    rows[1] = rows[1].model_copy(update={"boxes": (late,)})
    found = find_persons(replace(manifest, rows=tuple(rows)), PersonDetector(str(detector(tmp_path / "y")), HERE))
    assert {row[:2] for row in found.rows} == {("a", 1.0), ("a", 2.0)}
    assert found.read == 2
    assert [path for path, _ in found.unreadable] == ["a.mp4", "b.mp4"]
    assert "no frame at 902 s" in found.unreadable[0][1]
