"""Ensembles of saved tables (both weightings, equal to the stored ones) and the mean of several splits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from goldens_folder import GOLDENS
from task_world import CLIPS, Reader, TwoReaders
from test_metrics_goldens import rows
from test_tasks_recognition import VIEWS, run

from internvideo.errors import RunError
from internvideo.evaluation import score_tables
from internvideo.tasks import ensemble
from internvideo.tasks.ensemble import combine, join, make_member
from internvideo.tasks.ensemble_files import combine_files
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.table import Predictions


def one_and_two() -> list[ensemble.Member]:
    """A model of three views that is wrong about clip 0, and one of a single view."""
    wrong = run(clips=VIEWS, model=Reader(strength=2.0), shift={(0, v): 1 for v in range(3)})
    return [make_member("three views", wrong), make_member("one view", run(model=Reader(strength=4.0)))]


def table_of(logits: np.ndarray, sample: np.ndarray, labels: np.ndarray, view: np.ndarray | None = None) -> Predictions:
    """A recognition table of the given rows."""
    ids = np.asarray([f"v{number}" for number in range(len(labels))])
    counted = np.zeros(len(sample), dtype=np.int64)
    for number in range(len(labels)):
        rows = np.flatnonzero(sample == number)
        counted[rows] = np.arange(len(rows))
    arrays = {
        "ids": ids,
        "labels": labels,
        "sample": sample,
        "view": counted if view is None else view,
        "logits:logits": logits,
    }
    whole = {"asked": len(labels), "read": len(labels), "unreadable": []}
    return Predictions(recognition.NAME, arrays, {"split_sha256": "one", "weights_sha256": "w"}, whole)


def test_ensembles_pool_views_or_weigh_models() -> None:
    members = one_and_two()
    each = [recognition.probabilities(one.table) for one in members]
    np.testing.assert_allclose(recognition.probabilities(join(members)), np.mean(each, axis=0))
    np.testing.assert_allclose(recognition.probabilities(join(members, "views")), (3 * each[0] + each[1]) / 4)
    weighted = recognition.probabilities(join(members, weights=[1.0, 3.0]))
    np.testing.assert_allclose(weighted, (each[0] + 3 * each[1]) / 4)
    made = combine(members, [1.0, 3.0])
    assert set(made.rows) == {"three views", "one view", "ensemble of views", "ensemble of models"}
    for name, one in zip(made.members, members, strict=True):
        assert made.members[name]["figures"] == recognition.score(one.table)["figures"]
    told = made.ensembles["models"]["protocol"]
    assert [(one["name"], one["views"], len(one["weights_sha256"])) for one in told["members"]] == [
        ("three views", 3, 64),
        ("one view", 1, 64),
    ]
    assert (told["pool"], told["weights"]) == ("models", [0.25, 0.75])
    assert "weights" not in made.ensembles["views"]["protocol"]
    assert "top1_one_view" not in made.ensembles["views"]["figures"]
    assert told["best_member"] == "one view"
    assert made.ensembles["models"]["figures"]["over_best_member"] == 0


@pytest.mark.parity
def test_ensembles_equal_the_stored_ones() -> None:
    folder = GOLDENS / "tasks" / "classification"
    stored = dict(np.load(folder / "classification.npz"))
    expected = json.loads((folder / "expected.json").read_text())["views"]
    tables = [table_of(*rows(number), stored["view_labels"]) for number in range(3)]
    members = [make_member(str(number), table) for number, table in enumerate(tables)]
    pooled = recognition.probabilities(combine(members).tables["views"])
    np.testing.assert_allclose(pooled[0], expected["first_video_three_model_probs"], atol=1e-6)
    top1 = combine(members[:2]).ensembles["models"]["figures"]["top1"]
    assert 100 * top1 == pytest.approx(expected["two_model_mean_of_softmax_top1"], abs=1e-6)
    for number, result in enumerate(combine(members).members.values()):
        assert 100 * result["figures"]["top1"] == pytest.approx(expected["per_model_top1"][number], abs=1e-6)


def test_a_clip_that_stands_twice_counts_once() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 3)), np.asarray([0, 1])
    sample, view = np.asarray([0, 0, 1, 1, 0, 1]), np.asarray([0, 1, 0, 1, 0, 1])
    first = make_member("a", table_of(logits, sample, labels, view))
    once = make_member("a", table_of(logits[:4], sample[:4], labels, view[:4]))
    other = make_member("b", table_of(logits[:4] + 1.5 * np.eye(4, 3), sample[:4], labels, view[:4]))
    for weighting in ensemble.WEIGHTINGS:
        got, wanted = join([first, other], weighting), join([once, other], weighting)
        np.testing.assert_array_equal(recognition.probabilities(got), recognition.probabilities(wanted))


def test_an_ensemble_holds_only_what_every_model_read() -> None:
    some = [make_member("a", run(unreadable=[1])), make_member("b", run(unreadable=[4], shift={(0, 0): 1}))]
    joined = join(some)
    assert joined["ids"].tolist() == [f"clip{i}" for i in range(12) if i not in (1, 4)]
    assert joined.coverage["read"] == 10
    assert [lost["id"] for lost in joined.coverage["unreadable"]] == ["clip1", "clip4"]
    assert [one["coverage"]["read"] for one in combine(some).members.values()] == [10, 10]


def test_an_interaction_takes_part_by_a_column() -> None:
    whole = run(model=TwoReaders(), clips=replace(CLIPS, frames=4))
    other = run(model=Reader(strength=4.0), clips=replace(CLIPS, frames=4))
    made = combine([make_member("z", whole, "fused"), make_member("b", other)])
    assert made.ensembles["views"]["protocol"]["members"][0]["column"] == "fused"
    with pytest.raises(RunError, match="masked, multimodal, fused; name one"):
        make_member("z", whole)
    with pytest.raises(RunError, match="no score column 'fussed'"):
        make_member("z", whole, "fussed")


def changed(table: Predictions, **protocol: Any) -> Predictions:
    return Predictions(table.task, table.arrays, {**table.protocol, **protocol}, table.coverage)


def test_what_does_not_belong_together_is_refused() -> None:
    one, two = one_and_two()
    cut = {name: value[:, :5] if name.startswith("logits") else value for name, value in two.table.arrays.items()}
    fewer = Predictions(two.table.task, cut, two.table.protocol, two.table.coverage)
    names = {**two.table.arrays, "classes": np.asarray([f"other {name}" for name in two.table["classes"]])}
    renamed = changed(replace(two.table, arrays=names), split_sha256="")
    order = {**two.table.arrays, "classes": two.table["classes"][::-1]}
    turned = changed(replace(two.table, arrays=order), split_sha256="")
    cases: list[tuple[list[ensemble.Member], list[float] | None, str]] = [
        ([one], None, "1 table; expected: two or more"),
        ([one, make_member("b", run(videos=11))], None, "another split"),
        ([one, make_member("b", fewer)], None, "scores 6 classes, b 5"),
        ([one, make_member("b", renamed)], None, "another classes"),
        ([one, make_member("b", turned)], None, "another order of classes"),
        ([one, make_member("b", one.table)], None, "the same predictions"),
        ([one, replace(two, name=one.name)], None, "two members of one name"),
        ([one, two], [1.0], "2 numbers above 0"),
        ([one, two], [1.0, 0.0], "found 1, 0"),
        ([one, two], [1.0, float("nan")], "2 numbers above 0"),
    ]
    for members, weights, told in cases:
        with pytest.raises(RunError, match=told) as caught:
            combine(members, weights)
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="an ensemble already"):
        make_member("a", join([one, two]))
    with pytest.raises(RunError, match="a table of retrieval"):
        make_member("a", replace(one.table, task="retrieval"))


def test_files_become_a_table_that_is_scored_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = one_and_two()
    files = [str(one.table.save(tmp_path / "a/recognition.npz")), str(two.table.save(tmp_path / "b/recognition.npz"))]
    path = combine_files(files, tmp_path / "both", weights=[1, 3], weighting="models")
    shown = capsys.readouterr().out
    for word in ("a", "b", "ensemble of views", "ensemble of models", "12 of 12"):
        assert word in shown
    result = json.loads(path.with_suffix(".json").read_text())
    assert {"a.top1", "b.top1", "views.top1", "models.top1", "models.over_best_member"} <= set(result["figures"])
    assert result["protocol"]["pool"] == "models"
    again = recognition.score(Predictions.load(path))
    assert again["figures"]["top1"] == result["figures"]["models.top1"]
    assert combine_files(files, tmp_path / "both", weights=[1, 3], weighting="models") == path, (
        "the same again may be written"
    )
    with pytest.raises(RunError, match="has a table with other"):
        combine_files(files, tmp_path / "both")
    with pytest.raises(RunError, match="given twice"):
        score_tables([Path(files[0]), Path(files[0])])


def splits(folder: Path, **third: Any) -> list[Path]:
    """Tables of three splits with different figures."""
    tables = [
        changed(run(shift={(number, 0): 1 for number in range(wrong)}), split_sha256=f"split{wrong}")
        for wrong in (0, 3, 6)
    ]
    tables[2] = changed(tables[2], **third)
    return [table.save(folder / f"split{number}/recognition.npz") for number, table in enumerate(tables, start=1)]


def test_the_mean_of_three_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mean = score_tables(splits(tmp_path))
    assert mean["figures"]["top1"] == pytest.approx((1 + 0.75 + 0.5) / 3)
    assert mean["intervals"] == {}
    assert mean["coverage"] == {"asked": 36, "read": 36, "unreadable": []}
    assert mean["protocol"]["mean_of"] == ["split1", "split2", "split3"]
    assert mean["protocol"]["splits"]["split2"]["figures"]["top1"] == 0.75
    shown = capsys.readouterr().out
    for word in ("split1", "split3", "mean of 3", "75.00"):
        assert word in shown


@pytest.mark.parametrize(
    ("third", "told"),
    [({"split_sha256": "split0"}, "the same split as split1"), ({"views": 4, "crops": 3}, "other views, crops")],
)
def test_splits_that_cannot_be_averaged(tmp_path: Path, third: dict[str, Any], told: str) -> None:
    with pytest.raises(RunError, match=told):
        score_tables(splits(tmp_path, **third))


def test_other_classes_and_tasks_cannot_be_averaged(tmp_path: Path) -> None:
    first, second, third = splits(tmp_path)
    table = Predictions.load(third)
    Predictions("retrieval", table.arrays, table.protocol, table.coverage).save(tmp_path / "other/retrieval.npz")
    with pytest.raises(RunError, match=r"split1/recognition|no array|a table of|retrieval"):
        score_tables([first, second, tmp_path / "other/retrieval.npz"])
    names = {**table.arrays, "classes": table["classes"][::-1]}
    Predictions(table.task, names, table.protocol, table.coverage).save(third)
    with pytest.raises(RunError, match="split3: other classes than split1"):
        score_tables([first, second, third])
