"""Keys and shapes of the published checkpoints at any size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

Shape = tuple[int, ...]
Keys = dict[str, Shape]


def meta(keys: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Tensors without memory."""
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}


def numbers(keys: Mapping[str, Shape], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors, as trained ones: nothing is zero. Batch norm's variances are positive, its counters whole."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in keys.items()}
    for key in state:
        if key.endswith("running_var"):
            state[key] = state[key].abs() + 0.5
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("inv_freq"):
            half = len(state[key])
            state[key] = 1.0 / 10000 ** (torch.arange(half) / half)
        elif key.endswith("beta"):
            state[key] = torch.zeros_like(state[key])
    return state


def pair(key: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    """A weight and its bias."""
    yield f"{key}.weight", shape
    yield f"{key}.bias", shape[:1]


def videomae_trunk(
    prefix: str, width: int, depth: int, hidden: int, *, scale: bool = False, biases: bool = True
) -> Iterator[tuple[str, Shape]]:
    for i in range(depth):
        block = f"{prefix}blocks.{i}."
        if scale:
            yield f"{block}gamma_1", (width,)
            yield f"{block}gamma_2", (width,)
        yield from pair(f"{block}norm1", width)
        if biases:
            yield f"{block}attn.q_bias", (width,)
            yield f"{block}attn.v_bias", (width,)
        yield f"{block}attn.qkv.weight", (3 * width, width)
        yield from pair(f"{block}attn.proj", width, width)
        yield from pair(f"{block}norm2", width)
        yield from pair(f"{block}mlp.fc1", hidden, width)
        yield from pair(f"{block}mlp.fc2", width, hidden)


def videomae_pretrain(
    width: int, depth: int, hidden: int, decoder: int, decoder_depth: int = 4, patch: int = 16, decoder_hidden: int = 0
) -> Keys:
    pixels = 6 * patch**2
    return {
        "mask_token": (1, 1, decoder),
        **dict(pair("encoder.patch_embed.proj", width, 3, 2, patch, patch)),
        **dict(videomae_trunk("encoder.", width, depth, hidden)),
        **dict(pair("encoder.norm", width)),
        **dict(videomae_trunk("decoder.", decoder, decoder_depth, decoder_hidden or 4 * decoder)),
        **dict(pair("decoder.norm", decoder)),
        **dict(pair("decoder.head", pixels, decoder)),
        "encoder_to_decoder.weight": (decoder, width),
    }


def videomae_classifier(
    width: int, depth: int, hidden: int, classes: int, patch: int = 16, *, first: bool = False, scale: bool = False
) -> Keys:
    return {
        **dict(pair("patch_embed.proj", width, 3, 2, patch, patch)),
        **dict(videomae_trunk("", width, depth, hidden, scale=scale)),
        **dict(pair("norm" if first else "fc_norm", width)),
        **dict(pair("head", classes, width)),
    }


def clip_attention(prefix: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}attn.in_proj_weight", (3 * width, width)
    yield f"{prefix}attn.in_proj_bias", (3 * width,)
    yield from pair(f"{prefix}attn.out_proj", width, width)


def clip_layers(prefix: str, width: int, depth: int) -> Iterator[tuple[str, Shape]]:
    for i in range(depth):
        layer = f"{prefix}transformer.resblocks.{i}."
        yield from clip_attention(layer, width)
        yield from pair(f"{layer}ln_1", width)
        yield from pair(f"{layer}mlp.c_fc", 4 * width, width)
        yield from pair(f"{layer}mlp.c_proj", width, 4 * width)
        yield from pair(f"{layer}ln_2", width)


def stem(prefix: str, image: int, patch: int, width: int, kernel: Shape = (1,)) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}class_embedding", (width,)
    yield f"{prefix}positional_embedding", (1 + (image // patch) ** 2, width)
    yield f"{prefix}conv1.weight", (width, 3, *kernel, patch, patch)
    yield from pair(f"{prefix}ln_pre", width)


def local_block(prefix: str, width: int, inner: int) -> Iterator[tuple[str, Shape]]:
    yield from pair(f"{prefix}pos_embed.0", width)
    yield f"{prefix}pos_embed.0.running_mean", (width,)
    yield f"{prefix}pos_embed.0.running_var", (width,)
    yield f"{prefix}pos_embed.0.num_batches_tracked", ()
    yield from pair(f"{prefix}pos_embed.1", inner, width, 1, 1, 1)
    yield from pair(f"{prefix}pos_embed.2", inner, 1, 3, 1, 1)
    yield from pair(f"{prefix}pos_embed.3", width, inner, 1, 1, 1)


def uniformerv2(
    image: int,
    patch: int,
    width: int,
    depth: int,
    stages: int,
    classes: int = 0,
    *,
    prefix: str = "",
    local: int = 0,
    downsample: bool = False,
    balance: bool = True,
    factor: int = 4,
) -> Keys:
    keys = dict(stem(prefix, image, patch, width, (3,) if downsample else (1,)))
    keys[f"{prefix}transformer.temporal_cls_token"] = (1, 1, width)
    if balance:
        keys[f"{prefix}transformer.balance"] = (width,)
    keys |= dict(clip_layers(prefix, width, depth))
    for i in range(depth):
        for n in range(1, local + 1):
            keys |= dict(local_block(f"{prefix}transformer.resblocks.{i}.lmhra{n}.", width, int(width / 1.5)))
    for i in range(stages):
        keys |= dict(pair(f"{prefix}transformer.dpe.{i}", width, 1, 3, 3, 3))
        reading = f"{prefix}transformer.dec.{i}."
        keys |= dict(clip_attention(reading, width))
        keys |= dict(pair(f"{reading}mlp.c_fc", factor * width, width))
        keys |= dict(pair(f"{reading}mlp.c_proj", width, factor * width))
        for n in (1, 2, 3):
            keys |= dict(pair(f"{reading}ln_{n}", width))
    if classes:
        keys |= dict(pair(f"{prefix}transformer.proj.0", width))
        keys |= dict(pair(f"{prefix}transformer.proj.2", classes, width))
    return keys


def text_tower(prefix: str, width: int, joint: int, layers: int = 12, context: int = 77, words: int = 49408) -> Keys:
    projection = {f"{prefix}text_projection": (width, joint)} if joint else {}
    return {
        f"{prefix}positional_embedding": (context, width),
        **projection,
        **dict(clip_layers(prefix, width, layers)),
        f"{prefix}token_embedding.weight": (words, width),
        **dict(pair(f"{prefix}ln_final", width)),
    }


def multimodal(tower: Keys, text: Keys, width: int, text_width: int, joint: int) -> Keys:
    """InternVideo-MM without its `clip.`; `tower` with the prefix visual."""
    return {
        **({"visual_proj": (width, joint)} if joint else {}),
        "logit_scale": (),
        "text_mask_embedding": (1, 1, text_width),
        **tower,
        **dict(pair("visual_ln_post", width)),
        **text,
    }


def caption_decoder(
    width: int, vision: int, layers: int, words: int = 49408, queries: int = 256, head: int = 64, prefix: str = ""
) -> Keys:
    keys: Keys = {"visual_queries": (queries, width)}
    for norm, size in (("norm", width), ("context_norm", vision)):
        keys |= {f"visual_attn_pooler.{norm}.{leaf}": (size,) for leaf in ("gamma", "beta")}
    keys |= {
        "visual_attn_pooler.to_q.weight": (width, width),
        "visual_attn_pooler.to_kv.weight": (2 * head, vision),
        "visual_attn_pooler.to_out.weight": (width, width),
        **dict(pair("visual_pooler_norm", width)),
        **dict(pair("text_norm", width)),
    }
    for i in range(layers):
        words_layer, visual_layer = f"multimodal_layers.{i}.0.fn.", f"multimodal_layers.{i}.1.fn."
        keys |= {f"{part}norm.{leaf}": (width,) for part in (words_layer, visual_layer) for leaf in ("gamma", "beta")}
        keys |= {
            f"{words_layer}rotary_emb.inv_freq": (head // 2,),
            f"{words_layer}fused_attn_ff_proj.weight": (9 * width + 2 * head, width),
            f"{words_layer}attn_out.weight": (width, width),
            f"{words_layer}ff_out.1.weight": (width, 4 * width),
            f"{visual_layer}to_q.weight": (width, width),
            f"{visual_layer}to_kv.weight": (2 * head, width),
            f"{visual_layer}to_out.weight": (width, width),
            f"{visual_layer}ff.0.weight": (8 * width, width),
            f"{visual_layer}ff.2.weight": (width, 4 * width),
        }
    if words:
        keys |= dict([*pair("predictor.0", width), *pair("predictor.1", width, width), *pair("predictor.3", width)])
        keys |= dict(pair("predictor.4", words, width))
    return {f"{prefix}{key}": shape for key, shape in keys.items()}


def answer_head(name: str, features: int, outputs: int) -> Keys:
    return dict(
        [
            *pair(f"{name}.1", 2 * features, features),
            *pair(f"{name}.2", 2 * features),
            *pair(f"{name}.5", outputs, 2 * features),
        ]
    )


def viclip(image: int, patch: int, width: int, depth: int, text: Keys, joint: int, frames: int = 8) -> Keys:
    """`text` with the prefix text_encoder."""
    vision = {
        **dict(stem("", image, patch, width)),
        "temporal_positional_embedding": (1, frames, width),
        "proj": (width, joint),
        **dict(clip_layers("", width, depth)),
        **dict(pair("ln_post", width)),
    }
    return {**{f"vision_encoder.{key}": shape for key, shape in vision.items()}, **text, "temp": ()}


def clip(image: int, patch: int, width: int, depth: int, text: Keys, joint: int) -> Keys:
    """OpenAI's names; the archive's three counters with them."""
    return {
        **dict(stem("visual.", image, patch, width, ())),
        **dict(clip_layers("visual.", width, depth)),
        **dict(pair("visual.ln_post", width)),
        "visual.proj": (width, joint),
        **text,
        "logit_scale": (),
        "input_resolution": (),
        "context_length": (),
        "vocab_size": (),
    }


def below(prefix: str, keys: Keys) -> Keys:
    return {f"{prefix}{key}": shape for key, shape in keys.items()}
