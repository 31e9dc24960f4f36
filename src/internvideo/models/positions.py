"""Resize learned positions to another clip size, by the rule of their publishers.

- VideoMAE of InternVideo: bicubic in space, then linear over time (InternVideo1/Pretrain/VideoMAE/
  run_class_finetuning.py). UMT has the same rule for its clips of 8 frames (unmasked_teacher, single_modality/models/
  modeling_finetune.py). Fixed tables are resized where they are built: `videomae.Trunk`.
- CLIP, UniFormerV2, InternVideo-MM, ViCLIP: bicubic over the patches, the class token keeps its own (UniFormerV2's
  issue 12; InternVideo2/multi_modality, clip_vision.py; transformers, modeling_clip.py: all the same).
- The times of ViCLIP: fewer are cut, more are interpolated linearly (the same clip_vision.py).

transformers' VideoMAE computes its table for the clip and resizes nothing (modeling_videomae.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.embeddings import resize_table
from internvideo.models.videomae_config import VideoMAEConfig

NATIVE_SLOTS = 8
"""Slots in time of what is published: 16 frames of tubelets of two, 8 frames of tubelets of one (UMT)."""


def learned_grid(tokens: int, side: int) -> tuple[int, int] | None:
    """Infer (temporal tokens, side) of a learned table from its number of tokens; None where that is ambiguous.

    Args:
        tokens: N. side: of the published picture, in patches.

    A power of two of temporal tokens at the published side, or the published number at any side; None if both fit.
    """
    slots = tokens // side**2
    wide = math.isqrt(tokens // NATIVE_SLOTS)
    found = set()
    if slots * side**2 == tokens and slots & (slots - 1) == 0:
        found.add((slots, side))
    if wide and NATIVE_SLOTS * wide**2 == tokens:
        found.add((NATIVE_SLOTS, wide))
    return found.pop() if len(found) == 1 else None


def resize_patches(table: Tensor, side: int) -> Tensor:
    """Resize positions (1 + HW, D) of a class token and patches to (1 + side^2, D)."""
    old = math.isqrt(len(table) - 1)
    if old == side:
        return table
    patches = resize_table(table[1:].float(), (1, old, old), (1, side, side))
    return torch.cat([table[:1].float(), patches])


def resize_times(table: Tensor, frames: int) -> Tensor:
    """Resize temporal positions (1, T, D) to (1, frames, D)."""
    if frames <= table.shape[1]:
        return table[:, :frames]
    return F.interpolate(table.float().transpose(1, 2), size=frames, mode="linear", align_corners=False).transpose(1, 2)


def fit_positions(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Resize the positions among the tensors to the model's clip size.

    Returns:
        the tensors, and one line for each table that was resized. What cannot be resized stays as it is.
    """
    own, fitted, told = model.state_dict(), dict(state), []
    for name, value in state.items():
        wanted = own.get(name)
        if wanted is None or value.dim() < 2 or value.dim() != wanted.dim() or value.shape[-1] != wanted.shape[-1]:
            continue
        if value.shape != wanted.shape:
            resized = _resized(model, name, value, wanted.shape[-2])
            if resized is not None:
                fitted[name] = resized
                told.append(f"{name} resized from {value.shape[-2]} to {wanted.shape[-2]}")
    return fitted, tuple(told)


def _resized(model: nn.Module, name: str, value: Tensor, length: int) -> Tensor | None:
    parent, _, leaf = name.rpartition(".")
    if leaf == "positional_embedding" and parent.endswith("stem") and math.isqrt(len(value) - 1) ** 2 + 1 == len(value):
        return resize_patches(value, math.isqrt(length - 1))
    if leaf == "time_embedding":
        return resize_times(value, length)
    config = getattr(model.get_submodule(parent), "config", None)
    if leaf == "pos_embed" and isinstance(config, VideoMAEConfig):
        grid = learned_grid(value.shape[1], config.native_clip[0] // config.patch_size)
        if grid is not None:
            slots, side = grid
            return resize_table(value[0].float(), (slots, side, side), config.grid)[None]
    return None
