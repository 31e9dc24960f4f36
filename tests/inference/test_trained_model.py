"""The five kinds of weights with every command that opens weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import small_apps
import small_checkpoints
import small_world
import torch
from safetensors.torch import save_file
from small_world import small_recipe

from internvideo.apps.mix import mix
from internvideo.data.manifest import read_manifest
from internvideo.errors import InternVideoError
from internvideo.evaluation import evaluate_task
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import find_items
from internvideo.features.window_sampling import WindowRule
from internvideo.inference.loading import load
from internvideo.inference.trained_model import open_trained
from internvideo.models.factory import present_settings
from internvideo.pipeline import prepare, run_recipe
from internvideo.probing.fit import FitSettings, fit
from internvideo.recipe import build_recipe, read_recipe
from internvideo.storage import read_safetensors, write_safetensors
from internvideo.tasks import CATALOG
from internvideo.training.recipe import VERSION
from internvideo.weights.convert import convert
from internvideo.weights.initialize import initialize, native_clip
from internvideo.weights.layouts import OVERRIDES

KINDS = ("run", "saved folder", "published", "converted", "transformers")
SIZE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Classifiers on clips of 4 frames of 32 px."""
    folder = tmp_path_factory.mktemp("kinds")
    run = small_apps.trained("supervised")
    load(run, device="cpu").save_pretrained(folder / "saved")
    state, _ = small_checkpoints.small("classifier")
    told = {"heads": 2, "image_size": 32, "frames": 4}  # of no published size: its tensors do not tell
    save_file(state, folder / "published.safetensors", {OVERRIDES: json.dumps(told)})
    torch.save({"module": state}, folder / "checkpoint.pth")
    convert(folder / "checkpoint.pth", folder / "converted.safetensors", overrides=told)
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, tubelet_size=2, num_labels=3, **SIZE
    )
    transformers.VideoMAEForVideoClassification(config).save_pretrained(folder / "transformers")
    return dict(
        zip(
            KINDS,
            (
                run,
                folder / "saved",
                folder / "published.safetensors",
                folder / "converted.safetensors",
                folder / "transformers",
            ),
            strict=True,
        )
    )


def loads(place: Path, folder: Path) -> None:
    assert len(load(place, device="cpu").class_names) >= 2


def evaluates(place: Path, folder: Path) -> None:
    evaluate_task("recognition", place, numbered(folder), folder / "figures", {"device": "cpu"})
    told = json.loads((folder / "figures" / "recognition.json").read_text())
    assert told["coverage"]["read"] == 6


def mixes(place: Path, folder: Path) -> None:
    mixed = mix([place, place], folder / "mixed.safetensors").file
    first, second = (load(one, device="cpu").module.state_dict() for one in (place, mixed))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    evaluates(mixed, folder)


def fits(place: Path, folder: Path) -> None:
    model = load(place, device="cpu")
    assert fit(small_world.world(), model, folder / "fit", FitSettings(folds=2)).file.is_file()


def extracts(place: Path, folder: Path) -> None:
    items, classes = find_items([str(small_apps.clips(1)[0])])
    model = load(place, device="cpu")
    settings = ExtractSettings(rule=WindowRule(4, 4))
    extract(items, model, folder / "features", settings, classes=classes)
    assert list((folder / "features").glob("*.npy"))


def starts(place: Path, folder: Path) -> None:
    opened = open_trained(place, device="cpu")
    model = opened.recipe.model.model_dump()
    tree = small_recipe("supervised", schedule={"steps": 1})
    tree |= {"init": {"weights": str(place)}, "init_head": "random", "model": model}
    recipe = build_recipe(tree)
    started, source = prepare(recipe).model.state_dict(), opened.model.state_dict()
    name = next(name for name in source if name.endswith("blocks.0.attn.proj.weight"))
    assert torch.equal(started[name], source[name])
    assert run_recipe(recipe, folder / "run", device="cpu").is_file()


COMMANDS: dict[str, Callable[[Path, Path], None]] = {
    "load": loads, "evaluate": evaluates, "mix": mixes, "fit": fits, "extract": extracts, "init": starts,
}  # fmt: skip


def numbered(folder: Path) -> Path:
    """Six rows of the small world with numbers as labels, which classes of any names are."""
    rows = read_manifest(small_world.world()).rows
    path = folder / "numbers.txt"
    root = small_world.world().parent
    path.write_text("".join(f"{root / row.path} {row.label}\n" for row in rows[:6]))
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_weights_is_opened_by_every_command(
    kind: str, command: str, places: dict[str, Path], tmp_path: Path
) -> None:
    COMMANDS[command](places[kind], tmp_path)


def test_a_saved_folder_is_measured_as_its_run(places: dict[str, Path], tmp_path: Path) -> None:
    figures = []
    for kind in ("run", "saved folder"):
        result = evaluate_task("recognition", places[kind], numbered(tmp_path), tmp_path / kind, {"device": "cpu"})
        figures.append((result["figures"], result["protocol"]["weights_sha256"]))
    assert figures[0] == figures[1]


def test_what_no_stage_trains_is_refused(tmp_path: Path) -> None:
    small_apps.random_model("viclip").save_pretrained(tmp_path / "viclip")
    with pytest.raises(InternVideoError, match="a model that a stage trains on clips"):
        open_trained(tmp_path / "viclip", device="cpu")


OLD = Path(__file__).parents[1] / "old_run"
OLD_LOGITS = [
    [-0.004318987485021353, 0.004472816362977028],
    [-0.0047551486641168594, 0.004939747508615255],
]
"""What commit 3cd56d4 computed with both files; a run of one step, and what `save_pretrained` made of it."""


@pytest.mark.parametrize("name", ["run", "saved"])
def test_weights_of_an_earlier_version_open(name: str, tmp_path: Path) -> None:
    clips = torch.arange(2 * 3 * 4 * 32 * 32).reshape(2, 3, 4, 32, 32).remainder(251).to(torch.uint8)
    model = load(OLD / f"{name}.safetensors", device="cpu")
    torch.testing.assert_close(model.logits(clips), torch.tensor(OLD_LOGITS), rtol=1e-5, atol=1e-7)
    assert open_trained(OLD / f"{name}.safetensors", device="cpu").recipe.version == VERSION
    evaluate_task("recognition", OLD / f"{name}.safetensors", numbered(tmp_path), tmp_path / "out", {"device": "cpu"})


@pytest.mark.parametrize("kind", ["run", "saved folder"])
def test_weights_with_the_earlier_name_of_num_classes_open(places: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Recipes up to version 3, and saved folders then, called the number of classes in a model's settings `classes`."""
    source = places[kind]
    file = source / "model.safetensors" if source.is_dir() else source
    tensors, metadata = read_safetensors(file)
    key = "internvideo" if "internvideo" in metadata else "recipe"
    settings = json.loads(metadata[key])
    model = settings if key == "internvideo" else settings["model"]
    model["overrides"] = {**model["overrides"], "num_classes": 2}
    model["overrides"]["classes"] = model["overrides"].pop("num_classes")
    earlier = tmp_path / "earlier.safetensors"
    write_safetensors(earlier, tensors, {**metadata, key: json.dumps({**settings, "version": 3}, sort_keys=True)})
    clips = torch.arange(3 * 4 * 32 * 32).reshape(1, 3, 4, 32, 32).remainder(251).to(torch.uint8)
    assert torch.equal(load(earlier, device="cpu").logits(clips), load(file, device="cpu").logits(clips))
    assert open_trained(earlier, device="cpu").recipe.model.overrides["num_classes"] == 2
    assert native_clip(earlier, 2) == native_clip(file, 2)


def test_nested_settings_of_version_3_are_read_and_a_typed_one_is_accepted() -> None:
    overrides = {"masked": {"classes": 4, "width": 8}, "multimodal": {"classes": 4}}
    assert present_settings(CATALOG.models["interaction-b"].config, overrides) == {
        "masked": {"num_classes": 4, "width": 8},
        "multimodal": {"num_classes": 4},
    }
    recipe = read_recipe("sample/supervised_masked", ["model.overrides.classes=2"])
    assert recipe.model.overrides["num_classes"] == 2


@pytest.mark.parametrize("kind", ["run", "saved folder"])
def test_weights_of_a_newer_version_are_refused_by_their_number(
    places: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    source = places[kind]
    file = source / "model.safetensors" if source.is_dir() else source
    tensors, metadata = read_safetensors(file)
    newer = tmp_path / "newer.safetensors"
    write_safetensors(newer, tensors, {**metadata, "format_version": "3"})
    commands: tuple[Callable[[], object], ...] = (
        lambda: load(newer, device="cpu"),
        lambda: open_trained(newer, device="cpu"),
        lambda: mix([newer], tmp_path / "mixed.safetensors"),
        lambda: initialize(load(file, device="cpu").module, {"weights": newer}),
    )
    for command in commands:
        with pytest.raises(InternVideoError, match="format_version 3; expected: 1 to 2; update internvideo"):
            command()
