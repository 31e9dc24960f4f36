"""Rename transformers' parameters to those of the original files (VideoMAE; OpenAI's CLIP, also for SigLIP) and back.

transformers has separate query, key and value matrices where the original files have one. The query and value biases of
VideoMAE are `q_bias` and `v_bias` in older files of transformers, `query.bias` and `value.bias` in newer ones; both are
read. What the tensors do not contain is not converted here: epsilon of the norms (in transformers' VideoMAE 1e-12 in
the encoder and 1e-5 in `fc_norm` and `decoder.norm`, in the original 1e-6), and the activation (GELU or QuickGELU).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from internvideo.weights.key_rules import invert_renaming

_WB = r"(weight|bias)"


@dataclass(frozen=True)
class _NameRule:
    r"""One row of a table.

    Attributes:
        transformers_key: regular expression of the complete key.
        published: template of the published name (\1 ...).
        qkv_index: 0 for query, 1 for key, 2 for value, which the published tensor concatenates; None for others.
        transposed: the published matrix is the transpose.
    """

    transformers_key: str
    published: str
    qkv_index: int | None = None
    transposed: bool = False


def _videomae_layers(transformers_key: str, published: str) -> tuple[_NameRule, ...]:
    layer = rf"{transformers_key}\.(\d+)\."
    return (
        *(
            _NameRule(rf"{layer}attention\.attention\.{name}\.weight", rf"{published}.\1.attn.qkv.weight", qkv_index)
            for qkv_index, name in enumerate(("query", "key", "value"))
        ),
        *(
            _NameRule(rf"{layer}attention\.attention\.{key}", rf"{published}.\1.attn.{name}")
            for key, name in ((r"query\.bias", "q_bias"), (r"value\.bias", "v_bias"), ("q_bias",) * 2, ("v_bias",) * 2)
        ),
        _NameRule(rf"{layer}attention\.output\.dense\.{_WB}", rf"{published}.\1.attn.proj.\2"),
        _NameRule(rf"{layer}intermediate\.dense\.{_WB}", rf"{published}.\1.mlp.fc1.\2"),
        _NameRule(rf"{layer}output\.dense\.{_WB}", rf"{published}.\1.mlp.fc2.\2"),
        _NameRule(rf"{layer}layernorm_before\.{_WB}", rf"{published}.\1.norm1.\2"),
        _NameRule(rf"{layer}layernorm_after\.{_WB}", rf"{published}.\1.norm2.\2"),
    )


def _videomae(trunk: str) -> tuple[_NameRule, ...]:
    encoder = r"(?:videomae\.)?"
    return (
        _NameRule(rf"{encoder}embeddings\.patch_embeddings\.projection\.{_WB}", rf"{trunk}patch_embed.proj.\1"),
        *_videomae_layers(rf"{encoder}encoder\.layer", f"{trunk}blocks"),
        _NameRule(rf"{encoder}layernorm\.{_WB}", rf"{trunk}norm.\1"),
        *_videomae_layers(r"decoder\.decoder_layers", "decoder.blocks"),
        _NameRule(rf"classifier\.{_WB}", r"head.\1"),
    )


def _clip_layers(transformers_key: str, published: str) -> tuple[_NameRule, ...]:
    layer = rf"{transformers_key}encoder\.layers\.(\d+)\."
    return (
        *(
            _NameRule(rf"{layer}self_attn\.{name}_proj\.{_WB}", rf"{published}.\1.attn.in_proj_\2", qkv_index)
            for qkv_index, name in enumerate("qkv")
        ),
        _NameRule(rf"{layer}self_attn\.out_proj\.{_WB}", rf"{published}.\1.attn.out_proj.\2"),
        _NameRule(rf"{layer}mlp\.fc1\.{_WB}", rf"{published}.\1.mlp.c_fc.\2"),
        _NameRule(rf"{layer}mlp\.fc2\.{_WB}", rf"{published}.\1.mlp.c_proj.\2"),
        _NameRule(rf"{layer}layer_norm([12])\.{_WB}", rf"{published}.\1.ln_\2.\3"),
    )


VIDEOMAE_PRETRAIN, VIDEOMAE_CLASSIFIER = _videomae("encoder."), _videomae("")
CLIP = (
    _NameRule(r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    _NameRule(r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    _NameRule(r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    _NameRule(rf"vision_model\.pre_layrnorm\.{_WB}", r"visual.ln_pre.\1"),  # so spelled
    *_clip_layers(r"vision_model\.", "visual.transformer.resblocks"),
    _NameRule(rf"vision_model\.post_layernorm\.{_WB}", r"visual.ln_post.\1"),
    _NameRule(r"visual_projection\.weight", "visual.proj", transposed=True),
    _NameRule(r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    _NameRule(r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    *_clip_layers(r"text_model\.", "transformer.resblocks"),
    _NameRule(rf"text_model\.final_layer_norm\.{_WB}", r"ln_final.\1"),
    _NameRule(r"text_projection\.weight", "text_projection", transposed=True),
)
_SIGLIP = (*_clip_layers(r"(?:vision_model\.)?", "transformer.resblocks"), _NameRule(r"vision_model\.(.*)", r"\1"))


def to_transformers(state: Mapping[str, Tensor], table: Sequence[_NameRule]) -> dict[str, Tensor]:
    """Rename tensors under published names to transformers' names, and split query, key and value.

    Names that the table does not have are unchanged; the encoder of VideoMAE gets no prefix "videomae.".
    """
    rules = [(*invert_renaming(rule.transformers_key, rule.published), rule) for rule in table]
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        matches = [
            (match.expand(transformers_key), p)
            for names, transformers_key, p in rules
            if (match := re.fullmatch(names, key))
        ]
        if matches and matches[0][1].qkv_index is not None:
            renamed |= {name: tensor.chunk(3)[rule.qkv_index or 0].contiguous() for name, rule in matches}
        elif matches:
            renamed[matches[0][0]] = tensor.t() if matches[0][1].transposed else tensor
        else:
            renamed[key] = tensor
    return renamed


def _to_published_names(state: Mapping[str, Tensor], table: Sequence[_NameRule]) -> dict[str, Tensor]:
    """Rename, and concatenate query, key and value; unknown and incomplete tensors keep their keys, for the loader."""
    renamed: dict[str, Tensor] = {}
    qkv_keys: dict[str, dict[int, str]] = defaultdict(dict)
    for key, tensor in state.items():
        if key.endswith("embeddings.position_ids"):  # a constant
            continue
        name, rule = _find_rule(key, table)
        if rule is not None and rule.qkv_index is not None and rule.qkv_index not in qkv_keys[name]:
            qkv_keys[name][rule.qkv_index] = key
        elif name in renamed:
            renamed[key] = tensor
        else:
            renamed[name] = tensor.t() if rule is not None and rule.transposed and tensor.dim() == 2 else tensor
    for name, keys in qkv_keys.items():
        rules = [state[keys[qkv_index]] for qkv_index in sorted(keys)]
        if len(rules) == 3 and len({rule.shape for rule in rules}) == 1 and rules[0].dim():
            renamed[name] = torch.cat(rules)
        else:
            renamed.update(zip(keys.values(), (state[key] for key in keys.values()), strict=True))
    return renamed


def _find_rule(key: str, table: Sequence[_NameRule]) -> tuple[str, _NameRule | None]:
    for rule in table:
        match = re.fullmatch(rule.transformers_key, key)
        if match is not None:
            return match.expand(rule.published), rule
    return key, None


published_pretraining = partial(_to_published_names, table=VIDEOMAE_PRETRAIN)
published_classifier = partial(_to_published_names, table=VIDEOMAE_CLASSIFIER)
published_clip = partial(_to_published_names, table=CLIP)
published_siglip = partial(_to_published_names, table=_SIGLIP)
"""transformers' state dict -> the same tensors under published names."""
