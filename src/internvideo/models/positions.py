"""Resize learned positions to another clip size, by the rule of their publishers.

- VideoMAE of InternVideo: bicubic in space, then linear over time (InternVideo1/Pretrain/VideoMAE/
  run_class_finetuning.py). UMT has the same rule for its clips of 8 frames (unmasked_teacher, single_modality/models/
  modeling_finetune.py). Fixed tables are resized where they are built: `videomae.VideoMAEBackbone`.
- CLIP, UniFormerV2, InternVideo-MM, ViCLIP: bicubic over the patches; the position of the class token stays (equal in
  UniFormerV2's issue 12, InternVideo2/multi_modality/clip_vision.py and transformers' modeling_clip.py).
- Temporal positions of ViCLIP: truncated for fewer frames, interpolated linearly for more (clip_vision.py).

transformers' VideoMAE computes the table for the clip and resizes nothing (modeling_videomae.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.models.embeddings import resize_table
from internvideo.models.videomae_config import VideoMAEConfig

NATIVE_TIMES = 8
"""Number of temporal tokens of the published models: 16 frames / 2 frames per tubelet, or 8 frames / 1 (UMT)."""


def infer_learned_grid(num_tokens: int, native_side: int) -> tuple[int, int] | None:
    """Infer (temporal tokens, side in patches) of a learned table of N tokens; None if no grid or several are possible.

    Possible are grids with the published side `native_side` and a power of two of temporal tokens, and grids with
    NATIVE_TIMES temporal tokens and any side.
    """
    num_times = num_tokens // native_side**2
    side = math.isqrt(num_tokens // NATIVE_TIMES)
    candidates = set()
    if num_times * native_side**2 == num_tokens and num_times & (num_times - 1) == 0:
        candidates.add((num_times, native_side))
    if side and NATIVE_TIMES * side**2 == num_tokens:
        candidates.add((NATIVE_TIMES, side))
    return candidates.pop() if len(candidates) == 1 else None


def resize_patches(table: Tensor, side: int) -> Tensor:
    """Resize positions (1 + HW, D) of a class token and patches to (1 + side^2, D)."""
    old_side = math.isqrt(len(table) - 1)
    if old_side == side:
        return table
    patches = resize_table(table[1:].float(), (1, old_side, old_side), (1, side, side))
    return torch.cat([table[:1].float(), patches])


def resize_times(table: Tensor, frames: int) -> Tensor:
    """Resize temporal positions (1, T, D) to (1, frames, D)."""
    if frames <= table.shape[1]:
        return table[:, :frames]
    return F.interpolate(table.float().transpose(1, 2), size=frames, mode="linear", align_corners=False).transpose(1, 2)


def fit_positions(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Resize the positional embeddings of a state dict to the model's clip size; other tensors stay unchanged.

    Returns:
        the state dict, and one log line per table that was resized.
    """
    model_state, fitted, lines = model.state_dict(), dict(state), []
    for name, value in state.items():
        target = model_state.get(name)
        if target is None or value.dim() < 2 or value.dim() != target.dim() or value.shape[-1] != target.shape[-1]:
            continue
        if value.shape != target.shape and (resized := _resize(model, name, value, target.shape[-2])) is not None:
            fitted[name] = resized
            lines.append(f"{name} resized from {value.shape[-2]} to {target.shape[-2]}")
    return fitted, tuple(lines)


def _resize(model: nn.Module, name: str, value: Tensor, length: int) -> Tensor | None:
    """Resize one table of positions to `length` tokens, None for a tensor that is none or of unknown grid."""
    parent, _, leaf = name.rpartition(".")
    if leaf == "positional_embedding" and parent.endswith("stem") and math.isqrt(len(value) - 1) ** 2 + 1 == len(value):
        return resize_patches(value, math.isqrt(length - 1))
    if leaf == "time_embedding":
        return resize_times(value, length)
    config = getattr(model.get_submodule(parent), "config", None)
    if leaf == "pos_embed" and isinstance(config, VideoMAEConfig):
        grid = infer_learned_grid(value.shape[1], config.native_clip[0] // config.patch_size)
        if grid is not None:
            return resize_table(value[0].float(), (*grid, grid[1]), config.grid)[None]
    return None
