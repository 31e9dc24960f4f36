"""Tables of facts stored beside the models: masks, key renaming, layer decay; and who checks the other tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from internvideo.models.videomae import VideoMAEClassifier, pretrain_to_classifier
from internvideo.objectives.masking import random_mask, tube_mask
from parity_families.videomae import classifier_config

Check = Callable[[dict[str, Any]], None]


def _masks(content: dict[str, Any], kind: str) -> None:
    """As many tokens are masked as in the published draws, and a tube's in every slot at the same places."""
    frames, height, width = content["window"]
    draw = {"tube": tube_mask, "random": random_mask}[kind]
    ours = draw(len(content[kind]), (frames, height, width), content["ratio"], torch.Generator().manual_seed(0))
    for stored, mask in zip(content[kind], ours, strict=True):
        published = torch.tensor([value == "1" for value in stored])
        assert int(mask.sum()) == int(published.sum())
        for each in (published, mask) if kind == "tube" else ():
            slots = each.view(frames, height * width)
            assert torch.equal(slots, slots[:1].expand_as(slots))


def check_tube(content: dict[str, Any]) -> None:
    _masks(content, "tube")


def check_random(content: dict[str, Any]) -> None:
    _masks(content, "random")


def check_masks_are_all_read(content: dict[str, Any]) -> None:
    assert set(content) == {"note", "seed", "window", "ratio", "tube", "random"}


def _classifier(arguments: dict[str, Any]) -> VideoMAEClassifier:
    with torch.device("meta"):
        return VideoMAEClassifier(classifier_config(arguments))


def _renamed(content: dict[str, Any]) -> dict[str, str]:
    keys = [*content["loaded"].values(), *content["ignored_pretrain_keys"]]
    assert len(keys) == content["n_pretrain_keys"]
    state = {key: torch.tensor(float(place)) for place, key in enumerate(keys)}
    return {ours: keys[int(value)] for ours, value in pretrain_to_classifier(state).items()}


def check_loaded(content: dict[str, Any]) -> None:
    assert _renamed(content) == content["loaded"]


def check_kept(content: dict[str, Any]) -> None:
    own = set(_classifier(content["finetune_constructor"]).state_dict())
    assert own - set(_renamed(content)) == set(content["missing_keep_init"])


def check_ignored(content: dict[str, Any]) -> None:
    assert not set(_renamed(content).values()) & set(content["ignored_pretrain_keys"])


def check_scales(content: dict[str, Any]) -> None:
    model = _classifier(content["constructor"])
    decay = content["layer_decay"]
    assert [decay ** (model.max_layer_id - layer) for layer in range(model.max_layer_id + 1)] == content["scale_values"]


def check_parameters(content: dict[str, Any]) -> None:
    model = _classifier(content["constructor"])
    ours = {
        name: {
            "lr_scale": content["scale_values"][model.get_layer_id(name)],
            "weight_decay": 0.0 if model.no_weight_decay(name, parameter) else content["weight_decay"],
        }
        for name, parameter in model.named_parameters()
    }
    assert ours == content["params"]


def check_drop_path(content: dict[str, Any]) -> None:
    model = _classifier(content["constructor"])
    assert [block.config.drop_path for block in model.blocks] == content["drop_path_per_block"]


FACTS: dict[str, dict[str, Check] | None] = {
    "tube": {"tube": check_tube, "random": check_random, "all_read": check_masks_are_all_read},
    "ignored_pretrain_keys": {"loaded": check_loaded, "kept": check_kept, "ignored": check_ignored},
    "scale_values": {"scales": check_scales, "parameters": check_parameters, "drop_path": check_drop_path},
    "cases": None,
    "vocab_file_sha256": None,
    "frame_indices": None,
}
"""A key that only this kind of table has -> its checks; None where the tests of another part hold them."""


def fact_of(content: dict[str, Any]) -> str | None:
    """The kind of a table, None when it is unknown."""
    return next((key for key in FACTS if key in content), None)
