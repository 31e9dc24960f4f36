"""Merge LoRA adapters, as peft saves them, into their base model.

An adapter adds s B A to the matrix W of a linear layer; s = alpha / r is only in adapter_config.json (LoRA,
arXiv 2106.09685, 4.1). Other kinds of adapters are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from internvideo.errors import WeightsError
from internvideo.storage import read_safetensors
from internvideo.weights.published_config import read_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "merge it where it was trained (peft: merge_and_unload) and save the model that this gives"
PLAIN = {"use_dora": False, "fan_in_fan_out": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}}
"""Settings whose other values make another sum than s B A."""


def base_of(config: Path) -> Path:
    """Return the folder of an adapter's base model. Raises WeightsError: it is not on this machine."""
    name = read_config(config).get("base_model_name_or_path")
    for folder in (Path(str(name)), config.parent / str(name)):
        if name and folder.is_dir():
            return folder
    hint = f"name the folder of its base model in {CONFIG}, or {MERGE}"
    raise WeightsError(config.parent, f"a LoRA adapter of {name!r}, which is no folder here", "a whole model", hint)


def merged(config: Path, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the adapter beside `config` into the weights of the base model. Raises WeightsError."""
    scale = _scale(read_config(config), config)
    place = config.with_name(WEIGHTS)
    adapter, _ = read_safetensors(place)
    state = dict(base)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in adapter.items():
        name = key.removeprefix("base_model.model.").replace(".modules_to_save.", ".")
        pair = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if pair:
            pairs.setdefault(f"{pair.group(1)}.weight", {})[pair.group(2)] = tensor
        elif name in base:  # trained whole: a classifier
            state[name] = tensor
        else:
            raise WeightsError(place, f"{key} has no place in the base model", "LoRA of its linear layers", MERGE)
    for name, parts in pairs.items():
        weight, down, up = state.get(name), parts.get("A"), parts.get("B")
        if weight is None or down is None or up is None or down.dim() != 2 or up.dim() != 2:
            raise WeightsError(place, f"no whole pair of matrices for {name}", "LoRA of the base model's layers", MERGE)
        if up.shape[1] != down.shape[0] or weight.shape != (up.shape[0], down.shape[1]):
            raise WeightsError(place, f"matrices of other shapes for {name}", str(tuple(weight.shape)), MERGE)
        state[name] = (weight.double() + scale * (up.double() @ down.double())).to(weight.dtype)
    return state


def _scale(config: Mapping[str, Any], where: Path) -> float:
    """Return s of an adapter. Raises WeightsError: another kind than plain LoRA."""
    odd = [key for key, plain in PLAIN.items() if (config.get(key) or plain) != plain]
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("peft_type") != "LORA" or odd:
        found = f"{odd[0]} {config[odd[0]]!r}" if odd else f"an adapter of type {config.get('peft_type')!r}"
        raise WeightsError(where, found, "plain LoRA", MERGE)
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise WeightsError(where, f"r {rank!r}, lora_alpha {alpha!r}", "numbers", MERGE)
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
