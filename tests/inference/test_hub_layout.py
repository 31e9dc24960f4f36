"""A saved model is the same model, and a folder in which anything was changed is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published_keys
import pytest
import small_apps
import torch
import yaml
from small_apps import FAMILIES, random_model

from internvideo import VideoModel, load
from internvideo.errors import RecipeError, RunError, WeightsError
from internvideo.inference import hub_folder
from internvideo.model_table import create_model
from internvideo.storage import read_safetensors, write_safetensors
from internvideo.weights.initialize import initialize
from internvideo.weights.layout_families import FAMILIES as LAYOUTS
from internvideo.weights.licenses import LICENSES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_gives_the_same_answers(family: str, tmp_path: Path) -> None:
    model = random_model(family)
    assert model.save_pretrained(tmp_path / "saved") == tmp_path / "saved"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
    ]
    again = VideoModel.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(again.encode_video(small_apps.clips()), model.encode_video(small_apps.clips()))
    assert (again.config, again.class_names, again.capabilities) == (
        model.config,
        model.class_names,
        model.capabilities,
    )
    if "text" in model.capabilities:
        assert torch.equal(again.encode_text(["a dog"]), model.encode_text(["a dog"]))
    if "caption" in model.capabilities:
        assert again.caption(small_apps.clips(1)) == model.caption(small_apps.clips(1))


def test_a_run_keeps_its_classes_and_clips(tmp_path: Path) -> None:
    model = load(small_apps.trained("supervised"), device="cpu")
    model.metadata["licence"] = "Apache-2.0"
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu")
    assert again.classify(small_apps.clips()) == model.classify(small_apps.clips())
    assert again.preprocessing == model.preprocessing
    assert again.metadata["weights_sha256"] == hub_folder.weights_hash(model.module)
    assert again.metadata["licence"] == "Apache-2.0"
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["metadata"]["source"] == "model.safetensors", "no folder of this machine"
    assert load("videomae-s-classifier", weights=tmp_path / "saved", device="cpu").class_names == model.class_names
    assert load(tmp_path / "saved" / "model.safetensors", device="cpu").class_names == model.class_names
    with pytest.raises(WeightsError, match="weights of 'videomae-s-classifier'; expected: videomae-b-classifier"):
        load("videomae-b-classifier", weights=tmp_path / "saved", device="cpu")


def test_a_new_head_on_a_saved_model(tmp_path: Path) -> None:
    model = load(small_apps.trained("supervised"), device="cpu")
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", num_classes=4, device="cpu")
    assert again.class_names == ("0", "1", "2", "3")
    assert torch.equal(again.encode_video(small_apps.clips()), model.encode_video(small_apps.clips()))
    with pytest.raises(RecipeError, match="this checkpoint already carries its config"):
        load(tmp_path / "saved", overrides={"depth": 8}, device="cpu")


def test_the_weights_alone_are_enough(tmp_path: Path) -> None:
    model = random_model("multimodal")
    model.save_pretrained(tmp_path / "saved")
    alone = tmp_path / "alone.safetensors"
    (tmp_path / "saved" / "model.safetensors").rename(alone)
    again = load(alone, device="cpu")
    assert torch.equal(again.encode_video(small_apps.clips()), model.encode_video(small_apps.clips()))
    with pytest.raises(WeightsError, match="no such file"):
        load(tmp_path / "saved", device="cpu")


def test_half_precision_stays_half(tmp_path: Path) -> None:
    model = VideoModel("videomae-s-pretrain", random_model("masked").module, precision="bfloat16")
    model.save_pretrained(tmp_path / "saved")
    assert {value.dtype for value in read_safetensors(tmp_path / "saved" / "model.safetensors")[0].values()} == {
        torch.bfloat16
    }
    again = load(tmp_path / "saved", device="cpu", precision="bfloat16")
    assert torch.equal(again.encode_video(small_apps.clips()), model.encode_video(small_apps.clips()))


# -------------------------------------------------------------------------------------------------------- the card


def test_the_card_tells_licence_protocol_and_hashes(tmp_path: Path) -> None:
    model = load(small_apps.trained("supervised"), device="cpu")
    model.metadata["licence"] = "CC BY-NC 4.0"
    card = (model.save_pretrained(tmp_path / "saved") / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "internvideo",
        "license": "cc-by-nc-4.0",
        "pipeline_tag": "video-classification",
        "tags": ["video", "internvideo", "sentence-transformers"],
    }
    for told in (
        "CC BY-NC 4.0",
        "moving left to right",
        hashlib.sha256((tmp_path / "saved" / "model.safetensors").read_bytes()).hexdigest(),
        hub_folder.weights_hash(model.module),
        "4 frames by the rule 'segment_middle'",
        "32 x 32",
        "stage: supervised",
    ):
        assert told in body
    program = body.split("```python\n")[1].split("```")[0]
    place = str(tmp_path / "saved")
    scope: dict[str, Any] = {}
    text = program.replace("FOLDER_OR_hf://ORGANISATION/REPOSITORY", place)
    exec(compile(text.replace("clip.mp4", str(small_apps.clips()[0])), "card", "exec"), scope)
    assert isinstance(scope["model"], VideoModel)


@pytest.mark.parametrize("family", ["masked", "multimodal"])
def test_the_use_on_the_card_is_what_the_model_can(family: str, tmp_path: Path) -> None:
    card = (random_model(family).save_pretrained(tmp_path / "saved") / "README.md").read_text()
    assert ("model.caption(" in card) == (family == "multimodal")
    assert ("model.classify(" in card) == (family == "multimodal")
    assert "license: unknown" in card


# ------------------------------------------------------------------------------------------------------- tampering


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return load(small_apps.trained("supervised"), device="cpu").save_pretrained(tmp_path / "saved")


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_a_changed_tensor_is_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"SHA-256 .*changed or damaged"):
        load(saved, device="cpu")
    with pytest.raises(WeightsError, match=r"SHA-256 .*changed or damaged"):
        load(path, device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["classes"].reverse(),
        lambda config: config["preprocessing"].update(frames=8),
        lambda config: config.update(model="videomae-b-classifier"),
        lambda config: config["metadata"].update(licence="MIT"),
        lambda config: config.pop("metadata"),
        lambda config: config.update(more=1),
    ],
)
def test_a_changed_setting_is_refused(saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    changed(saved / "config.json", change)
    with pytest.raises(WeightsError, match="differs from the settings inside"):
        load(saved, device="cpu")


@pytest.mark.parametrize(
    "change", [lambda c: c.pop("files"), lambda c: c["files"].clear(), lambda c: c.update(files=3)]
)
def test_a_missing_hash_is_refused(saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    changed(saved / "config.json", change)
    with pytest.raises(WeightsError, match=r"config\.json says nothing"):
        load(saved, device="cpu")


def test_weights_of_another_model_are_refused(saved: Path, tmp_path: Path) -> None:
    other = random_model("masked").save_pretrained(tmp_path / "other")
    (other / "model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(WeightsError, match="SHA-256"):
        load(saved, device="cpu")


def rewritten(folder: Path, settings: dict[str, Any]) -> None:
    """Both files say the same, as a careful forger or a later version would write them."""
    state, _ = read_safetensors(folder / "model.safetensors")
    write_safetensors(folder / "model.safetensors", state, {hub_folder.SETTINGS_KEY: json.dumps(settings)})
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    whole = {"library_name": "internvideo", **settings, "files": {"model.safetensors": {"sha256": digest}}}
    (folder / "config.json").write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"format_version": 3}, "format_version 3; expected: 1 to 2"),
        ({"model": "no-such-model"}, "unknown model"),
        ({"overrides": {"no_such": 1}}, "no_such"),
        ({"overrides": {}}, "mis-shaped"),
        ({"preprocessing": {"frames": 4}}, "frames or size"),
        ({"preprocessing": 4}, "do not fit"),
        ({"classes": ["a"]}, "class names"),
        ({"classes": None}, "do not fit"),
        ({"metadata": []}, "do not fit"),
    ],
)
def test_settings_that_do_not_fit_are_told(saved: Path, change: dict[str, Any], found: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    settings = {key: value for key, value in config.items() if key not in ("files", "library_name")}
    rewritten(saved, settings)
    assert load(saved, device="cpu").class_names
    rewritten(saved, settings | change)
    with pytest.raises((WeightsError, RecipeError), match=found) as error:
        load(saved, device="cpu")
    assert "\n" not in str(error.value)


def test_folders_of_others_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        VideoModel.from_pretrained(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        VideoModel.from_pretrained(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text('{"model_type": "videomae"}')
    with pytest.raises(WeightsError, match=r"of another library .*'videomae'"):
        VideoModel.from_pretrained(tmp_path, device="cpu")


# --------------------------------------------------------------------------------------------------- nothing by half


def test_saving_again_replaces_and_keeps_what_is_not_ours(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    random_model("masked").save_pretrained(saved)
    assert load(saved, device="cpu").name == "videomae-s-pretrain"
    assert (saved / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in saved.parent.iterdir()) == ["saved"]


@pytest.mark.parametrize("broken", ["model.safetensors", "README.md", "config.json"])
def test_a_full_disk_leaves_the_earlier_model(saved: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    sync = os.fsync

    def full(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith(f".{Path(broken).stem}."):
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        random_model("masked").save_pretrained(saved)
    with pytest.raises(RunError, match="No space left"):
        random_model("masked").save_pretrained(saved.parent / "fresh")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["saved"]


def test_a_published_model_starts_a_fine_tuning_once_it_is_saved(tmp_path: Path) -> None:
    keys = published_keys.numbers(published_keys.uniformerv2(32, 16, 64, 2, 1, classes=5))
    write_safetensors(tmp_path / "published.safetensors", {f"module.{key}": value for key, value in keys.items()})
    model = load(tmp_path / "published.safetensors", device="cpu", overrides={"heads": 1, "global_layers": [1]})
    model.save_pretrained(tmp_path / "saved")
    fresh = create_model(model.name, model.config["overrides"])  # type: ignore[arg-type]  # plain values of any kind
    initialize(fresh, {"weights": tmp_path / "saved" / "model.safetensors"})
    assert hub_folder.weights_hash(fresh) == model.metadata["weights_sha256"]


# ------------------------------------------------------------------------------------------------- where it is written


def test_the_folder_one_stands_in_and_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("masked")
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for folder in (".", "", tmp_path / "link"):
        assert model.save_pretrained(folder) == Path(folder)
        assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
            "README.md",
            "config.json",
            "config_sentence_transformers.json",
            "model.safetensors",
            "modules.json",
        ]
        assert load(tmp_path / "here", device="cpu").name == model.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link"]
    assert (tmp_path / "link").is_symlink()


# ----------------------------------------------------------------------------------------------------------- licences


def test_every_layout_has_its_licence_or_none_is_known() -> None:
    assert set(LICENSES) == {family.name for family in LAYOUTS}
    for name, stated in LICENSES.values():
        assert hub_folder._license_id(name) == name, "as hubs spell it"
        assert stated or name == "unknown"


def test_no_licence_is_guessed_from_keys(tmp_path: Path) -> None:
    keys = published_keys.uniformerv2(32, 16, 64, 2, 1, classes=5)
    write_safetensors(tmp_path / "published.safetensors", published_keys.numbers(keys))
    model = load(tmp_path / "published.safetensors", device="cpu", overrides={"heads": 1, "global_layers": [1]})
    card = (model.save_pretrained(tmp_path / "saved") / "README.md").read_text()
    assert "license: unknown" in card
    assert "- licence of the weights: unknown (of the published weights of this layout: mit by the README of" in card
    assert "the tensors do not determine whether these are they" in card
    again = load(tmp_path / "saved", device="cpu")
    assert again.metadata["licence"] == "unknown"
    fresh = load(tmp_path / "saved", num_classes=3, device="cpu")
    assert fresh.metadata["licence_stated"] == model.metadata["licence_stated"]


def test_weights_of_ones_own_have_no_licence_but_ones_own(tmp_path: Path) -> None:
    model = load(small_apps.trained("supervised"), device="cpu")
    assert model.metadata["licence"] == "unknown"
    assert "licence_stated" not in model.metadata
