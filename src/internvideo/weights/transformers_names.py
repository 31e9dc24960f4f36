"""Rename transformers' parameters to published names and back: VideoMAE (the original's), CLIP and SigLIP (OpenAI's).

transformers has separate query, key and value matrices where the published files have one. VideoMAE's query and value
biases are `q_bias` and `v_bias` in older files, `query.bias` and `value.bias` in newer ones; both are read.
Not in the tensors, and therefore not converted: transformers' VideoMAE norms have eps 1e-12 (encoder) and 1e-5
(`fc_norm`, `decoder.norm`), the original and ours 1e-6; CLIP copies with plain GELU need one, ours has QuickGELU.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from internvideo.weights.key_rules import inverted

_WB = r"(weight|bias)"


@dataclass(frozen=True)
class _Piece:
    r"""One line of a table.

    Attributes:
        theirs: regular expression of the whole key.
        published: template of the published name (\1 ...).
        part: index in a published tensor that joins three (query 0, key 1, value 2); None for any other tensor.
        transposed: the published matrix is transposed.
    """

    theirs: str
    published: str
    part: int | None = None
    transposed: bool = False


def _videomae_layers(theirs: str, published: str) -> tuple[_Piece, ...]:
    layer = rf"{theirs}\.(\d+)\."
    return (
        *(
            _Piece(rf"{layer}attention\.attention\.{name}\.weight", rf"{published}.\1.attn.qkv.weight", part)
            for part, name in enumerate(("query", "key", "value"))
        ),
        *(
            _Piece(rf"{layer}attention\.attention\.{key}", rf"{published}.\1.attn.{name}")
            for key, name in ((r"query\.bias", "q_bias"), (r"value\.bias", "v_bias"), ("q_bias",) * 2, ("v_bias",) * 2)
        ),
        _Piece(rf"{layer}attention\.output\.dense\.{_WB}", rf"{published}.\1.attn.proj.\2"),
        _Piece(rf"{layer}intermediate\.dense\.{_WB}", rf"{published}.\1.mlp.fc1.\2"),
        _Piece(rf"{layer}output\.dense\.{_WB}", rf"{published}.\1.mlp.fc2.\2"),
        _Piece(rf"{layer}layernorm_before\.{_WB}", rf"{published}.\1.norm1.\2"),
        _Piece(rf"{layer}layernorm_after\.{_WB}", rf"{published}.\1.norm2.\2"),
    )


def _videomae(trunk: str) -> tuple[_Piece, ...]:
    encoder = r"(?:videomae\.)?"
    return (
        _Piece(rf"{encoder}embeddings\.patch_embeddings\.projection\.{_WB}", rf"{trunk}patch_embed.proj.\1"),
        *_videomae_layers(rf"{encoder}encoder\.layer", f"{trunk}blocks"),
        _Piece(rf"{encoder}layernorm\.{_WB}", rf"{trunk}norm.\1"),
        *_videomae_layers(r"decoder\.decoder_layers", "decoder.blocks"),
        _Piece(rf"classifier\.{_WB}", r"head.\1"),
    )


def _clip_layers(theirs: str, published: str) -> tuple[_Piece, ...]:
    layer = rf"{theirs}encoder\.layers\.(\d+)\."
    return (
        *(
            _Piece(rf"{layer}self_attn\.{name}_proj\.{_WB}", rf"{published}.\1.attn.in_proj_\2", part)
            for part, name in enumerate("qkv")
        ),
        _Piece(rf"{layer}self_attn\.out_proj\.{_WB}", rf"{published}.\1.attn.out_proj.\2"),
        _Piece(rf"{layer}mlp\.fc1\.{_WB}", rf"{published}.\1.mlp.c_fc.\2"),
        _Piece(rf"{layer}mlp\.fc2\.{_WB}", rf"{published}.\1.mlp.c_proj.\2"),
        _Piece(rf"{layer}layer_norm([12])\.{_WB}", rf"{published}.\1.ln_\2.\3"),
    )


VIDEOMAE_PRETRAIN, VIDEOMAE_CLASSIFIER = _videomae("encoder."), _videomae("")
CLIP = (
    _Piece(r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    _Piece(r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    _Piece(r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    _Piece(rf"vision_model\.pre_layrnorm\.{_WB}", r"visual.ln_pre.\1"),  # so spelled
    *_clip_layers(r"vision_model\.", "visual.transformer.resblocks"),
    _Piece(rf"vision_model\.post_layernorm\.{_WB}", r"visual.ln_post.\1"),
    _Piece(r"visual_projection\.weight", "visual.proj", transposed=True),
    _Piece(r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    _Piece(r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    *_clip_layers(r"text_model\.", "transformer.resblocks"),
    _Piece(rf"text_model\.final_layer_norm\.{_WB}", r"ln_final.\1"),
    _Piece(r"text_projection\.weight", "text_projection", transposed=True),
)
_SIGLIP = (*_clip_layers(r"(?:vision_model\.)?", "transformer.resblocks"), _Piece(r"vision_model\.(.*)", r"\1"))


def to_transformers(state: Mapping[str, Tensor], table: Sequence[_Piece]) -> dict[str, Tensor]:
    """Rename tensors under published names to transformers' names, and split query, key and value.

    Names that the table does not have stay; VideoMAE's encoder is that of VideoMAEModel, without "videomae.".
    """
    pieces = [(*inverted(piece.theirs, piece.published), piece) for piece in table]
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        matches = [(match.expand(theirs), p) for names, theirs, p in pieces if (match := re.fullmatch(names, key))]
        if matches and matches[0][1].part is not None:
            found |= {name: tensor.chunk(3)[piece.part or 0].contiguous() for name, piece in matches}
        elif matches:
            found[matches[0][0]] = tensor.t() if matches[0][1].transposed else tensor
        else:
            found[key] = tensor
    return found


def _published(state: Mapping[str, Tensor], table: Sequence[_Piece]) -> dict[str, Tensor]:
    """Rename and join. What the table does not know, or cannot join, keeps its key: the strict loader will name it."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, str]] = defaultdict(dict)
    for key, tensor in state.items():
        if key.endswith("embeddings.position_ids"):  # a constant
            continue
        name, piece = _name(key, table)
        if piece is not None and piece.part is not None and piece.part not in parts[name]:
            parts[name][piece.part] = key
        elif name in found:
            found[key] = tensor
        else:
            found[name] = tensor.t() if piece is not None and piece.transposed and tensor.dim() == 2 else tensor
    for name, keys in parts.items():
        pieces = [state[keys[part]] for part in sorted(keys)]
        if len(pieces) == 3 and len({piece.shape for piece in pieces}) == 1 and pieces[0].dim():
            found[name] = torch.cat(pieces)
        else:
            found.update(zip(keys.values(), (state[key] for key in keys.values()), strict=True))
    return found


def _name(key: str, table: Sequence[_Piece]) -> tuple[str, _Piece | None]:
    for piece in table:
        match = re.fullmatch(piece.theirs, key)
        if match is not None:
            return match.expand(piece.published), piece
    return key, None


published_pretraining = partial(_published, table=VIDEOMAE_PRETRAIN)
published_classifier = partial(_published, table=VIDEOMAE_CLASSIFIER)
published_clip = partial(_published, table=CLIP)
published_siglip = partial(_published, table=_SIGLIP)
"""transformers' state dict -> the same tensors under published names."""
