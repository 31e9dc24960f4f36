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

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE_HINT = "merge it where it was trained (peft: merge_and_unload) and save the resulting model"
REQUIRED_SETTINGS = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""Setting of peft -> the only supported value; with others the update is not s B A."""


def find_base_folder(config: Path) -> Path:
    """Return the folder of the base model of an adapter. Raises WeightsError: it is not on this machine."""
    name = read_config(config).get("base_model_name_or_path")
    for folder in (Path(str(name)), config.parent / str(name)):
        if name and folder.is_dir():
            return folder
    hint = f"name the folder of its base model in {ADAPTER_CONFIG}, or {MERGE_HINT}"
    raise WeightsError(config.parent, f"a LoRA adapter of {name!r}, which is no folder here", "a whole model", hint)


def merge_adapter(config: Path, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the adapter beside `config` into the weights of the base model. Raises WeightsError."""
    scale = _scale(read_config(config), config)
    path = config.with_name(ADAPTER_WEIGHTS)
    adapter, _ = read_safetensors(path)
    state = dict(base)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in adapter.items():
        name = key.removeprefix("base_model.model.").replace(".modules_to_save.", ".")
        pair = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if pair:
            pairs.setdefault(f"{pair.group(1)}.weight", {})[pair.group(2)] = tensor
        elif name in base:  # trained without LoRA, such as a classifier
            state[name] = tensor
        else:
            raise WeightsError(path, f"{key} is not in the base model", "LoRA of its linear layers", MERGE_HINT)
    for name, matrices in pairs.items():
        weight, down, up = state.get(name), matrices.get("A"), matrices.get("B")
        if weight is None or down is None or up is None or down.dim() != 2 or up.dim() != 2:
            found = f"no complete pair of matrices for {name}"
            raise WeightsError(path, found, "LoRA of the base model's layers", MERGE_HINT)
        if up.shape[1] != down.shape[0] or weight.shape != (up.shape[0], down.shape[1]):
            raise WeightsError(path, f"matrices of other shapes for {name}", str(tuple(weight.shape)), MERGE_HINT)
        state[name] = (weight.double() + scale * (up.double() @ down.double())).to(weight.dtype)
    return state


def _scale(config: Mapping[str, Any], where: Path) -> float:
    """Return the scale s of an adapter. Raises WeightsError: another kind than plain LoRA."""
    unsupported = [key for key, plain in REQUIRED_SETTINGS.items() if (config.get(key) or plain) != plain]
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("peft_type") != "LORA" or unsupported:
        found = (
            f"{unsupported[0]} {config[unsupported[0]]!r}"
            if unsupported
            else f"an adapter of type {config.get('peft_type')!r}"
        )
        raise WeightsError(where, found, "plain LoRA", MERGE_HINT)
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise WeightsError(where, f"r {rank!r}, lora_alpha {alpha!r}", "numbers", MERGE_HINT)
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
