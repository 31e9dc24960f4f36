"""Zero-shot recognition, retrieval and multiple choice on towers that read the answer from the pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from goldens_folder import GOLDENS
from task_world import CLASSES, CLIPS, CPU, Source, Towers, Words, manifest

from internvideo.errors import ManifestError, RunError
from internvideo.tasks.multiple_choice import predict as multiple_choice
from internvideo.tasks.protocol import ClipInputs, ClipProtocol
from internvideo.tasks.retrieval import predict as retrieval
from internvideo.tasks.table import Predictions
from internvideo.tasks.zero_shot import predict as zero_shot
from internvideo.tasks.zero_shot.templates import ACTION_TEMPLATES, fill_templates

VIEWS = ClipProtocol(frames=2, size=4, num_clips=3, num_crops=1)


def retrieve(videos: int = 12, captions: str = "first", clips: ClipProtocol = CLIPS, **source: object) -> Predictions:
    rows = manifest(videos)
    clip_source = Source(rows, clips, **source)  # type: ignore[arg-type]  # test settings
    inputs = ClipInputs(Towers(), clip_source, rows, clips, CPU)
    return retrieval.predict(inputs, Words(), captions=captions)  # type: ignore[arg-type]  # test settings


def test_templates_are_the_published_sixteen_in_template_major_order() -> None:
    stored = json.loads((GOLDENS / "tasks/classification/expected.json").read_text("utf-8"))["zero_shot"]
    assert len(ACTION_TEMPLATES) == len(set(ACTION_TEMPLATES)) == stored["templates"]
    texts = fill_templates(ACTION_TEMPLATES, ["run", "jump"])
    assert texts[:3] == ["a photo of action run", "a photo of action jump", "a picture of action run"]
    assert len(texts) == 32
    for wrong in ("no place", "{} and {}"):
        with pytest.raises(ValueError, match="exactly one"):
            fill_templates([wrong], ["run"])


def test_zero_shot_reads_the_class_and_shows_the_plain_name_beside() -> None:
    rows, model = manifest(12), Towers()
    source = Source(rows, VIEWS, unreadable=[5], shift={(0, 1): 1, (1, 0): 1, (1, 1): 1})
    table = zero_shot.predict(ClipInputs(model, source, rows, VIEWS, CPU, "towers"), Words())
    result = zero_shot.score(table)
    assert table["text"].shape == (16, 6, 38)
    assert result["figures"]["top1"] == pytest.approx(10 / 11)
    assert result["figures"]["top1_plain_name"] == pytest.approx(10 / 11)
    assert result["figures"]["mean_class"] == pytest.approx((1 + 0.5 + 1 + 1 + 1 + 1) / 6)
    assert result["protocol"]["templates"] == list(ACTION_TEMPLATES)
    assert result["coverage"]["read"] == 11


def test_zero_shot_needs_labels_and_finite_features() -> None:
    rows, model = manifest(6), Towers()
    with pytest.raises(ManifestError, match="no label"):
        zero_shot.predict(ClipInputs(model, Source(rows), manifest(6, label=None), CLIPS, CPU), Words())
    model.broken = True
    with pytest.raises(RunError, match="video is NaN or infinite"):
        zero_shot.predict(ClipInputs(model, Source(rows), rows, CLIPS, CPU), Words())


def test_retrieval_both_ways_raw_and_processed() -> None:
    result = retrieval.score(retrieve())
    for direction in ("t2v", "v2t"):
        for suffix in ("", "_dual_softmax"):
            assert result["figures"][f"{direction}_r1{suffix}"] == 1
            assert result["figures"][f"{direction}_median_rank{suffix}"] == 1
            assert result["intervals"][f"{direction}_mean_rank{suffix}"] == [1, 1]
    assert result["protocol"]["chance_r1"] == pytest.approx(1 / 12)
    assert result["protocol"]["captions"] == "first"
    assert result["protocol"]["ties"] == {"rule": "pessimistic", "queries": 0}
    assert result["protocol"]["captions_of_several_videos"] == 0


def test_a_swapped_video_costs_its_ranks() -> None:
    figures = retrieval.score(retrieve(shift={(0, 0): 1}))["figures"]  # clip 0 shows what clip 1 shows
    assert figures["t2v_r1"] == pytest.approx(10 / 12)  # neither caption finds its video alone in front
    assert figures["t2v_r5"] >= 11 / 12


def test_unreadable_videos_leave_with_their_captions() -> None:
    table = retrieve(captions="all", unreadable=[3])
    assert len(table["captions"]) == 22
    assert not any(text.endswith(" 3") for text in table["captions"].tolist())
    result = retrieval.score(table)
    assert result["coverage"]["unreadable"] == [{"id": "clip3", "path": "3.mp4", "reason": "no frame"}]
    assert result["protocol"]["texts"] == 22
    assert result["figures"]["t2v_r1"] == result["figures"]["v2t_r1"] == 1


def test_joined_captions_and_views() -> None:
    table = retrieve(captions="joined", clips=VIEWS, shift={(0, 2): 1})
    assert table["captions"].tolist()[0] == "jump 0 again jump 0"
    assert table["video"].shape == (12, 38)
    assert retrieval.score(table)["figures"]["v2t_r1"] == 1


def test_a_model_that_says_the_same_of_everything_finds_nothing() -> None:
    table = retrieve()
    flat = Predictions(
        table.task, {**table.arrays, "video": np.ones_like(table["video"])}, table.protocol, table.coverage
    )
    result = retrieval.score(flat)
    assert result["figures"]["t2v_r1"] == 0
    assert result["protocol"]["ties"]["queries"] == 12


def test_rows_without_captions_or_choices_are_told() -> None:
    rows = manifest(4)
    with pytest.raises(ManifestError, match="have no caption, first 'clip0'"):
        retrieval.predict(ClipInputs(Towers(), Source(rows), manifest(4, captions=()), CLIPS, CPU), Words())
    with pytest.raises(ManifestError, match="have no choices, first 'clip0'"):
        multiple_choice.predict(ClipInputs(Towers(), Source(rows), manifest(4, choices=None), CLIPS, CPU), Words())


def test_multiple_choice_with_unequal_numbers_of_options() -> None:
    rows = manifest(12)
    source = Source(rows, shift={(0, 0): 1}, unreadable=[11])
    table = multiple_choice.predict(ClipInputs(Towers(), source, rows, CLIPS, CPU), Words())
    result = multiple_choice.score(table)
    assert table["options"].tolist() == [3, 4, 5] * 3 + [3, 4]
    assert result["figures"]["accuracy"] == pytest.approx(10 / 11)
    assert result["protocol"]["chance_accuracy"] == pytest.approx(np.mean([1 / 3, 1 / 4, 1 / 5] * 3 + [1 / 3, 1 / 4]))
    assert len(CLASSES) == 6
