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
"""Temporal tokens of the published models: 16 frames of tubelets of two, 8 frames of tubelets of one (UMT)."""


def learned_grid(tokens: int, side: int) -> tuple[int, int] | None:
    """Infer (temporal tokens, side) of a learned table from its number of tokens N; None where that is ambiguous.

    `side` is that of the published frame, in patches. The table has a power of two of temporal tokens at this side, or
    the published number of them at any side; None if both fit.
    """
    slots = tokens // side**2
    wide = math.isqrt(tokens // NATIVE_SLOTS)
    fitting = set()
    if slots * side**2 == tokens and slots & (slots - 1) == 0:
        fitting.add((slots, side))
    if wide and NATIVE_SLOTS * wide**2 == tokens:
        fitting.add((NATIVE_SLOTS, wide))
    return fitting.pop() if len(fitting) == 1 else None


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
    """Resize the positions among the tensors to the model's clip size; what cannot be resized stays as it is.

    Returns:
        the tensors, and one line for each table that was resized.
    """
    own, fitted, lines = model.state_dict(), dict(state), []
    for name, value in state.items():
        target = own.get(name)
        if target is None or value.dim() < 2 or value.dim() != target.dim() or value.shape[-1] != target.shape[-1]:
            continue
        if value.shape != target.shape and (resized := _resized(model, name, value, target.shape[-2])) is not None:
            fitted[name] = resized
            lines.append(f"{name} resized from {value.shape[-2]} to {target.shape[-2]}")
    return fitted, tuple(lines)


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
            return resize_table(value[0].float(), (*grid, grid[1]), config.grid)[None]
    return None
