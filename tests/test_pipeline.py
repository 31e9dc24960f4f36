"""From a recipe to weights: run, repeat, resume, describe, chain the four stages, load again."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_world
import torch
from safetensors.torch import save_file
from small_world import CLASSES, small_recipe

from internvideo import pipeline
from internvideo.data.batch import Batch
from internvideo.data.manifest import read_manifest, write_manifest
from internvideo.distributed import choose_device
from internvideo.errors import InternVideoError, ManifestError, RecipeError, RunError, WeightsError
from internvideo.model_table import MODELS
from internvideo.models.cross_model import CrossModel
from internvideo.pipeline import listing, load_trained, prepare, run_recipe
from internvideo.pretraining import supervised
from internvideo.recipe import Recipe, build_recipe, shipped_recipes
from internvideo.storage import read_metadata, read_safetensors
from internvideo.tasks import STAGES, TASKS
from internvideo.training.loop import RunInterruptedError


def recipe(stage: str = "supervised", **changes: Any) -> Recipe:
    return build_recipe(small_recipe(stage, **changes))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_safetensors(path)[0]


def same(first: Path, second: Path) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that came to its end."""
    folder = tmp_path_factory.mktemp("done")
    assert run_recipe(recipe(), folder) == folder / "model.safetensors"
    return folder


def test_a_run_leaves_weights_that_load_with_their_recipe_and_classes(done: Path) -> None:
    trained = load_trained(done / "model.safetensors", device="cpu")
    assert trained.run == recipe()
    assert not isinstance(trained.recipe, Recipe)
    assert (trained.recipe.stage, trained.recipe.settings, trained.classes) == (
        "supervised",
        recipe().settings,
        CLASSES,
    )
    inside = read_metadata(done / "model.safetensors")
    assert set(inside) == {"format_version", "recipe", "classes", "preprocessing"}
    assert not {"optimizer", "schedule", "loop", "init"} & set(json.loads(inside["recipe"]))
    assert "train" not in {name for name, value in json.loads(inside["recipe"])["data"].items() if value}
    alone = done.parent / "alone.safetensors"
    shutil.copy(done / "model.safetensors", alone)
    assert load_trained(alone, device="cpu").run is None
    assert load_trained(alone, device="cpu").recipe == trained.recipe
    assert not trained.model.training
    clips = small_world.batch(4)
    with torch.no_grad():
        logits = trained.model(trained.model.normalize(clips.video))  # type: ignore[operator]  # a module
    assert logits.shape == (4, 2)
    files = {"run.json", "recipe.json", "metrics.jsonl", "checkpoints", "model.safetensors"}
    assert {path.name for path in done.iterdir()} == files


def test_a_finished_run_is_not_trained_again(done: Path) -> None:
    before, written = contents(done), (done / "model.safetensors").stat()
    for _ in range(3):  # the metadata of a rewritten file would be in another order sooner or later
        assert run_recipe(recipe(loader={"workers": 1}), done) == done / "model.safetensors"
    assert contents(done) == before
    assert (done / "model.safetensors").stat().st_mtime_ns == written.st_mtime_ns


def test_a_finished_run_may_be_told_otherwise_and_lie_elsewhere(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "run")
    before = contents(tmp_path / "run")
    world = small_world.world()
    rows = Path(shutil.copytree(world.parent, tmp_path / "elsewhere")) / world.name
    moved = recipe(data={"train": str(rows)}, loader={"max_unreadable": 0.5}, loop={"log_every": 5})
    run_recipe(moved.model_copy(update={"about": "mine"}), tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_a_longer_run_has_other_weights(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    longer = recipe(schedule={"steps": 8})
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_write", lambda *args: None)  # killed before the weights are written
        run_recipe(longer, folder)
    assert same(folder / "model.safetensors", done / "model.safetensors")
    run_recipe(longer, folder)
    assert not same(folder / "model.safetensors", done / "model.safetensors")
    assert load_trained(folder / "model.safetensors", device="cpu").run == longer
    before = contents(folder)
    run_recipe(recipe(), folder)  # the command that it began with
    run_recipe(recipe(schedule={"steps": 8}, loop={"log_every": 5}), folder)
    assert contents(folder) == before


def test_a_rate_is_changed_on_purpose(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "run")
    other = recipe(schedule={"steps": 8}, optimizer={"base_lr": 5e-3})
    run_recipe(other, tmp_path / "run", changes=["optimizer.base_lr"])
    assert load_trained(tmp_path / "run" / "model.safetensors", device="cpu").run == other
    with pytest.raises(RecipeError, match=r"'data.loader.batch_size' cannot change within a run"):
        run_recipe(recipe(loader={"batch_size": 4}), tmp_path / "run", changes=["data.loader.batch_size"])


def test_other_pictures_are_another_run(tmp_path: Path) -> None:
    def pictures(split: str) -> Recipe:
        path = small_world.world().with_name(f"{split}.jsonl")
        return recipe("multimodal", data={"image_manifest": str(path)}, schedule={"steps": 1})

    run_recipe(pictures("train"), tmp_path, device="cpu")
    with pytest.raises(RunError, match="image_rows was"):
        run_recipe(pictures("test"), tmp_path, device="cpu")
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["recipe"].pop("image_rows")  # as the version before wrote it
    (tmp_path / "run.json").write_text(json.dumps(told))
    run_recipe(pictures("train"), tmp_path, device="cpu")
    for written, asked in (
        ({"image_manifest": None}, pictures("train")),
        ({}, recipe("multimodal", schedule={"steps": 1})),
    ):
        changed = json.loads(json.dumps(told))
        changed["recipe"]["data"].update(written)
        (tmp_path / "run.json").write_text(json.dumps(changed))
        with pytest.raises(RunError, match=r"another run: (data.image_manifest|image_rows) was"):
            run_recipe(asked, tmp_path, device="cpu")


def test_a_finished_run_gets_its_weights_when_they_are_missing(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    run_recipe(recipe(), tmp_path / "run")
    assert same(tmp_path / "run" / "model.safetensors", done / "model.safetensors")


class StopAt:
    """A loader that asks its own process to stop when one batch is asked for."""

    def __init__(self, loader: Any, position: int) -> None:
        self.loader, self.position = loader, position

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def data_time(self) -> float:
        return float(self.loader.data_time)

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        for position, batch in enumerate(self.loader.epoch(k, start), start):
            if (k, position) == (0, self.position):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def test_a_stopped_run_goes_on_to_the_same_weights(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = supervised.clip_loader
    with monkeypatch.context() as patch:
        patch.setattr(supervised, "clip_loader", lambda *args: StopAt(original(*args), 3))
        with pytest.raises(RunInterruptedError, match=r"at step [34] of 6; start the same command again"):
            run_recipe(recipe(), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert same(run_recipe(recipe(loader={"prefetch": 3, "cache_megabytes": 1}), tmp_path), done / "model.safetensors")


def test_a_folder_of_another_run_is_refused_and_kept(done: Path) -> None:
    before = contents(done)
    with pytest.raises(RunError, match="base_lr"):
        run_recipe(recipe(optimizer={"base_lr": 0.5}), done)
    assert contents(done) == before


def test_a_run_is_not_resumed_on_other_rows(tmp_path: Path) -> None:
    manifest = read_manifest(small_world.world())
    rows = tmp_path / "rows.jsonl"
    paths = [row.model_copy(update={"path": str(manifest.video_path(row))}) for row in manifest.rows]
    write_manifest(rows, paths, manifest.classes)
    settings = small_recipe("supervised")
    settings["data"]["train"] = str(rows)
    run_recipe(build_recipe(settings), tmp_path / "run", device="cpu")
    write_manifest(rows, paths[:-1], manifest.classes)
    with pytest.raises(RunError, match="training_rows"):
        run_recipe(build_recipe(settings), tmp_path / "run", device="cpu")


def test_several_manifests_train_together(tmp_path: Path) -> None:
    world = small_world.world()
    dense = {"kind": "dense", "stride": 2}
    settings = small_recipe("supervised", sampling=dense)
    settings["data"]["extra_manifests"] = {"more": {"manifest": str(world.with_name("test.jsonl")), "stride": 1}}
    job = prepare(build_recipe(settings))
    assert len(job.loader) == (len(read_manifest(world)) + len(read_manifest(world.with_name("test.jsonl")))) // 8
    assert job.fingerprint != read_manifest(world).fingerprint
    settings["data"]["sampling"] = {"kind": "sparse", "frames": small_world.FRAMES}
    with pytest.raises(RecipeError, match=r"data\.extra_manifests\.more\.stride: 'sparse' has no stride"):
        prepare(build_recipe(settings))
    settings["data"]["extra_manifests"]["more"] = {"manifest": str(world), "split": "nowhere"}
    with pytest.raises(InternVideoError, match="nowhere"):
        prepare(build_recipe(settings))


def test_another_seed_gives_other_weights(done: Path, tmp_path: Path) -> None:
    assert not same(run_recipe(recipe(loop={"seed": 1}), tmp_path), done / "model.safetensors")


def test_the_four_stages_follow_one_another(tmp_path: Path) -> None:
    short = {"schedule": {"steps": 2}}
    masked = run_recipe(recipe("masked", **short), tmp_path / "1")
    language = run_recipe(
        recipe("multimodal", data={"image_manifest": str(small_world.world())}, **short), tmp_path / "2"
    )
    one = run_recipe(recipe("supervised", init={"weights": str(masked)}, **short), tmp_path / "3a")
    other = run_recipe(recipe("supervised_multimodal", init={"weights": str(language)}, **short), tmp_path / "3b")
    sources = {"masked": str(one), "multimodal": str(other)}
    path = run_recipe(recipe("interaction", init=sources, **short), tmp_path / "4")
    model = load_trained(path, device="cpu").model
    assert isinstance(model, CrossModel)
    learning, ours = set(model.trainable_names), weights(path)
    for part, source in (("masked", weights(one)), ("multimodal", weights(other))):
        assert source
        for name, value in source.items():
            if f"{part}.{name}" not in learning:
                assert torch.equal(ours[f"{part}.{name}"], value), name


def test_mixed_batches_and_averages_train(tmp_path: Path) -> None:
    mixing = recipe(augment={"mixup": 0.8, "cutmix": 1.0}, loop={"ema_decay": 0.9}, loader={"repeated_augmentation": 2})
    run_recipe(mixing, tmp_path)
    assert load_trained(tmp_path / "model.safetensors", device="cpu").run == mixing


@pytest.mark.parametrize(
    ("what", "table"), [("models", MODELS), ("stages", STAGES), ("tasks", [task.name for task in TASKS])]
)
def test_listings_have_a_line_for_each(what: str, table: dict[str, object]) -> None:
    assert list(listing(what)) == list(table)
    assert all(len(about.split()) > 1 for about in listing(what).values())


def test_recipes_are_listed() -> None:
    assert list(listing("recipes")) == list(shipped_recipes())


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        (
            {"stage": "masked", "model": {"name": "videomae-s-classifier"}},
            RecipeError,
            "VideoMAEPretrain for this stage",
        ),
        ({"model": {"overrides": {"num_classes": 5}}}, RecipeError, "5, but the manifest has 2 classes"),
        ({"augment": {"flip": True}}, RecipeError, "mirroring changes the class"),
        ({"data": {"train": None}}, RecipeError, "data.train: is missing"),
        ({"data": {"split": "nowhere"}}, InternVideoError, "nowhere"),
        ({"data": {"train": "/no/such/file.jsonl"}}, ManifestError, "no such file"),
        ({"loader": {"batch_size": 100}}, RecipeError, "at most 42"),
        ({"model": {"overrides": {"patch_size": 7}}}, RecipeError, "patch_size"),
        ({"sampling": {"stride": 2}}, RecipeError, "segment_middle"),
        ({"sampling": {"kind": "sparse_two_view", "num_clips": 3}}, RecipeError, "data.sampling.num_clips: 3"),
        ({"stage": "masked", "settings": {"ratio": 0.01}}, RecipeError, "settings.ratio: the tube mask covers 0 of"),
        (
            {"stage": "multimodal", "model": {"name": "internvideo-mm-b16"}, "settings": {"caption_weight": 1.0}},
            RecipeError,
            "settings.caption_weight: .*caption decoder",
        ),
        ({"augment": {"rand_augment": "foo"}}, RecipeError, "data.augment.rand_augment.*'foo'"),
        ({"augment": {"size": 40}}, RecipeError, "data.augment.size: 40; expected: 32, model.overrides.image_size"),
        ({"stage": "multimodal", "augment": {"size": 40}}, RecipeError, "expected: 32, model.overrides.vision"),
        ({"stage": "interaction", "augment": {"size": 40}}, RecipeError, "expected: 32, model.overrides.masked"),
        ({"sampling": {"frames": 6}}, RecipeError, "data.sampling.frames: the model gets 6 frames; expected: 4"),
        (
            {"settings": {"temporal_stride": 2}},
            RecipeError,
            "data.sampling.frames: the model gets 2 frames; expected: 4",
        ),
        ({"loader": {"single_frame": True}}, RecipeError, "data.sampling.frames: the model gets 1 frames"),
        ({"stage": "interaction", "sampling": {"frames": 8}}, RecipeError, "model gets 8 frames; expected: 4"),
    ],
)
def test_settings_that_do_not_fit_are_told_before_anything_is_written(
    changes: dict[str, Any], error: type[InternVideoError], told: str, tmp_path: Path
) -> None:
    stage = changes.pop("stage", "supervised")
    tree = small_recipe(stage, **changes)
    if tree["model"]["name"] == "internvideo-mm-b16":
        tree["model"]["overrides"].pop("caption")
    with pytest.raises(error, match=told) as found:
        run_recipe(build_recipe(tree), tmp_path / "run")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["supervised_multimodal", "multimodal"])
def test_encoders_on_clip_take_any_number_of_frames(stage: str) -> None:
    assert prepare(recipe(stage, sampling={"frames": 3})).loader
    assert prepare(recipe(stage, loader={"single_frame": True})).loader


def test_every_second_frame_of_a_longer_clip_fits() -> None:
    assert prepare(recipe(settings={"temporal_stride": 2}, sampling={"frames": 7})).loader


@pytest.mark.parametrize("name", ["cpu:1", "CPU", "meta", "mps", "cuda:-1", "cuda:", "cuda:x", "cuda:2", "", "0"])
def test_only_the_devices_told_are_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RecipeError, match=r"expected: (auto, cpu, cuda or cuda:N|cuda:0 to cuda:1)"):
        choose_device(name)
    assert [str(choose_device(good)) for good in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]


def test_files_that_are_no_trained_model_are_refused(done: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file({"x": torch.zeros(1)}, plain)
    for path, told in (
        (plain, "contains no recipe"),
        (tmp_path / "none", "no such file"),
        (next((done / "checkpoints").iterdir()), "contains no recipe"),
    ):
        with pytest.raises(WeightsError, match=told):
            load_trained(path)
