"""Classes of one set among those of another: in fine-tuning (`init_head`) and in evaluation (`--restrict`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world
import torch
from goldens_folder import GOLDENS
from small_world import small_recipe
from torch import nn

from internvideo.apps.dry_run import describe
from internvideo.data.manifest import read_manifest, write_manifest
from internvideo.datasets.class_names import match_classes
from internvideo.errors import InternVideoError, ManifestError, RecipeError, WeightsError
from internvideo.evaluation import evaluate_task
from internvideo.metrics.classification import softmax
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.pipeline import prepare, run_recipe
from internvideo.recipe import build_recipe
from internvideo.storage import read_safetensors
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.recognition.evaluate import RecognitionOptions
from internvideo.tasks.table import Predictions
from internvideo.weights.state import save_model

KNOWN = ("abseiling", "Petting animal (not cat)", "air drumming", "cooking sausages")


def test_names_are_found_as_they_are_or_by_letters_and_digits() -> None:
    match = match_classes(["cooking sausages", "petting animal, not cat"], KNOWN, where="m")
    assert (match.rows, match.num_known) == ((3, 1), 4)
    assert match.respelled == (("petting animal, not cat", "Petting animal (not cat)"),)
    assert match.description == (
        "2 of 4 classes by name, 1 spelled differently ('petting animal, not cat' is 'Petting animal (not cat)')"
    )
    assert match_classes(["a b", "a-b"], ["a-b", "a b"], where="m").rows == (1, 0), "the exact name goes first"


MAPS: dict[str, str] = {
    "names.json": '{"grilling": "cooking sausages"}',
    "numbers.json": '{"1": 3}',
    "list.json": '["abseiling", 3]',
    "names.tsv": "\ngrilling\tcooking sausages\n",
    "crlf.tsv": "grilling\tcooking sausages\r\n",
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_file_says_what_names_do_not(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(MAPS[name].encode())
    match = match_classes(["abseiling", "grilling"], KNOWN, where="m", class_map=tmp_path / name)
    assert match.rows == (0, 3)
    assert match.num_mapped == (2 if name == "list.json" else 1)
    assert match.map_sha256[:16] in match.description


@pytest.mark.parity
def test_a_released_label_map_is_read() -> None:
    path = GOLDENS / "tasks" / "annotations" / "kinetics710" / "label_map_k400_to_710.json"
    stored = json.loads(path.read_text())
    match = match_classes(
        [str(n) for n in range(len(stored))], [f"class {n}" for n in range(710)], where="m", class_map=path
    )
    assert match.rows == tuple(stored[str(n)] for n in range(len(stored)))


WRONG: dict[str, tuple[list[str], str, str]] = {
    "an unknown class": (["abseiling", "air druming"], "", "1 of 2 .* 'air druming' .did you mean 'air drumming'"),
    "many unknown classes": ([f"no {n}" for n in range(9)], "", "9 of 9 .* and 4 more"),
    "two that are one": (["abseiling", "Abseiling"], "", "'abseiling' and 'Abseiling' are both 'abseiling'"),
    "alike with two": (["a b"], "", "'a b'"),
    "a map of an unknown class": (["grilling"], '{"griling": 0}', "unknown class 'griling'.*of the manifest"),
    "a map to an unknown class": (["grilling"], '{"grilling": "abseil"}', "unknown class 'abseil'.*of the model"),
    "a map beyond the classes": (["grilling"], '{"grilling": 4}', "class 4; expected: 0 to 3"),
    "a map of two to one": (["x", "y"], '{"x": 0, "y": 0}', "both 'abseiling'"),
    "a class twice": (["x", "y"], '{"x": 0, "0": 1}', "'0' a second time"),
    "no map": (["x"], "3", "holds no class map"),
    "no JSON": (["x"], "{", "cannot be read as JSON"),
    "a truth value": (["x"], '{"x": true}', "found True"),
}


@pytest.mark.parametrize("case", WRONG)
def test_nothing_is_guessed(tmp_path: Path, case: str) -> None:
    wanted, text, told = WRONG[case]
    path = tmp_path / "map.json"
    path.write_text(text)
    known = ["A-b", "a_b"] if case == "alike with two" else KNOWN
    with pytest.raises(ManifestError, match=told) as caught:
        match_classes(wanted, known, where="m", class_map=path if text else None)
    assert "\n" not in str(caught.value)


def test_a_line_without_two_columns(tmp_path: Path) -> None:
    (tmp_path / "map.tsv").write_text("grilling cooking\n")
    with pytest.raises(ManifestError, match=r"map.tsv:1: found 1 columns"):
        match_classes(["grilling"], KNOWN, where="m", class_map=tmp_path / "map.tsv")


# Fine-tuning: weights of five classes, two of them those of the world, in the other order.

FIRST, SECOND = read_manifest(small_world.world()).classes
FIVE = ("x", SECOND, "y", FIRST.upper(), "z")


def five_classes(folder: Path, model: nn.Module, classes: tuple[str, ...] = FIVE) -> Path:
    path = folder / "five.safetensors"
    save_model(path, model, {"classes": json.dumps(classes)} if classes else {})
    return path


def masked(classes: int = 5) -> VideoMAEClassifier:
    torch.manual_seed(1)
    return VideoMAEClassifier(replace(small_world.MASKED, num_classes=classes))


def recipe(weights: Path | None, stage: str = "supervised", **changes: Any) -> Any:
    tree = small_recipe(stage)
    return build_recipe({**tree, "init": {} if weights is None else {"weights": str(weights)}, **changes})


@pytest.mark.parametrize("stage", ["supervised", "supervised_multimodal", "open_set"])
def test_a_head_keeps_the_rows_of_its_names(tmp_path: Path, stage: str) -> None:
    torch.manual_seed(1)
    old: VideoMAEClassifier | UniFormerV2
    old = masked() if stage != "supervised_multimodal" else UniFormerV2(replace(small_world.VISION, num_classes=5))
    job = prepare(recipe(five_classes(tmp_path, old), stage, init_head="match_names"))
    own, other = job.model.state_dict(), old.state_dict()
    name = "proj.linear" if stage == "supervised_multimodal" else "head"
    for part in ("weight", "bias"):
        assert torch.equal(own[f"{name}.{part}"], other[f"{name}.{part}"][[3, 1]])
    assert all(torch.equal(own[key], other[key]) for key in other if not key.startswith(name))
    assert job.head_init_lines == (f"2 of 5 classes by name, 1 spelled differently ('{FIRST}' is '{FIRST.upper()}')",)


def test_a_fresh_head_is_drawn_as_without_weights(tmp_path: Path) -> None:
    old = masked()
    drawn = prepare(recipe(None)).model.state_dict()
    job = prepare(recipe(five_classes(tmp_path, old), init_head="random"))
    own = job.model.state_dict()
    assert torch.equal(own["head.weight"], drawn["head.weight"])
    assert torch.equal(own["blocks.0.mlp.fc1.weight"], old.state_dict()["blocks.0.mlp.fc1.weight"])
    assert job.head_init_lines == ("random, 2 classes",)


def test_a_map_serves_weights_that_know_no_names(tmp_path: Path) -> None:
    old = masked()
    (tmp_path / "map.json").write_text('{"0": 4, "1": 2}')
    path, changes = five_classes(tmp_path, old, ()), {"init_class_map": str(tmp_path / "map.json")}
    job = prepare(recipe(path, init_head="match_names", **changes))
    assert torch.equal(job.model.state_dict()["head.weight"], old.state_dict()["head.weight"][[4, 2]])


def test_a_dry_run_and_a_run_tell_the_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = recipe(five_classes(tmp_path, masked()), init_head="match_names")
    assert "head      2 of 5 classes by name, 1 spelled differently" in describe(ours, device="cpu")
    run_recipe(ours, tmp_path / "run", device="cpu")
    assert "head: 2 of 5 classes by name" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/run.json").read_text())["recipe"]["head"][0].startswith("2 of 5 classes")
    _, metadata = read_safetensors(tmp_path / "run/model.safetensors")
    assert json.loads(metadata["classes"]) == [FIRST, SECOND]


def without_weights(folder: Path) -> object:
    assert "head      match_names: training needs init.weights" in describe(
        recipe(None, init_head="match_names"), device="cpu"
    )
    return run_recipe(recipe(None, init_head="match_names"), folder, device="cpu")


def pretraining_weights(folder: Path) -> object:
    save_model(folder / "pre.safetensors", small_world.pretraining_model())
    return prepare(recipe(folder / "pre.safetensors", init_head="match_names"))


def with_map(folder: Path, kind: str) -> object:
    return prepare(recipe(five_classes(folder, masked()), init_head=kind, init_class_map="m.json"))


REFUSED: dict[str, tuple[Callable[[Path], object], type[InternVideoError], str]] = {
    "another number of classes": (
        lambda folder: prepare(recipe(five_classes(folder, masked()))),
        WeightsError,
        "a head of 5 classes; expected: 2, .*init_head: match_names",
    ),
    "another order of classes": (
        lambda folder: prepare(recipe(five_classes(folder, masked(2), (SECOND, FIRST)))),
        WeightsError,
        f"class '{SECOND}' of the head has the index of '{FIRST}' in data.train",
    ),
    "a class that the head does not know": (
        lambda folder: prepare(
            recipe(five_classes(folder, masked(), ("a", "b", "c", "d", FIRST)), init_head="match_names")
        ),
        ManifestError,
        f"1 of 2 classes .*'{SECOND}'",
    ),
    "no weights": (without_weights, RecipeError, "init.weights: is missing"),
    "no head": (pretraining_weights, WeightsError, "has no classification head"),
    "a map without names": (lambda folder: with_map(folder, "random"), RecipeError, "with init_head: match_names"),
    "another kind": (lambda folder: recipe(None, init_head="some"), RecipeError, "init_head"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_heads_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    call, kind, told = REFUSED[case]
    with pytest.raises(kind, match=told) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run.json").exists()


def test_numbers_fit_names_as_they_stand(tmp_path: Path) -> None:
    assert prepare(recipe(five_classes(tmp_path, masked(2), ()))).head_init_lines == ()
    assert prepare(recipe(five_classes(tmp_path, masked(2), (FIRST, SECOND)))).head_init_lines == ()


# Evaluation.


def written(path: Path, classes: tuple[str, ...], moved: dict[int, int]) -> Path:
    """Eight clips of the world under other classes."""
    rows = [row.with_class_indices(moved) for row in read_manifest(small_world.world()).rows[:8]]
    root = small_world.world().parent
    write_manifest(path, [row.model_copy(update={"path": str(root / row.path)}) for row in rows], classes)
    return path


def test_a_model_of_more_classes_chooses_among_the_manifests(tmp_path: Path) -> None:
    five = written(tmp_path / "five/five.jsonl", FIVE, {0: 3, 1: 1})
    two = written(tmp_path / "two/two.jsonl", (FIRST, SECOND), {0: 0, 1: 1})
    tree = small_recipe("supervised")
    tree["data"]["train"] = str(five)
    weights = run_recipe(build_recipe(tree), tmp_path / "run", device="cpu")
    settings = {"device": "cpu"}
    result = evaluate_task("recognition", weights, two, tmp_path / "restricted", {**settings, "restrict": True})
    told = result["protocol"]["classes_kept"]
    assert told.startswith("2 of 5 classes by name, 1 spelled differently")
    assert told.endswith("before the soft-max")
    evaluate_task("recognition", weights, five, tmp_path / "all", settings)
    kept, whole = (Predictions.load(tmp_path / name / "recognition.npz") for name in ("restricted", "all"))
    logits = whole["logits:logits"][:, [3, 1]]
    np.testing.assert_array_equal(kept["logits:logits"], logits)
    np.testing.assert_allclose(recognition.probabilities(kept), softmax(logits.astype(float)))
    assert kept.protocol["split_sha256"] == read_manifest(two).fingerprint
    with pytest.raises(ManifestError, match="not trained on the class"):
        evaluate_task("recognition", weights, two, tmp_path / "none", settings)
    with pytest.raises(RecipeError, match="add --restrict"):
        RecognitionOptions(class_map=two)
