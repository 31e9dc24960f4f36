"""The transformers package's key layouts, told in published names: VideoMAE (in the original's) and CLIP (in OpenAI's).

Both hold query, key and value apart where the published files hold one matrix. VideoMAE's query and value biases stand
under `q_bias` and `v_bias` in older files, under `query.bias` and `value.bias` in newer ones; both are read.
Not in the tensors, and therefore not carried over: transformers' VideoMAE norms have eps 1e-12 (encoder) and 1e-5
(`fc_norm`, `decoder.norm`), the original and ours 1e-6; CLIP copies with plain GELU need one, ours has QuickGELU.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_WB = r"(weight|bias)"


@dataclass(frozen=True)
class _Piece:
    r"""One line of a table.

    Attributes:
        theirs: regular expression of the whole key.
        published: template of the published name (\1 ...).
        part: place inside a published tensor made of three (query 0, key 1, value 2); None for a tensor by itself.
        transposed: published as the transposed matrix.
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
        _Piece(rf"{layer}attention\.attention\.(?:q_bias|query\.bias)", rf"{published}.\1.attn.q_bias"),
        _Piece(rf"{layer}attention\.attention\.(?:v_bias|value\.bias)", rf"{published}.\1.attn.v_bias"),
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


_PRETRAIN, _CLASSIFIER = _videomae("encoder."), _videomae("")
_CLIP = (
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
_SIGLIP = _clip_layers(r"(?:vision_model\.)?", "transformer.resblocks")
_COUNTERS = r"(vision|text)_model\.embeddings\.position_ids"


def published_pretraining(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VideoMAEForPreTraining -> the original pretraining names."""
    return _published(state, _PRETRAIN)


def published_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VideoMAEForVideoClassification or VideoMAEModel -> the original classifier's names."""
    return _published(state, _CLASSIFIER)


def published_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIPModel -> OpenAI's names."""
    return _published({key: value for key, value in state.items() if not re.fullmatch(_COUNTERS, key)}, _CLIP)


def published_siglip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SiglipVisionModel, also as a part of SiglipModel -> its names, with layers under those of OpenAI's CLIP."""
    bare = {key.removeprefix("vision_model."): value for key, value in state.items()}
    return _published({key: value for key, value in bare.items() if key != "embeddings.position_ids"}, _SIGLIP)


def _published(state: Mapping[str, Tensor], table: Sequence[_Piece]) -> dict[str, Tensor]:
    """Rename and join. What the table does not know, or cannot join, keeps its key: the strict loader will name it."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, str]] = defaultdict(dict)
    for key, tensor in state.items():
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
