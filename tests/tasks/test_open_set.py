"""Open-set recognition: the parts, what the stage learns, the methods on clusters, the task on a small world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world
import torch
import use_world
from pydantic import ValidationError
from scipy.stats import weibull_min
from small_world import CLASSES, batch, small_recipe

from internvideo.apps.open_set import OpenSetRule
from internvideo.cli.main import app
from internvideo.data.manifest import Manifest, Sample, read_manifest, write_manifest
from internvideo.errors import ManifestError, RecipeError, RunError, WeightsError
from internvideo.evaluation import evaluate_task, score
from internvideo.objectives.evidential import evidence, evidential_loss, opinion
from internvideo.pipeline import run_recipe
from internvideo.recipe import build_recipe
from internvideo.tasks.open_set import predict as open_set
from internvideo.tasks.open_set.evaluate import read_open_rows
from internvideo.tasks.open_set.methods import METHODS, HeadTrainingSettings, predict_with_all_methods
from internvideo.tasks.open_set.model import (
    BayesianLinear,
    DebiasHead,
    OpenMax,
    ReciprocalPoints,
)
from internvideo.tasks.open_set.stage import OpenSetSettings, OpenSetStage
from internvideo.tasks.table import Predictions

MODELS = (small_world.masked_classifier, small_world.multimodal_classifier)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", MODELS)
def test_the_last_layer_on_its_input_gives_the_models_scores(build: Any) -> None:
    model = build().eval()
    video = model.normalize(batch(3).video)
    with torch.no_grad():
        expected = model(video)
        torch.testing.assert_close(model.head_layer(model.head_input(video)), expected)
        logits, grid = model.logits_and_grid(video)
    torch.testing.assert_close(logits, expected)
    time = small_world.FRAMES // (2 if build is small_world.masked_classifier else 1)
    assert grid.shape == (3, 48, time, 4, 4)


def test_the_grid_is_where_the_tokens_are() -> None:
    model = small_world.masked_classifier().eval()
    video = model.normalize(batch(1).video)
    changed = video.clone()
    changed[:, :, 2:, 8:16, 24:] += 1.0
    model.blocks = torch.nn.ModuleList([torch.nn.Identity()])
    with torch.no_grad():
        moved = (model.logits_and_grid(changed)[1] - model.logits_and_grid(video)[1]).abs().sum(dim=1)[0]
    assert moved.nonzero().tolist() == [[1, 1, 3]]


def test_only_the_shuffled_branch_hangs_on_the_drawn_order() -> None:
    torch.manual_seed(0)
    head, grid = DebiasHead(8, 3), torch.randn(2, 8, 5, 4, 4)
    mixed = DebiasHead.forward(head, grid, generator(1))
    other = head(grid, generator(2))
    for name in ("motion", "still"):
        assert torch.equal(mixed[name].features, other[name].features)
    assert mixed["motion"].logits.shape == (2, 3)
    again = head(grid, generator(1))
    assert torch.equal(mixed["shuffled"].features, again["shuffled"].features)


def test_divergence_of_bayesian_weights() -> None:
    torch.manual_seed(0)
    head = BayesianLinear(4, 3, prior=0.7)
    own = torch.distributions.Normal(head.mean, torch.nn.functional.softplus(head.spread))
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(torch.zeros(3, 5), 0.7)).sum()
    torch.testing.assert_close(head.divergence(), expected)
    x = torch.ones(2, 4)
    assert not torch.equal(head(x), head(x))


def test_reciprocal_points_push_away() -> None:
    head = ReciprocalPoints(2, 2, points=2)
    with torch.no_grad():
        head.points.copy_(torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[0.0, 4.0], [0.0, 2.0]]]))
        head.radius.copy_(torch.tensor([1.0, 0.5]))
    x = torch.tensor([[0.0, 0.0]])
    torch.testing.assert_close(head(x), torch.tensor([[(0 + 4) / 4, (16 + 4) / 4]]))
    assert head.open_space(head(x), torch.tensor([1])).item() == pytest.approx(4.5**2)


def test_openmax_takes_what_is_extreme() -> None:
    """Against the formula, on classes with and without enough samples."""
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(0, 1, (60, 3)), rng.normal(8, 1, (60, 3)), rng.normal(-8, 1, (2, 3))])
    labels = np.repeat([0, 1, 2], [60, 60, 2])
    logits = 5.0 * np.eye(3)[labels]
    logits[0] = [0, 5, 0]  # a mistake: it must not count
    rule = OpenMax.fit(features, logits, labels, tail=20, num_ranks=10)
    assert rule.num_ranks == 3
    np.testing.assert_allclose(rule.means[0], features[1:60].mean(axis=0))
    largest = np.sort(np.linalg.norm(features[1:60] - rule.means[0], axis=1))[-20:]
    shape, _, scale = weibull_min.fit(largest, floc=0)
    assert (rule.shape[0], rule.scale[0]) == pytest.approx((shape, scale))
    assert np.isinf(rule.scale[2])
    point, scores = np.array([[3.5, 3.5, 3.5]]), np.array([[2.0, 1.0, -1.0]])
    share = [
        weibull_min.cdf(np.linalg.norm(point[0] - rule.means[k]), rule.shape[k], scale=rule.scale[k]) for k in (0, 1)
    ]
    positive = np.array([3.0, 2.0, 0.0])
    taken = positive * np.array([share[0], share[1] * 2 / 3, 0.0])
    np.testing.assert_allclose(rule.recalibrate(point, scores)[0], [*(positive - taken), taken.sum()])


# --- the stage -------------------------------------------------------------------------------------------------------


def stage(**settings: Any) -> OpenSetStage:
    return OpenSetStage(small_world.masked_classifier(), OpenSetSettings(**settings))


def test_the_papers_loss_is_the_log_loss_of_exp_evidence_and_nothing_else() -> None:
    own, clips = stage().eval(), batch(4)
    parts = own(clips, generator())
    with torch.no_grad():
        found = evidence(own.model(own.model.normalize(clips.video)))
        assert clips.labels is not None
        expected = evidential_loss(found, clips.labels)["loss_cls"].mean()
    torch.testing.assert_close(parts["loss"], expected)
    assert {name for name in parts if name.startswith("loss_")} == {"loss_cls"}
    torch.testing.assert_close(parts["uncertainty"], opinion(found)[1].mean())


@pytest.mark.parametrize("debias", ["none", "maximized", "alternated"])
@pytest.mark.parametrize("loss", ["log", "digamma", "mse", "cross_entropy"])
def test_every_loss_reaches_every_parameter(loss: str, debias: str) -> None:
    own = stage(
        loss=loss,
        kl=True,
        calibration=loss in ("log", "digamma"),
        debias=debias,
        annealing_batches=4,
        evidence="softplus",
    ).train()
    own(batch(6), generator())  # the weight starts at 0
    parts = own(batch(6), generator())
    total = sum(value for name, value in parts.items() if name.startswith("loss_"))
    torch.testing.assert_close(parts["loss"], total)
    assert parts["loss_kl"] > 0
    torch.autograd.backward(parts["loss"])
    for name, parameter in own.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_the_weight_rises_with_the_batches_and_resumes() -> None:
    def kl(own: OpenSetStage) -> float:
        return own(batch(4), generator())["loss_kl"].item()

    own = stage(kl=True, annealing="step", annealing_batches=4).train()
    weights = [kl(own) for _ in range(6)]
    whole = weights[-1]
    assert whole > 0
    assert [value / whole for value in weights] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    other = stage(kl=True, annealing="step", annealing_batches=4).train()
    other.load_state_dict({**own.state_dict(), "seen": torch.tensor(2)})
    assert kl(other) / whole == pytest.approx(0.5)


def test_alternated_branches_pull_against_each_other() -> None:
    """The motion branch lowers the dependence, the two others raise it, so the value itself is 0."""
    own = stage(debias="alternated").train()
    assert own(batch(6), generator())["loss_hsic"].item() == 0
    raised = stage(debias="maximized").train()
    assert raised(batch(6), generator())["loss_hsic"].item() < 0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"loss": "mse", "calibration": True, "annealing_batches": 2}, "log or digamma"),
        ({"kl": True}, "annealing_batches"),
        ({"loss": "cross_entropy"}, "annealing_batches"),
        ({"disentangled": True}, "calibration"),
    ],
)
def test_losses_that_do_not_go_together(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        OpenSetSettings(**wrong)


# --- the methods -----------------------------------------------------------------------------------------------------


def clusters() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Three known clusters to learn and to test, and a fourth between them; train, labels, test, is unknown."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 32))
    centers[3] = centers[:3].mean(axis=0)
    labels = np.arange(300) % 3
    train = centers[labels] + rng.normal(0, 0.5, (300, 32))
    which = np.arange(200) % 4
    return train, labels, centers[which] + rng.normal(0, 0.5, (200, 32)), which == 3


def test_every_method_tells_classes_and_strangers() -> None:
    train, labels, test, strange = clusters()
    learning = HeadTrainingSettings(num_classes=3, epochs=30)
    said = predict_with_all_methods(train, labels, test, learning)
    assert set(said) == set(METHODS)
    again = predict_with_all_methods(train, labels, test, learning)
    for name, (before, (probabilities, doubt)) in said.items():
        assert before[0].shape == (300, 3), name
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6, err_msg=name)
        accuracy = (probabilities.argmax(axis=1) == np.arange(200) % 4)[~strange].mean()
        assert accuracy > 0.94, name
        assert open_set.metric.auroc(doubt[~strange], doubt[strange]) > 0.65, name
        assert np.array_equal(again[name][1][1], doubt), name


# --- the task --------------------------------------------------------------------------------------------------------

CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """open.jsonl: rows of the small world, the last ones of an unknown class."""
    manifest = read_manifest(small_world.world())
    rows = []
    for place, row in enumerate(manifest.rows[:12]):
        row = row.model_copy(update={"path": str(manifest.video_path(row)), "segments": ()})
        if place >= 8:
            row = row.model_copy(update={"label": None, "attributes": {"known": "no", "action": f"new {place % 2}"}})
        rows.append(row)
    path = tmp_path_factory.mktemp("open") / "open.jsonl"
    write_manifest(path, rows, manifest.classes)
    return path


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights of an evidential classifier after a few steps, and the folder of its evaluation."""
    recipe = build_recipe(small_recipe("open_set", schedule={"steps": 3}))
    folder = tmp_path_factory.mktemp("run")
    weights = run_recipe(recipe, folder, device="cpu")
    evaluate_task("open_set", weights, world, folder / "out", CPU)
    return weights, folder / "out"


def test_the_table_holds_every_method_and_can_be_scored_again(run: tuple[Path, Path]) -> None:
    table = Predictions.load(run[1] / "open_set.npz")
    assert table["labels"].tolist()[8:] == [-1] * 4
    assert set(table["strangers"].tolist()) == {"", "new 0", "new 1"}
    assert open_set.methods(table) == [open_set.OWN_METHOD, *METHODS]
    result = score(table)
    stored = json.loads((run[1] / "open_set.json").read_text())
    assert stored["figures"] == result["figures"]
    assert result["protocol"]["unknown_classes"] == 2
    probabilities, doubt = open_set.own_prediction(table["logits"], "exp")
    np.testing.assert_allclose(table["uncertainty:model"], doubt, rtol=1e-5)
    assert np.array_equal(table["predicted:model"], probabilities.argmax(axis=1))
    for method in open_set.methods(table):
        accepted = table[f"train_uncertainty:{method}"] <= open_set.threshold(table, method)
        assert accepted.mean() >= 0.95
        for name in ("top1", "auroc", "aupr", "fpr95", "auroc_binary"):
            low, high = result["intervals"][f"{method}.{name}"]
            assert low <= result["figures"][f"{method}.{name}"] <= high
    for picture in ("uncertainty.svg", "risk_coverage.svg"):
        assert (run[1] / picture).read_text().startswith("<svg")


def classify(*words: object) -> None:
    app(["classify", *map(str, words), "--device", "cpu"], standalone_mode=False)


def test_classify_says_label_belief_and_uncertainty(
    run: tuple[Path, Path], world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights, out = run
    manifest = read_manifest(world)
    video = manifest.video_path(manifest.rows[0])
    classify(video, "-e", weights, "--unknown", out / "open_set.json", "--json")
    said = json.loads(capsys.readouterr().out)
    table = Predictions.load(out / "open_set.npz")
    found = np.exp(table["logits"][0].astype(np.float64))
    assert said["uncertainty"] == pytest.approx(2 / (found.sum() + 2), rel=1e-3)
    assert said["belief"] == pytest.approx(found.max() / (found.sum() + 2), rel=1e-3)
    assert said["label"] == CLASSES[int(found.argmax())]
    told = json.loads((out / "open_set.json").read_text())
    assert said["known"] == (said["uncertainty"] <= told["protocol"]["thresholds"]["model"])
    told["protocol"]["thresholds"]["model"] = 0.0
    (tmp_path / "strict.json").write_text(json.dumps(told))
    classify(video, "-e", weights, "--unknown", tmp_path / "strict.json")
    assert f"unknown, nearest {said['label']}, belief" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="is of the weights"):
        classify(video, "-e", use_world.classifier_folder(), "--unknown", out / "open_set.json")
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(RunError, match=r"no\.json.*open_set\.json of"):
        OpenSetRule.load(tmp_path / "no.json")
    with pytest.raises(RecipeError, match="--unknown: together with --labels"):
        classify(video, "-e", weights, "--labels", "a, b", "--unknown", out / "open_set.json")


def rows(*labels: int | None, known: str = "") -> tuple[Sample, ...]:
    attributes = {"known": known} if known else {}
    return tuple(Sample(id=str(i), path=f"{i}.mp4", label=v, attributes=attributes) for i, v in enumerate(labels))


def test_unknown_rows_are_those_that_say_so_those_of_other_classes_and_a_manifest_of_them(tmp_path: Path) -> None:
    write_manifest(tmp_path / "test.jsonl", rows(0, 1, 2), ("b", "new", "a"))
    write_manifest(tmp_path / "more.jsonl", rows(0), ("a",))
    made = read_open_rows(read_manifest(tmp_path / "test.jsonl"), ("a", "b"), tmp_path / "more.jsonl")
    assert [(row.id, row.label) for row in made.rows] == [("0", 1), ("2", 0), ("1", None), ("unknown/0", None)]
    assert [open_set.unknown_class(row) for row in made.rows[2:]] == ["new", "a"]
    assert made.classes == ("a", "b")
    assert made.rows[3].path == "0.mp4"


def test_numbers_of_another_list_are_other_classes(tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "unknown.txt").write_text("a.mp4 0\nc.mp4 5\n")
    known = read_manifest(tmp_path / "known.txt")
    made = read_open_rows(known, ("run", "walk"), tmp_path / "away" / "unknown.txt")
    assert [row.label for row in made.rows] == [0, 1, None, None]
    assert made.video_path(made.rows[2]) == tmp_path / "away" / "a.mp4"
    assert len({row.id for row in made.rows}) == 4


@pytest.mark.parametrize(("kinds", "told"), [(rows(0, 1), "only known"), (rows(0, None, known="no"), "only unknown")])
def test_both_kinds_are_needed(kinds: tuple[Sample, ...], told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        read_open_rows(Manifest(kinds, ("a", "b"), Path("/x"), Path("/x/y.jsonl")), ("a", "b"), None)


def test_a_known_row_without_label_and_absent_training_rows_are_told(
    run: tuple[Path, Path], world: Path, tmp_path: Path
) -> None:
    unlabelled = Manifest(rows(0, None) + rows(None, known="no"), ("a", "b"), Path("/x"), Path("/x/y.jsonl"))
    with pytest.raises(ManifestError, match="1 of 2 rows have no label"):
        read_open_rows(unlabelled, ("a", "b"), None)
    with pytest.raises(RecipeError, match="--train-manifest"):
        evaluate_task("open_set", run[0], world, tmp_path, {**CPU, "train_manifest": tmp_path / "gone.jsonl"})
