"""Shipped recipes: each one parses, names a model that builds, fits its stage, and holds the paper's figures."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from shapes import shapes_only

from internvideo.data.mixup import Mixup
from internvideo.data.settings import TrainClipData
from internvideo.errors import RecipeError
from internvideo.recipe import Recipe, build_recipe, read_recipe, shipped_recipes
from internvideo.tasks import STAGES, get_task
from internvideo.training.model_setup import build_model
from internvideo.training.optimizer import parameter_rules

SHIPPED = shipped_recipes()
PAPER = {name: path for name, path in SHIPPED.items() if name.startswith(("paper/", "benchmarks/"))}


def own_classes(recipe: Recipe) -> int:
    """Classes that a recipe's manifest has to have; any number where the recipe leaves it open."""
    changed = recipe.model.overrides
    return int(changed.get("num_classes") or changed.get("masked", {}).get("num_classes") or 7)


@cache
def built(name: str) -> tuple[Recipe, Any]:
    """A shipped recipe and its model, without weights."""
    recipe = read_recipe(name)
    with shapes_only():
        return recipe, build_model(recipe, own_classes(recipe))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_builds(name: str) -> None:
    recipe, model = built(name)
    assert recipe.about
    if not isinstance(recipe, Recipe):
        task = get_task(recipe.task)
        assert task is not None
        assert isinstance(model, task.evaluates)
        return
    assert isinstance(model, STAGES[recipe.stage].models)
    with shapes_only():
        stage = STAGES[recipe.stage].stage(model, recipe.settings)
    assert parameter_rules(stage, recipe.optimizer)


@pytest.mark.parametrize("name", SHIPPED)
def test_clip_and_model_have_the_same_size(name: str) -> None:
    recipe, model = built(name)
    if recipe.stage in (
        "temporal_localization",
        "refinement",
        "grounding",
        "waypoints",
        "navigation",
    ):  # features, worlds: no clips
        return
    config = getattr(model.config, "vision", model.config)
    if recipe.stage != "interaction":
        step = getattr(recipe.settings, "temporal_stride", 1)
        assert config.frames == -(-recipe.data.sampling.frames // step)
        if recipe.stage not in ("spatio_temporal_localization", "anticipation"):  # frames of any size
            assert config.image_size == recipe.data.augment.size
    assert recipe.data.sampling.build().frames == recipe.data.sampling.frames
    if isinstance(recipe.data, TrainClipData):
        assert recipe.data.augment.train_transform().size == recipe.data.augment.size


@pytest.mark.parametrize("name", SHIPPED)
def test_a_resolved_recipe_is_the_same_recipe(name: str) -> None:
    recipe = read_recipe(name)
    assert build_recipe(recipe.resolved()) == recipe


ROOT = Path(__file__).parents[1]


@cache
def sources() -> tuple[str, ...]:
    """The short names of docs/sources.md."""
    rows = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8").splitlines()
    named = [row.split("|")[1].split(",") for row in rows if row.startswith("| ")][1:]
    return tuple(name.strip() for names in named for name in names)


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_tells_where_it_comes_from(name: str) -> None:
    comment = "\n".join(line for line in PAPER[name].read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    trained = isinstance(read_recipe(name), Recipe)
    for word in ("# Figure:", "# Measure:", *(("# Run:", f"train {name} ") if trained else (f"--recipe {name} ",))):
        assert word in comment, word
    named = any(source in comment for source in sources())
    assert named or re.search(r"sections? \d|paper \d|arXiv \d", comment), "no source"


# name, processes -> clips of a step over all processes (repeats not counted), peak learning rate, epochs, warm-up
SETTINGS = {
    "paper/masked": (64, 1536, 1.5e-3, 1200, 120),
    "paper/masked_script_h": (64, 384, 1.5e-3, 301, 15),
    "paper/masked_script_l": (48, 1152, 1.5e-4 * 4.5, 801, 40),
    "paper/masked_script_b": (32, 2048, 1.2e-3, 801, 40),
    "paper/multimodal": (128, 14336, 8e-5, 400_000, 4000),
    "paper/supervised_masked": (32, 128, 5e-4, 40, 5),
    "paper/supervised_multimodal": (32, 512, 1e-5, 40, 5),
    "paper/finetune_masked_b_k400": (32, 512, 2e-3, 100, 5),
    "paper/finetune_masked_b_ssv2": (16, 256, 2e-3, 25, 5),
    "paper/finetune_masked_b_anet": (16, 256, 1e-3, 100, 5),
    "paper/verb_noun_l": (32, 256, 5e-4, 30, 5),
    "paper/finetune_masked_l_k700": (32, 192, 1.5e-3, 40, 5),
    "paper/finetune_masked_l_k400": (32, 192, 1.5e-3, 40, 5),
    "paper/finetune_masked_l_ssv2": (32, 384, 7.5e-4, 30, 5),
    "paper/finetune_masked_h_k400": (32, 128, 5e-4, 35, 5),
    "paper/finetune_masked_h_k600": (32, 128, 5e-4, 40, 5),
    "paper/finetune_masked_h_k700": (32, 256, 3e-4, 75, 5),
    "paper/finetune_masked_h_from_k710_k600": (8, 32, 2.5e-7, 3, 1),
    "paper/finetune_masked_h_from_k710_k700": (8, 32, 2.5e-7, 3, 1),
    "paper/finetune_multimodal_l14_336_from_k710": (64, 128, 1.5e-6, 5, 1),
    "paper/finetune_masked_h_ssv2": (32, 256, 5e-4, 30, 5),
    "paper/finetune_masked_h_from_k710": (8, 32, 2.5e-7, 3, 1),
    "benchmarks/kinetics400": (32, 256, 1.5e-6, 5, 1),
    "benchmarks/kinetics600": (32, 256, 1.5e-6, 5, 1),
    "benchmarks/kinetics700": (32, 256, 1.5e-6, 5, 1),
    "benchmarks/hacs": (16, 64, 5e-6, 20, 5),
    "benchmarks/something_v1": (16, 128, 2e-5, 22, 5),
    "benchmarks/something_v2": (16, 128, 2e-5, 22, 5),
    "benchmarks/activitynet": (16, 64, 5e-6, 20, 5),
    "benchmarks/thumos14": (1, 2, 1e-4, 50, 5),
    "benchmarks/activitynet_segments": (1, 8, 1e-3, 15, 5),
    "benchmarks/hacs_segments": (1, 16, 1e-3, 25, 5),
    "benchmarks/fineaction": (1, 16, 1e-3, 25, 5),
    "paper/refinement_hacs": (1, 16, 4e-4, 9, 0),
    "benchmarks/ava": (32, 128, 1.25e-4, 30, 2),
    "benchmarks/ava_kinetics": (32, 128, 1.25e-4, 30, 2),
    "paper/interaction": (8, 64, 5e-5, 5, 1),
    "benchmarks/msrvtt_qa": (8, 512, 1e-5, 20, 2),
    "benchmarks/msvd_qa": (8, 512, 1e-5, 20, 2),
    "benchmarks/tgif_qa": (8, 512, 1e-5, 20, 2),
    "benchmarks/ucf101_hmdb51": (8, 8, 1e-3, 50, 0),
    "benchmarks/ucf101_mit": (8, 8, 1e-3, 50, 0),
}


def test_every_recipe_of_the_paper_has_a_row_of_settings() -> None:
    assert {name for name in PAPER if name.startswith("paper/")} <= set(SETTINGS) <= set(PAPER)


@pytest.mark.parametrize("name", SETTINGS)
def test_batch_rate_and_length_are_the_published_ones(name: str) -> None:
    processes, batch, peak, length, warmup = SETTINGS[name]
    recipe = read_recipe(name)
    clips = recipe.data.loader.batch_size * processes * recipe.loop.grad_accum_steps
    assert clips == batch
    assert recipe.optimizer.base_lr * recipe.optimizer.scale(clips) == pytest.approx(peak)
    assert (recipe.schedule.steps or recipe.schedule.epochs, recipe.schedule.warmup) == (length, warmup)
    started = re.search(r"--nproc-per-node (\d+)", PAPER[name].read_text(encoding="utf-8"))
    nodes = re.search(r"--nnodes (\d+)", PAPER[name].read_text(encoding="utf-8"))
    assert started is not None
    assert int(started[1]) * int(nodes[1] if nodes else 1) == processes, "the command starts another number"


# setting -> value in the released code and in the paper's text
OPEN_SET: dict[str, object] = {
    "model.overrides": {"num_classes": 101, "frames": 32, "head_dropout": 0.5, "position_table": "resized"},
    "settings.evidence": "exp",
    "settings.loss": "log",
    "settings.kl": False,
    "settings.calibration": False,
    "settings.debias": "none",
    "optimizer.kind": "sgd",
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.no_decay": "nothing",
    "schedule.kind": "multistep",
    "schedule.milestones": [20.0, 40.0],
    "loop.max_grad_norm": 40.0,
    "data.sampling": {"kind": "dense_loop", "frames": 32, "stride": 2, "num_clips": 10},
    "data.augment.crop": "corner",
    "data.augment.flip": True,
    "init_head": "random",
}  # Open-Set-Action-Recognition/configs/recognition/mae/finetune_ucf101_mae_edlnokl.py of OpenGVLab/InternVideo
REGIONS: dict[str, object] = {
    "schedule.start_lr": 0.0,
    "schedule.final_lr": 1e-6,
    "model.overrides.drop_path": 0.2,
    "optimizer.layer_decay": 0.75,
}  # Spatial-Temporal-Action-Localization/run_class_finetuning.py and akfinetune.sh, there
QUESTIONS: dict[str, object] = {
    "model.overrides": {"model": {"caption": {"layers": 6}}, "layers": 3, "dropout": 0.5},
    "data.augment.keep_aspect": False,
    "data.augment.test_resize": 256,
    "data.augment.crop": "random",
    "data.sampling": {"kind": "segment_middle", "frames": 8, "stride": None, "num_clips": None},
    "optimizer.lr_multipliers": {r"^model\.head\.": 10.0},
    "optimizer.betas": [0.9, 0.98],
    "optimizer.eps": 1e-6,
    "optimizer.weight_decay": 0.01,
    "schedule.kind": "linear",
    "schedule.final_lr": 0.0,
}  # multi-modalities-downstream
FIGURES: dict[str, dict[str, object]] = {
    "benchmarks/msrvtt_qa": {
        **QUESTIONS,
        "data.questions": {"answers": None, "max_answers": 1500, "epoch_over": "question", "questions_per_clip": 1},
    },
    "benchmarks/msvd_qa": {**QUESTIONS, "data.questions.max_answers": 1000},
    "benchmarks/tgif_qa": {**QUESTIONS, "data.questions.max_answers": 1540},
    "benchmarks/ucf101_hmdb51": OPEN_SET,
    "benchmarks/ucf101_mit": OPEN_SET,
    "benchmarks/ava": REGIONS,
    "benchmarks/ava_kinetics": REGIONS,
    "paper/masked": {
        "settings.ratio": 0.9,
        "settings.mask": "tube",
        "model.overrides": {"decoder_width": 640, "decoder_depth": 4, "decoder_heads": 10},
        "data.augment.crop": "multi_scale",
        "data.augment.flip": False,
        "data.sampling": {"kind": "dense_pretrain", "frames": 16, "stride": 4, "num_clips": None},
        "optimizer.betas": [0.9, 0.95],
        "optimizer.weight_decay": 0.05,
        "loop.max_grad_norm": None,
    },
    "paper/masked_script_h": {
        "model.overrides.decoder_depth": 8,
        "data.loader.repeated_augmentation": 4,
        "schedule.final_lr": 5e-5,
    },
    "paper/masked_script_l": {"model.overrides.decoder_depth": 12},
    "paper/masked_script_b": {"model.overrides.decoder_depth": 4},
    "paper/multimodal": {
        "data.image_batch_size": 672,
        "optimizer.betas": [0.9, 0.98],
        "optimizer.eps": 1e-6,
        "optimizer.weight_decay": 0.2,
        "settings.caption_weight": 1.0,
        "schedule.kind": "cosine",
    },
    "paper/supervised_masked": {
        "model.overrides": {"num_classes": 710, "drop_path": 0.2, "head_dropout": 0.5, "position_table": "resized"},
        "data.loader.repeated_augmentation": 2,
        "optimizer.layer_decay": 0.8,
        "data.augment.mixup": 0.8,
        "data.augment.cutmix": 1.0,
        "data.augment.erasing": 0.25,
        "data.augment.mix_smoothing": 0.1,
        "data.augment.mix_probability": 1.0,
        "data.augment.mix_switch": 0.5,
        "data.augment.minimum_area": 0.08,
        "data.augment.aspect": [0.75, 4 / 3],
        "data.augment.rand_augment": "rand-m7-n4-mstd0.5-inc1",
        "data.sampling.num_clips": 7,
    },
    "paper/supervised_multimodal": {
        "data.sampling.frames": 8,
        "data.loader.repeated_augmentation": 1,
        "data.augment.mixup": 0.0,
        "data.augment.erasing": 0.0,
        "optimizer.layer_decay": None,
        "loop.max_grad_norm": 20.0,
        "schedule.final_lr": 1e-6,
    },
    "paper/finetune_masked_b_ssv2": {"optimizer.layer_decay": 0.65, "data.augment.flip": False},
    "paper/finetune_masked_l_ssv2": {"optimizer.layer_decay": 0.75, "data.augment.flip": False},
    "paper/finetune_masked_h_ssv2": {"model.overrides.head_dropout": 0.3, "data.augment.flip": False},
    "benchmarks/something_v2": {"data.augment.flip": False, "data.loader.repeated_augmentation": 2},
    "benchmarks/activitynet": {
        "model.overrides.backbone_drop_path": 0.2,
        "model.overrides.drop_path": 0.4,
        "data.sampling.num_clips": 10,
    },
    "paper/interaction": {
        "model.overrides.cross": {"direction": "paper", "fusion": "scalar", "head_dropout": 0.9},
        "settings.temporal_stride": 2,
        "optimizer.weight_decay": 0.001,
        "loop.ema_decay": 0.9999,
        "loop.ema_scaled": False,
        "schedule.final_lr": 0.0,
    },
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, values in FIGURES.items() for key in values])
def test_a_setting_is_the_published_one(name: str, key: str) -> None:
    value: Any = read_recipe(name).resolved()
    for part in key.split("."):
        value = value[part]
    assert value == FIGURES[name][key]


def test_image_batches_are_those_of_the_paper() -> None:
    assert (read_recipe("paper/multimodal").data.image_batch_size or 0) * 128 == 86_016


def test_the_second_manifest_of_a_comment_is_a_setting() -> None:
    (change,) = re.findall(r"'(data\.extra_manifests=.*?)'", PAPER["paper/masked"].read_text(encoding="utf-8"))
    also = read_recipe("paper/masked", [change]).data.extra_manifests
    assert {name: (str(one.manifest), one.stride) for name, one in also.items()} == {"ssv2": ("FILE", 2)}


def test_mixing_and_cropping_are_those_of_the_settings() -> None:
    changes = ["mix_probability=0.7", "mix_switch=0.2", "mixup=0.4", "cutmix=0.6", "aspect=[0.5,2]"]
    augment = read_recipe("paper/supervised_masked", [f"data.augment.{change}" for change in changes]).data.augment
    assert augment.mix(5) == Mixup(5, 0.4, 0.6, 0.7, 0.2, smoothing=0.1)
    assert augment.train_transform().aspect == (0.5, 2.0)


def test_overrides_change_values_and_keep_their_kind() -> None:
    recipe = read_recipe(
        "sample/masked",
        ["optimizer.base_lr=1e-4", "loop.seed=3", "data.train=a/b.jsonl", "model.overrides.depth=2", "about=x=y"],
    )
    assert recipe.optimizer.base_lr == pytest.approx(1e-4)
    assert (recipe.loop.seed, recipe.data.train, recipe.about) == (3, Path("a/b.jsonl"), "x=y")
    assert recipe.model.overrides["depth"] == 2
    assert recipe.model.overrides["width"] == read_recipe("sample/masked").model.overrides["width"]


WRONG_OVERRIDES = {
    "unknown key": ("optimizer.base_lrr=1", ["optimizer.base_lrr", "did you mean 'base_lr'"]),
    "unknown section": ("optimiser.base_lr=1", ["optimiser", "did you mean 'optimizer'"]),
    "unknown key of a stage": ("settings.ratoi=0.5", ["settings.ratoi", "did you mean 'ratio'"]),
    "unknown key of the loader": ("data.loader.batch_sze=4", ["data.loader.batch_sze", "did you mean 'batch_size'"]),
    "unknown key of the augmentation": ("data.augment.flop=true", ["data.augment.flop", "did you mean 'flip'"]),
    "a key of the loader elsewhere": ("data.batch_size=4", ["data.batch_size", "mean 'data.loader.batch_size'"]),
    "unknown key of another manifest": (
        "data.extra_manifests.ssv2={manifest: a, strid: 2}",
        ["data.extra_manifests.ssv2.strid", "'stride'"],
    ),
    "a stride of none": ("data.extra_manifests.ssv2={manifest: a, stride: 0}", ["data.extra_manifests.ssv2.stride"]),
    "an aspect that falls": ("data.augment.aspect=[1.3, 0.7]", ["data.augment.aspect", "from 1.3 to 0.7"]),
    "unknown model": ("model.name=videomae-b-pretrian", ["videomae-b-pretrian", "did you mean 'videomae-b-pretrain'"]),
    "unknown stage": ("stage=maskd", ["maskd", "masked"]),
    "unknown sampler": ("data.sampling.kind=dens", ["dens", "dense"]),
    "negative rate": ("optimizer.base_lr=-1", ["optimizer.base_lr", "-1"]),
    "text for a number": ("optimizer.base_lr=fast", ["optimizer.base_lr", "fast"]),
    "ratio beyond one": ("settings.ratio=1.5", ["settings.ratio", "1.5"]),
    "warm-up longer than the run": ("schedule.warmup=9999", ["schedule.warmup 9999 is longer than the run of"]),
    "two lengths": ("schedule.steps=10", ["either schedule.steps or schedule.epochs, found schedule.steps 10 and"]),
    "two faults": ("schedule={steps: 5, warmup: 6, kind: multistep}", ["schedule.warmup 6", "schedule.milestones"]),
    "batch of none": ("data.loader={batch_size: 0, workers: -1}", ["loader.batch_size is 0", "; data.loader.workers"]),
    "settings below a value": ("stage.deeper=1", ["stage.deeper=1", "'stage' is a value"]),
    "no equals sign": ("--fast", ["--fast", "key.key=value"]),
    "not YAML": ("about=[1", ["about=[1", "not YAML"]),
}


@pytest.mark.parametrize("case", WRONG_OVERRIDES)
def test_a_wrong_setting_is_one_line_that_names_it(case: str) -> None:
    override, words = WRONG_OVERRIDES[case]
    with pytest.raises(RecipeError) as caught:
        read_recipe("sample/masked", [override])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("section", ["stage", "model", "data", "optimizer", "schedule"])
def test_a_missing_section_is_named(tmp_path: Path, section: str) -> None:
    tree = yaml.safe_load(SHIPPED["sample/masked"].read_text(encoding="utf-8"))
    del tree[section]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(RecipeError, match=f"'{section}' is missing") as caught:
        read_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(caught.value)


def test_an_unknown_override_of_a_model_is_named() -> None:
    recipe = read_recipe("sample/masked", ["model.overrides.widht=64"])
    with torch.device("meta"), pytest.raises(RecipeError, match="did you mean 'width'") as caught:
        build_model(recipe, 0)
    assert "\n" not in str(caught.value)


def test_a_wrong_number_of_classes_is_told() -> None:
    with torch.device("meta"), pytest.raises(RecipeError, match="710, but the manifest has 400 classes"):
        build_model(read_recipe("paper/supervised_masked"), 400)


def test_an_unknown_recipe_gets_a_hint() -> None:
    with pytest.raises(RecipeError, match="did you mean 'paper/masked'"):
        read_recipe("paper/maskd")


@pytest.mark.parametrize(("text", "found"), [("a: [1", "YAML"), ("- a\n- b\n", "list"), ("", "is empty")])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=found) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
