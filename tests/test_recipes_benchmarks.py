"""One recipe a benchmark: the paper's figure stands in it, and it runs dry on the official format, made small.

A recipe that is added is found by its name; its name then leaves MISSING.
"""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_samples import PREFIX, RECIPES, sample_of, shrunk

from internvideo.apps.dry_run import describe
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.datasets.catalog import BENCHMARKS
from internvideo.datasets.prepare import prepare
from internvideo.errors import RecipeError
from internvideo.pipeline import listing, run_recipe
from internvideo.recipe import Recipe, read_recipe, shipped_recipes
from internvideo.video.writer import write_video

MISSING: set[str] = set()
"""Benchmarks without a recipe yet."""


def test_every_benchmark_has_a_recipe_or_is_named_as_missing() -> None:
    counted = {name for name, entry in BENCHMARKS.items() if entry.paper_number}
    assert set(RECIPES) <= set(BENCHMARKS)
    assert counted - set(RECIPES) == MISSING


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_tells_the_figure_of_the_catalog_and_its_three_commands(name: str) -> None:
    figure = re.search(r"^# Figure: (.*)$", RECIPES[name], re.M)
    assert figure is not None
    paper = BENCHMARKS[name].paper
    assert figure[1].startswith(paper)
    assert not re.match(r"[\d.]", figure[1].removeprefix(paper)), "another figure"
    assert re.search(rf"^# Prepare: internvideo prepare {name} --annotations ", RECIPES[name], re.M)
    trained = isinstance(read_recipe(PREFIX + name), Recipe)
    command = f"Run: .*internvideo train {PREFIX}{name} " if trained else f"Mix: .* --recipe {PREFIX}{name} "
    assert re.search(f"^# {command}", RECIPES[name], re.M)
    assert re.search(r"^# Measure: internvideo evaluate ", RECIPES[name], re.M)


def test_the_listing_names_the_recipe() -> None:
    lines = listing("benchmarks")
    for name, line in lines.items():
        assert line.endswith(f"; recipe {PREFIX}{name}") == (name in RECIPES)


def test_what_refines_hacs_reads_what_its_detector_left() -> None:
    """Splits, features and run of the recipe of the detector, whose commands come first."""
    recipe, text = read_recipe("paper/refinement_hacs"), shipped_recipes()["paper/refinement_hacs"].read_text("utf-8")
    detector = RECIPES["hacs_segments"]
    assert recipe.data.split == read_recipe(PREFIX + "hacs_segments").data.split
    assert set(re.findall(r"(?:data|runs)/hacs\w*", text)) == {
        "data/hacs_segments", "runs/hacs_segments", "runs/hacs_refined",
    }  # fmt: skip
    for folder in ("data/hacs_segments/features", "runs/hacs_segments/model.safetensors"):
        assert folder in text
        assert folder in detector


# --- fine-tuning: the scripts of run_class_finetuning.py, UniFormerV2 configs -----------------------------------------

# epochs, base rate, drop path, head dropout, layer decay, repeats, views. Repeats of B and L on Kinetics and
# ActivityNet are the script's default (run_class_finetuning.py), as docs/recipes.md tells.
MASKED: dict[str, tuple[float, ...]] = {
    "paper/finetune_masked_b_k400": (100, 1e-3, 0.1, 0, 0.75, 2, 5),
    "paper/finetune_masked_b_anet": (100, 1e-3, 0.1, 0, 0.75, 2, 5),
    "paper/finetune_masked_l_k400": (40, 2e-3, 0.2, 0, 0.75, 2, 5),
    "paper/finetune_masked_l_k700": (40, 2e-3, 0.2, 0, 0.75, 2, 5),
    "paper/finetune_masked_l_ssv2": (30, 5e-4, 0.2, 0, 0.75, 1, 2),
    "paper/finetune_masked_h_k400": (35, 1e-3, 0.2, 0.5, 0.8, 2, 7),
    "paper/finetune_masked_h_k600": (40, 1e-3, 0.2, 0.5, 0.8, 2, 7),
    "paper/finetune_masked_h_k700": (75, 3e-4, 0.2, 0.5, 0.8, 1, 7),
    "paper/supervised_masked": (40, 1e-3, 0.2, 0.5, 0.8, 2, 7),
    "paper/finetune_masked_h_from_k710": (3, 2e-6, 0.2, 0.5, 0.8, 2, 7),
    "paper/finetune_masked_h_from_k710_k600": (3, 2e-6, 0.2, 0.5, 0.8, 2, 7),
    "paper/finetune_masked_h_from_k710_k700": (3, 2e-6, 0.2, 0.5, 0.8, 2, 7),
    "paper/finetune_masked_h_ssv2": (30, 5e-4, 0.2, 0.3, 0.8, 1, 2),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_row_of_the_masked_encoders_table(name: str) -> None:
    recipe = read_recipe(name)
    model, data = recipe.model.overrides, recipe.data
    found = (
        recipe.schedule.epochs,
        recipe.optimizer.base_lr,
        model["drop_path"],
        model["head_dropout"],
        recipe.optimizer.layer_decay,
        data.loader.repeated_augmentation,
        data.sampling.num_clips,
    )
    assert found == MASKED[name]
    assert f"--num-clips {data.sampling.num_clips} --num-crops 3" in shipped_recipes()[name].read_text(encoding="utf-8")
    assert recipe.init_head == ("match_names" if "from_k710" in name else "exact")


# frames, side, epochs, rate, views, classes, where the head comes from
MULTIMODAL: dict[str, tuple[object, ...]] = {
    "paper/supervised_multimodal": (8, 224, 40, 1e-5, 4, 710, "exact"),
    "benchmarks/kinetics400": (16, 224, 5, 1.5e-6, 4, 400, "match_names"),
    "benchmarks/kinetics600": (16, 224, 5, 1.5e-6, 4, 600, "match_names"),
    "benchmarks/kinetics700": (16, 224, 5, 1.5e-6, 4, 700, "match_names"),
    "paper/finetune_multimodal_l14_336_from_k710": (64, 336, 5, 1.5e-6, 4, 400, "match_names"),
    "benchmarks/something_v1": (16, 224, 22, 2e-5, 1, 174, "exact"),
    "benchmarks/something_v2": (16, 224, 22, 2e-5, 1, 174, "exact"),
    "benchmarks/activitynet": (16, 224, 20, 5e-6, 10, 200, "random"),
    "benchmarks/hacs": (16, 224, 20, 5e-6, 10, 200, "random"),
}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_row_of_the_multimodal_encoders_table(name: str) -> None:
    recipe = read_recipe(name)
    model, data, augment = recipe.model.overrides, recipe.data, recipe.data.augment
    found = (
        data.sampling.frames,
        augment.size,
        recipe.schedule.epochs,
        recipe.optimizer.base_lr,
        data.sampling.num_clips,
        model["num_classes"],
        recipe.init_head,
    )
    assert found == MULTIMODAL[name]
    assert (model["head_dropout"], model["mlp_dropout"], augment.mixup, augment.cutmix, augment.erasing) == (
        0.5,
        0.5,
        0,
        0,
        0,
    )
    assert (recipe.optimizer.weight_decay, recipe.schedule.final_lr) == (0.05, 1e-6)
    assert f"--num-clips {data.sampling.num_clips} --num-crops 3" in shipped_recipes()[name].read_text(encoding="utf-8")


# --- the scripts of Video-Text-Retrieval -----------------------------------------------------------------------------

# frames, epochs, clips of a step, rate of what is pre-trained; zero-shot: frames, share of CLIP
RETRIEVAL: dict[str, tuple[tuple[float, ...], tuple[int, float]]] = {
    "msrvtt": ((12, 5, 128, 4e-6), (8, 0.5)),
    "msvd": ((8, 5, 64, 2.5e-6), (12, 0.25)),
    "lsmdc": ((8, 5, 64, 2e-6), (6, 0.5)),
    "didemo": ((32, 5, 16, 2e-6), (32, 0.0)),
    "activitynet_captions": ((64, 30, 64, 2e-6), (16, 0.5)),
    "vatex": ((8, 5, 128, 5e-6), (8, 0.5)),
}


@pytest.mark.parametrize("name", RETRIEVAL)
def test_a_row_of_the_retrieval_table(name: str) -> None:
    recipe, text = read_recipe(PREFIX + name), RECIPES[name]
    optimizer, schedule, data = recipe.optimizer, recipe.schedule, recipe.data
    processes = re.search(r"--nproc-per-node (\d+)", text)
    assert processes is not None
    ((pattern, factor),) = optimizer.lr_multipliers.items()
    clips = data.loader.batch_size * int(processes[1])
    rate = pytest.approx(optimizer.base_lr * factor)
    assert (data.sampling.frames, schedule.epochs, clips, rate) == RETRIEVAL[name][0]
    assert (optimizer.kind, optimizer.betas, optimizer.eps) == ("bert_adam", (0.9, 0.98), 1e-6)
    assert (optimizer.weight_decay, optimizer.base_lr, pattern) == (0.2, 1e-3, r"^model\.")
    assert optimizer.no_decay == "biases_and_norms"
    assert (schedule.kind, schedule.warmup) == ("cosine_including_warmup", pytest.approx(0.1 * (schedule.epochs or 0)))
    assert recipe.loop.max_grad_norm == 1.0
    assert data.sampling.kind == "one_per_second"
    assert (data.augment.use_eval_transform, data.augment.resize_backend) == (True, "pil_bicubic")
    assert ("--base-weight 0.5" in text) == (name == "lsmdc"), "merged init"
    frames, share = RETRIEVAL[name][1]
    zero_shot = RECIPES[f"zero_shot_{name}"]
    assert read_recipe(f"{PREFIX}zero_shot_{name}").data.sampling.frames == frames
    assert ("--base" in zero_shot, f"--base-weight {share:g} " in zero_shot) == (share > 0, share > 0)
    assert "internvideo mix " in zero_shot


def test_test_clips_are_resized_by_the_library_of_the_release() -> None:
    """OpenCV for the masked encoder, torch for UniFormerV2 (its slowfast/datasets), squashed to 256 for texts.

    OpenGVLab/InternVideo, InternVideo1/Pretrain/VideoMAE/video_transforms.py and .../multi-modalities-downstream/
    CoTrain/datasets/video/video_base_dataset.py, read_frames_decord.
    """
    for name in shipped_recipes():
        recipe = read_recipe(name)
        if name.startswith("sample/") or recipe.stage not in (
            "supervised",
            "open_set",
            "interaction",
            "question_answering",
        ):
            continue
        augment, model = recipe.data.augment, recipe.model.name
        masked, texts = model.startswith("videomae"), recipe.stage == "question_answering"
        assert augment.eval_transform().resize_backend == ("pil" if texts else "opencv" if masked else "torch"), name
        assert augment.keep_aspect != texts, name
    for name in ("zero_shot_k400", "msrvtt_mc", "lsmdc_mc", "tgif_choice", "msrvtt_qa"):
        rule = read_recipe(PREFIX + name).data.augment.eval_transform()
        wide = torch.zeros(1, 90, 320, 3, dtype=torch.uint8)
        wide[:, :, 24:296] = 255  # what a squashed frame of 256 shows between its 16 pixels of margin
        assert (rule.resize, rule.keep_aspect) == (256, False)
        assert float(rule.crop_clip(wide)[0].float().mean()) > 240, "hardly anything is cut away at the sides"


@pytest.mark.parametrize("name", ["ucf101_hmdb51", "ucf101_mit"])
def test_open_set_recognition_starts_from_kinetics_700_and_is_tested_on_30_clips(name: str) -> None:
    """.../Open-Set-Action-Recognition/configs/recognition/mae/finetune_ucf101_mae_edlnokl.py."""
    assert "init.weights=runs/masked_k700/model.safetensors" in RECIPES[name]
    assert "--num-clips 10 --num-crops 3" in RECIPES[name]
    assert read_recipe(PREFIX + name).data.augment.train_transform()._short == 256


# --- dry runs ---------------------------------------------------------------------------------------------------------


@cache
def _video(folder: Path) -> Path:
    frames = (np.full((40, 48, 3), 10 * number, dtype=np.uint8) for number in range(12))
    write_video(folder / "one.mp4", frames, 8.0)
    return folder / "one.mp4"


def prepared(name: str, folder: Path) -> Manifest:
    """The sample of official annotations with a video under every name, through `internvideo prepare`."""
    sample = sample_of(name)
    made = prepare(name, sample, folder / "names")
    split = min(made.splits, key=lambda one: ("train" not in one, "val" not in one, one))
    videos = folder / "videos"
    for row in read_manifest(folder / "names" / f"{split}.jsonl").rows:
        path = videos / row.path
        if row.boxes and BENCHMARKS[name].task != "Ego4D":  # a part of the film that holds the key frame
            start = int(row.boxes[0].time)
            path = path.with_name(f"{path.stem}_{start:06d}_{start + 2:06d}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_video(folder), path if path.suffix else path.with_suffix(".mp4"))
    prepare(name, sample, folder / "data", videos=videos)
    return read_manifest(folder / "data" / f"{split}.jsonl")


def features(manifest: Manifest, folder: Path, *, of_files: bool = False) -> Path:
    """An index as `internvideo extract` writes it, with random features of four channels, for rows or for files."""
    folder.mkdir()
    database: dict[str, Any] = {}
    for row in manifest.rows:
        duration = float(row.attributes.get("duration", 1000.0))
        actions = [{"label": manifest.classes[s.label], "segment": [s.start, s.end]} for s in row.segments]
        name = Path(row.path).stem if of_files else row.id
        database[name] = {"subset": row.split, "fps": 15.0, "duration": duration, "annotations": actions}
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32))
    protocol = {"window": 16, "stride": 16, "fps": 15.0}
    index = {"protocol": protocol, "classes": list(manifest.classes), "database": database}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def changes(name: str, folder: Path) -> list[str]:
    """What makes a recipe small enough to run here, on the sample of its benchmark."""
    recipe = read_recipe(PREFIX + name)
    if recipe.stage == "navigation":
        return shrunk(name, sample_of(name), None)
    manifest = prepared(name, folder)
    if recipe.stage == "grounding":
        features(manifest, manifest.source.parent / "features", of_files=True)
    detects = recipe.stage == "temporal_localization"
    return shrunk(name, features(manifest, folder / "features") if detects else manifest.source, manifest)


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in RECIPES if isinstance(read_recipe(PREFIX + name), Recipe)])
def test_a_benchmarks_recipe_runs_dry_on_its_official_format(name: str, tmp_path: Path) -> None:
    told = describe(read_recipe(PREFIX + name, changes(name, tmp_path)), device="cpu")
    assert re.search(r"first batch, forward and backward: .*loss \d", told)
    assert ("\nhead  " in told) == (read_recipe(PREFIX + name).init_head != "exact")


@pytest.mark.parity
def test_what_starts_from_other_weights_waits_for_them(tmp_path: Path) -> None:
    recipe = read_recipe("benchmarks/kinetics400", changes("kinetics400", tmp_path))
    with pytest.raises(RecipeError, match=r"init\.weights: is missing"):
        run_recipe(recipe, tmp_path / "run", device="cpu")
