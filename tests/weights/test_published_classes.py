"""Class names of published heads: shipped lists, and which heads get them by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import published_keys as keys
import pytest

from internvideo import load
from internvideo.errors import RecipeError
from internvideo.storage import write_safetensors
from internvideo.weights.published_classes import LISTS, published_classes


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
    with pytest.raises(RecipeError, match="kinetics500"):
        published_classes("kinetics500")


def test_the_sets_of_kinetics_are_those_of_the_mixture() -> None:
    mixture, smaller, larger = (published_classes(f"kinetics{count}") for count in (710, 600, 700))
    assert (mixture[0], mixture[399], mixture[400], mixture[709]) == (
        "riding a bike", "playing badminton", "poaching eggs", "bull fighting",
    )  # fmt: skip
    # Only in words do the two sources of the first 400 differ.
    assert sum(a != b for a, b in zip(mixture, published_classes("kinetics400"), strict=False)) == 13
    assert set(smaller) | set(larger) | set(mixture[:400]) == set(mixture)
    assert set(mixture[400:]) - set(smaller) == set(mixture[400:492])  # what Kinetics-700 brought
    assert set(mixture) - set(larger) == {
        "cleaning floor", "swinging legs", "vault", "taking a shower", "riding mountain bike", "strumming guitar",
        "using computer", "drinking beer", "chopping vegetables", "bull fighting",
    }  # fmt: skip
    assert (smaller[0], smaller[599], larger[0], larger[699]) == (
        "feeding fish", "playing organ", "counting money", "square dancing",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "rest", "name"),
    [
        (lambda: keys.uniformerv2(32, 16, 64, 2, 1, classes=400), {"heads": 1, "global_layers": [1]}, "kinetics400"),
        (lambda: keys.uniformerv2(32, 16, 64, 2, 1, classes=600), {"heads": 1, "global_layers": [1]}, "kinetics600"),
        (lambda: keys.uniformerv2(32, 16, 64, 2, 1, classes=700), {"heads": 1, "global_layers": [1]}, "kinetics700"),
        (lambda: keys.uniformerv2(32, 16, 64, 2, 1, classes=710), {"heads": 1, "global_layers": [1]}, "kinetics710"),
        (lambda: keys.videomae_classifier(64, 1, 128, 174), {"heads": 1}, "something_v2"),
        (lambda: keys.videomae_classifier(64, 1, 128, 400), {"heads": 1}, ""),  # published in two orders
        (lambda: keys.uniformerv2(32, 16, 64, 2, 1, classes=174), {"heads": 1, "global_layers": [1]}, ""),  # V1 or V2
    ],
    ids=[
        *(f"UniFormerV2, {count}" for count in (400, 600, 700, 710)),
        "VideoMAE, 174",
        "VideoMAE, 400",
        "UniFormerV2, 174",
    ],
)
def test_heads_published_with_one_list_get_its_names(
    make: Callable[[], keys.Keys], rest: dict[str, object], name: str, tmp_path: Path
) -> None:
    write_safetensors(tmp_path / "w.safetensors", keys.numbers(make()))
    model = load(tmp_path / "w.safetensors", device="cpu", overrides=rest)
    count = len(model.class_names)
    assert model.class_names == (published_classes(name) if name else tuple(map(str, range(count))))
    assert ("classes" in model.metadata) is bool(name)
    own = [f"class {number}" for number in range(count)]
    assert load(tmp_path / "w.safetensors", device="cpu", overrides=rest, class_names=own).class_names == tuple(own)
    with pytest.raises(RecipeError, match="3 names"):
        load(tmp_path / "w.safetensors", device="cpu", overrides=rest, class_names=["a", "b", "c"])


def test_a_list_can_be_asked_for(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", keys.numbers(keys.videomae_classifier(64, 1, 128, 80)))
    model = load(tmp_path / "w.safetensors", device="cpu", overrides={"heads": 1}, class_names="ava")
    assert model.class_names[16] == "carry/hold (an object)"
    assert len(model.class_names) == 80
