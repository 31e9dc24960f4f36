"""Recognition: predictions, views, coverage, ensembles, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from task_world import CLIPS, CPU, Reader, Source, TwoReaders, manifest

from internvideo.errors import ManifestError, RecipeError, RunError
from internvideo.metrics.classification import softmax
from internvideo.tasks.protocol import ClipInputs, ClipProtocol
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.table import Predictions

VIEWS = ClipProtocol(frames=2, size=4, num_clips=3, num_crops=1)


def run(
    videos: int = 12, clips: ClipProtocol = CLIPS, model: torch.nn.Module | None = None, **source: object
) -> Predictions:
    rows, chosen = manifest(videos), model or Reader()
    scorer = (
        recognition.interaction_scorer(chosen, 2)
        if isinstance(chosen, TwoReaders)
        else recognition.classifier_scorer(chosen)
    )
    clip_source = Source(rows, clips, **source)  # type: ignore[arg-type]  # test settings
    even = {"even": lambda row: row.label is not None and row.label % 2 == 0}
    return recognition.predict(ClipInputs(chosen, clip_source, rows, clips, CPU, "reader"), scorer, subsets=even)


def test_a_right_model_is_right_and_the_protocol_says_how() -> None:
    result = recognition.score(run())
    assert result["figures"]["top1"] == 1
    assert result["figures"]["mean_class"] == 1
    assert result["figures"]["top1_even"] == 1
    assert result["intervals"]["top1"] == [1, 1]
    assert result["coverage"] == {"asked": 12, "read": 12, "unreadable": []}
    protocol = result["protocol"]
    assert (protocol["frames"], protocol["views"], protocol["crops"], protocol["size"]) == (2, 1, 1, 4)
    assert protocol["model"] == "reader"
    assert len(protocol["weights_sha256"]) == 64
    assert protocol["split_sha256"] == manifest(12).fingerprint
    assert protocol["splits"] == ["test"]
    assert protocol["bootstrap"]["draws"] == 1000


def test_wrong_clips_lower_exactly_their_figures() -> None:
    result = recognition.score(run(shift={(0, 0): 1, (3, 0): 1}))
    assert result["figures"]["top1"] == pytest.approx(10 / 12)
    assert result["figures"]["top1_even"] == pytest.approx(5 / 6)
    low, high = result["intervals"]["top1"]
    assert low < 10 / 12 < high


def test_views_are_merged_and_the_middle_one_shown_beside() -> None:
    result = recognition.score(run(clips=VIEWS, shift={(0, 1): 1, (4, 0): 1, (5, 0): 1, (5, 2): 1}))
    assert result["figures"]["top1"] == pytest.approx(11 / 12)  # clip 5 loses two of three views
    assert result["figures"]["top1_one_view"] == pytest.approx(11 / 12)  # clip 0 loses its middle view
    assert result["protocol"]["merge"] == "softmax mean"


def test_an_unreadable_video_is_named_and_not_replaced() -> None:
    table = run(unreadable=[2, 7], shift={(0, 0): 1})
    result = recognition.score(table)
    assert result["coverage"]["asked"] == 12
    assert result["coverage"]["read"] == 10
    assert [lost["id"] for lost in result["coverage"]["unreadable"]] == ["clip2", "clip7"]
    assert result["coverage"]["unreadable"][0]["reason"] == "no frame"
    assert result["figures"]["top1"] == pytest.approx(0.9)
    assert "clip2" not in table["ids"].tolist()


def test_a_video_that_breaks_half_way_is_not_scored_on_its_first_views() -> None:
    rows, model = manifest(6), Reader()
    source = Source(rows, VIEWS, leave_out=[(1, 2)])

    class Breaks(Source):
        def __iter__(self):  # type: ignore[no-untyped-def]  # as Source
            yield from source
            self.unreadable = [("clip1", "1.mp4", "broken at 3 s")]

    inputs = ClipInputs(model, Breaks(rows, VIEWS), rows, VIEWS, CPU)
    table = recognition.predict(inputs, recognition.classifier_scorer(model))
    assert table["ids"].tolist() == ["clip0", "clip2", "clip3", "clip4", "clip5"]
    assert len(table["sample"]) == 15
    assert recognition.score(table)["figures"]["top1"] == 1


def test_interaction_gives_three_columns_from_one_clip() -> None:
    model = TwoReaders().train()
    table = run(model=model)
    figures = recognition.score(table)["figures"]
    assert recognition.columns(table) == ["masked", "multimodal", "fused"]
    assert figures["masked.top1"] == 0  # constant scores earn nothing
    assert figures["multimodal.top1"] == figures["fused.top1"] == 1
    assert set(model.frames) == {(2, 1)}
    assert model.training
    with pytest.raises(RunError, match="3 score columns"):
        recognition.probabilities(table)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"leave_out": [(3, 0)]}, "of 'clip3'"),
        ({"unreadable": range(12)}, "none of 12 videos could be read"),
        ({"clips": ClipProtocol(frames=2, size=4, num_clips=2), "leave_out": [(3, 1)]}, r"clips \[0\] of 'clip3'"),
    ],
)
def test_missing_clips_are_an_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        run(**settings)  # type: ignore[arg-type]  # test settings


def test_doubled_clips_and_other_forms_are_an_error() -> None:
    rows, model = manifest(6), Reader()
    scorer = recognition.classifier_scorer(model)

    class Doubled(Source):
        def __iter__(self):  # type: ignore[no-untyped-def]  # as Source
            yield from super().__iter__()
            yield from super().__iter__()

    with pytest.raises(RunError, match=r"clips \[0, 0\] of 'clip0'"):
        recognition.predict(ClipInputs(model, Doubled(rows), rows, CLIPS, CPU), scorer)
    other = ClipProtocol(frames=3, size=4)
    with pytest.raises(RunError, match="clips of 2 frames"):
        recognition.predict(ClipInputs(model, Source(rows), rows, other, CPU), scorer)
    with pytest.raises(RunError, match="which is not in the manifest"):
        recognition.predict(ClipInputs(model, Source(manifest(7)), rows, CLIPS, CPU), scorer)


def test_wrong_class_count_missing_label_and_nan_are_one_clear_line() -> None:
    rows = manifest(6)
    with pytest.raises(RecipeError, match="scores 5 classes, the manifest has 6"):
        run(model=Reader(classes=5))
    inputs = ClipInputs(Reader(), Source(rows), manifest(6, label=None), CLIPS, CPU)
    with pytest.raises(ManifestError, match="6 of 6 rows have no label, first 'clip0'"):
        recognition.predict(inputs, recognition.classifier_scorer(Reader()))
    with pytest.raises(RunError, match="NaN or infinite for clip0, clip1"):
        run(model=Reader(strength=float("nan")))


def test_paired_difference_is_narrower_than_the_figures() -> None:
    worse = run(shift={(i, 0): 1 for i in (0, 1, 2)})
    gap = recognition.difference(run(), worse)
    assert gap["top1"] == pytest.approx(0.25)
    assert gap["videos"] == 12
    assert 0 <= gap["interval"][0] <= 0.25 <= gap["interval"][1]
    assert recognition.difference(worse, worse)["interval"] == [0, 0]


def test_merged_scores_equal_the_written_out_mean() -> None:
    table = run(clips=VIEWS, shift={(2, 1): 3})
    logits = table["logits:logits"].astype(float)
    third = softmax(logits[table["sample"] == 2]).mean(axis=0)
    np.testing.assert_allclose(recognition.probabilities(table)[2], third)
