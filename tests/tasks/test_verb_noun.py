"""Verbs and nouns: two labels of a row, two losses on one encoder, and train -> evaluate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_world
import torch
import torch.nn.functional as F

from internvideo.data.manifest import Manifest, Sample, write_manifest
from internvideo.errors import ManifestError, RecipeError, RunError
from internvideo.evaluation import evaluate_task, score_table
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.pipeline import run_recipe
from internvideo.recipe import Recipe, build_recipe
from internvideo.tasks.verb_noun.data import VerbNounClasses, collect_classes, label_indices
from internvideo.tasks.verb_noun.stage import VerbNounSettings, VerbNounStage
from internvideo.video.writer import write_video

COLOURS = {"red": (230, 40, 40), "blue": (40, 60, 230)}


def world(folder: Path) -> Path:
    """A square, red or blue, on a light table or a dark one; every fifth row has no noun."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(10):
        noun, verb = ("red", "blue")[number % 2], ("lift", "drop")[number // 2 % 2]
        frames = np.full((8, 32, 32, 3), 30 if verb == "lift" else 180, np.uint8)
        frames[:, 8:24, 8:24] = COLOURS[noun]
        write_video(folder / f"{number}.mp4", frames, 8)
        told = {"verb": verb} if number % 5 == 4 else {"verb": verb, "noun": noun}
        rows.append(Sample(id=f"a{number}", path=f"{number}.mp4", attributes=told))
    write_manifest(folder / "m.jsonl", rows, ())
    return folder / "m.jsonl"


def recipe(manifest: Path, **augment: object) -> Recipe:
    overrides = {"image_size": 32, "patch_size": 8, "frames": 4, "width": 32, "depth": 1, "heads": 2}
    return build_recipe(
        {
            "stage": "verb_noun",
            "model": {"name": "videomae-s-classifier", "overrides": overrides},
            "data": {
                "train": str(manifest),
                "sampling": {"kind": "sparse", "frames": 4},
                "augment": {"size": 32, "crop": "center", **augment},
                "loader": {"batch_size": 5, "cache_megabytes": 20},
            },
            "optimizer": {"base_lr": 3e-3},
            "schedule": {"steps": 80, "warmup": 5},
        }
    )


def test_words_and_labels_of_rows() -> None:
    rows = tuple(
        Sample(id=str(number), path="a", attributes=told)
        for number, told in enumerate(({"verb": "put", "noun": "cup"}, {"verb": "cut"}, {"noun": "egg"}))
    )
    manifest = Manifest(rows, (), Path(), Path("m.jsonl"))
    words = collect_classes(manifest)
    assert words.outputs == ("verb: cut", "verb: put", "noun: cup", "noun: egg")
    assert VerbNounClasses.parse(words.outputs) == words
    assert label_indices(manifest, words).tolist() == [[1, 0], [0, -100], [-100, 1]]
    with pytest.raises(ManifestError, match="row '0' has the noun 'cup'"):
        label_indices(manifest, VerbNounClasses(("cut", "put"), ("cups",)))
    with pytest.raises(ManifestError, match="no row has a noun"):
        collect_classes(replace(manifest, rows=rows[1:2]))


def test_each_part_has_its_own_loss() -> None:
    torch.manual_seed(0)
    model = VideoMAEClassifier(replace(small_world.MASKED, num_classes=5)).eval()
    stage = VerbNounStage(model, VerbNounSettings(noun_weight=0.5), num_verbs=2)
    labels = torch.tensor([[0, 2], [1, -100], [-100, 0], [0, 1]])
    batch = replace(small_world.batch(4), labels=labels)
    losses = stage(batch, torch.Generator())
    logits = model(model.normalize(batch.video))
    torch.testing.assert_close(losses["verb"], F.cross_entropy(logits[:, :2], labels[:, 0]))
    torch.testing.assert_close(losses["noun"], F.cross_entropy(logits[:, 2:], labels[:, 1]))
    torch.testing.assert_close(losses["loss"], losses["verb"] + 0.5 * losses["noun"])
    with pytest.raises(ValueError, match="both kinds"):
        VerbNounStage(model, VerbNounSettings(), num_verbs=5)
    with pytest.raises(ValueError, match="verb and noun"):
        stage(small_world.batch(4), torch.Generator())


def test_train_evaluate_and_score_again(tmp_path: Path) -> None:
    manifest = world(tmp_path)
    weights = run_recipe(recipe(manifest), tmp_path / "run", device="cpu")
    settings = {"num_clips": 1, "device": "cpu"}
    result = evaluate_task("verb_noun", weights, manifest, tmp_path / "out", settings)
    assert set(result["figures"]) == {"verb_top1", "noun_top1", "both_top1"}
    assert result["figures"]["verb_top1"] >= 0.9
    assert result["figures"]["noun_top1"] >= 0.9
    assert score_table(tmp_path / "out" / "verb_noun.npz")["figures"] == result["figures"]
    with pytest.raises(RecipeError, match="mixup"):
        run_recipe(recipe(manifest, mixup=0.8), tmp_path / "other", device="cpu")
    silent = tmp_path / "silent.jsonl"
    write_manifest(silent, [Sample(id="a", path="0.mp4")], ())
    with pytest.raises(RunError, match="no row has a verb or noun"):
        evaluate_task("verb_noun", weights, silent, tmp_path / "silent", settings)
