"""Class names of published heads: shipped lists, and which heads get them by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import published_keys as keys
from internvideo import load
from internvideo.data.published_classes import LISTS, published_classes
from internvideo.errors import RecipeError
from internvideo.storage import write_safetensors


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_its_names_once_each(name: str) -> None:
    names = published_classes(name)
    assert len(names) == len(set(names)) == LISTS[name]
    assert all(part and part == part.strip() for part in names)


def test_the_order_is_that_of_the_checkpoints() -> None:
    kinetics, something, ava = (published_classes(name) for name in ("kinetics400", "something_v2", "ava"))
    assert (kinetics[0], kinetics[399]) == ("riding a bike", "playing badminton")
    assert (something[0], something[173]) == (
        "Approaching something with your camera", "Wiping something off of something",
    )  # fmt: skip
    assert (ava[0], ava[11], ava[16], ava[79]) == (
        "bend/bow (at the waist)", "stand", "carry/hold (an object)", "watch (a person)",
    )  # fmt: skip
    with pytest.raises(RecipeError, match="kinetics600"):
        published_classes("kinetics600")


@pytest.mark.parametrize(
    ("make", "rest", "name"),
    [
        (lambda: keys.uniformerv2(32, 16, 64, 2, 1, classes=400), {"heads": 1, "global_layers": [1]}, "kinetics400"),
        (lambda: keys.videomae_classifier(64, 1, 128, 174), {"heads": 1}, "something_v2"),
        (lambda: keys.videomae_classifier(64, 1, 128, 400), {"heads": 1}, ""),  # published in two orders
        (lambda: keys.uniformerv2(32, 16, 64, 2, 1, classes=174), {"heads": 1, "global_layers": [1]}, ""),  # V1 or V2
    ],
    ids=["UniFormerV2, 400", "VideoMAE, 174", "VideoMAE, 400", "UniFormerV2, 174"],
)
def test_heads_published_with_one_list_get_its_names(
    make: Callable[[], keys.Keys], rest: dict[str, object], name: str, tmp_path: Path
) -> None:
    write_safetensors(tmp_path / "w.safetensors", keys.numbers(make()))
    model = load(tmp_path / "w.safetensors", device="cpu", overrides=rest)
    count = len(model.classes)
    assert model.classes == (published_classes(name) if name else tuple(map(str, range(count))))
    assert ("classes" in model.metadata) is bool(name)
    own = [f"class {number}" for number in range(count)]
    assert load(tmp_path / "w.safetensors", device="cpu", overrides=rest, classes=own).classes == tuple(own)
    with pytest.raises(RecipeError, match="3 names"):
        load(tmp_path / "w.safetensors", device="cpu", overrides=rest, classes=["a", "b", "c"])


def test_a_list_can_be_asked_for(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", keys.numbers(keys.videomae_classifier(64, 1, 128, 80)))
    model = load(tmp_path / "w.safetensors", device="cpu", overrides={"heads": 1}, classes="ava")
    assert model.classes[16] == "carry/hold (an object)"
    assert len(model.classes) == 80
