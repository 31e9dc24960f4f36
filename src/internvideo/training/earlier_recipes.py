"""Upgrade recipes of earlier versions, saved in weights and run folders, to the current version.

Version 1 had no version number, and the settings of every task below `data`. Versions 1 and 2 had the names that
`RENAMED` lists. Settings of models are renamed by `models.factory.present_settings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from internvideo.training.recipe import VERSION, Catalog

RENAMED = {
    "initial_share": "base_weight",
    "data.also": "data.extra_manifests",
    "data.images": "data.image_manifest",
    "data.augment.as_tested": "data.augment.use_eval_transform",
    "data.loader.repeats": "data.loader.repeated_augmentation",
    "data.sampling.views": "data.sampling.num_clips",
    "data.proposals.most": "data.proposals.top_k",
    "data.queries.most": "data.queries.max_vocab",
    "data.questions.at_once": "data.questions.questions_per_clip",
    "data.questions.each": "data.questions.epoch_over",
    "data.questions.most": "data.questions.max_answers",
    "loop.accumulate": "loop.grad_accum_steps",
    "loop.gradient_clip": "loop.max_grad_norm",
    "schedule.drops": "schedule.milestones",
    "schedule.shape": "schedule.kind",
    "settings.captioned": "settings.max_captioned_clips",
    "settings.centre_radius": "settings.center_sample_radius",
    "settings.clips_at_once": "settings.encode_chunk_size",
    "settings.frame_step": "settings.temporal_stride",
    "settings.keep": "settings.max_cache_size",
    "settings.most": "settings.max_segments",
    "settings.most_overlap": "settings.nms_threshold",
    "settings.normalised_targets": "settings.normalize_targets",
    "settings.overlaps": "settings.tiou_thresholds",
    "settings.recall": "settings.recall_protocol",
    "settings.rows_at_once": "settings.similarity_chunk_size",
    "settings.steps": "settings.max_steps",
    "settings.test_steps": "settings.max_test_steps",
}
"""Setting of versions 1 and 2 -> its name since version 3."""
REPLACED = {
    "data.augment.bicubic": "data.augment.resize_backend=pil_bicubic",
    "data.augment.test_style": "data.augment.resize_backend",
    "data.augment.squash": "data.augment.keep_aspect=false",
}
"""Setting of versions 1 and 2 -> its replacement since version 3."""
RENAMED_VALUES = {
    "stage": {
        "localisation": "temporal_localization",
        "regions": "spatio_temporal_localization",
        "hands": "future_hands",
        "answering": "question_answering",
    },
    "init_head": {"same": "exact", "names": "match_names", "fresh": "random"},
    "schedule.kind": {"whole_cosine": "cosine_including_warmup", "steps": "multistep"},
    "data.augment.crop": {"centre": "center"},
    "settings.mask": {"centre": "center"},
    "settings.debias": {"maximised": "maximized"},
}
"""Setting -> renamed values of versions 1 and 2."""

VERSION_1_DATA = {
    *("extra_manifests", "image_manifest", "image_shards", "shard_index", "image_batch_size", "captions", "sampling"),
    *("augment", "features", "proposals", "key_frames", "hands", "questions", "queries", "world"),
}
VERSION_1_NESTED = {
    "augment": {
        *("size", "crop", "minimum_area", "aspect", "flip", "rand_augment", "erasing", "mixup", "cutmix"),
        *("mix_probability", "mix_switch", "mix_smoothing", "use_eval_transform", "keep_aspect"),
        *("resize_backend", "test_resize"),
    },
    "world": {"panoramas", "clips", "walk"},
}
"""Settings that every recipe of version 1 had, whether its stage read them or not."""


def new_name(setting: str) -> str | None:
    """Return the present name, or the replacement, of a dotted setting of versions 1 and 2; None for any other."""
    return RENAMED.get(setting) or REPLACED.get(setting)


def new_value(setting: str, value: object) -> str | None:
    """Return the present name of a value of versions 1 and 2; None for any other."""
    return RENAMED_VALUES.get(setting, {}).get(value) if isinstance(value, str) else None


def upgrade(tree: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """Convert a saved recipe to the current version; of version 1, drop the settings that its stage did not use."""
    version = tree.get("version", 1)
    if version not in (1, 2, 3):
        return dict(tree)
    new = (dict(tree) if version == 3 else rename_settings(tree)) | {"version": VERSION}
    spec, data = catalog.stages.get(str(new.get("stage"))), new.get("data")
    if version != 1 or spec is None or not isinstance(data, Mapping):
        return new
    new["data"] = _drop_unread(data, spec.data, VERSION_1_DATA)
    for name, version_1_keys in VERSION_1_NESTED.items():
        kind = spec.data.model_fields[name].annotation if name in spec.data.model_fields else None
        if isinstance(new["data"].get(name), Mapping) and isinstance(kind, type) and issubclass(kind, BaseModel):
            new["data"][name] = _drop_unread(new["data"][name], kind, version_1_keys)
    return new


def rename_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Rename the settings of versions 1 and 2 as in version 3.

    Args:
        tree: nested settings. prefix: of their dotted keys, such as "data.".
    """
    new: dict[str, Any] = {}
    for name, value in tree.items():
        old = f"{prefix}{name}"
        key = RENAMED.get(old, old)
        if isinstance(value, Mapping) and old != "model.overrides":
            value = rename_settings(value, f"{old}.")
        elif isinstance(value, str):
            value = RENAMED_VALUES.get(key, {}).get(value, value)
        new[key.rpartition(".")[2] if key != old else name] = value
    if prefix == "data.augment.":
        bicubic, style, squash = (new.pop(name, None) for name in ("bicubic", "test_style", "squash"))
        new |= {"resize_backend": "pil_bicubic" if bicubic else style} if bicubic or style else {}
        new |= {"keep_aspect": False} if squash else {}
    return new


def _drop_unread(values: Mapping[str, Any], kind: type[BaseModel], version_1_keys: Iterable[str]) -> dict[str, Any]:
    """Drop the settings of version 1 that `kind` lacks; unknown keys stay, and are refused later."""
    return {name: value for name, value in values.items() if name in kind.model_fields or name not in version_1_keys}
