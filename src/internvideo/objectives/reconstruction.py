"""Targets and loss of masked reconstruction (engine_for_pretraining.py)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def pixel_targets(
    video: Tensor, mask: Tensor, tubelet: int, patch: int, normalize: bool = True, num_masked: int | None = None
) -> Tensor:
    """Compute the pixel targets of the masked tokens, ordered (frame, row, column, channel) within a token.

    Args:
        video: (B, 3, T, S, S), uint8 or float in 0..1; float64 stays float64, anything else is taken to float32.
        mask: (B, N) bool, True = masked, tokens in the order time, row, column; the same number in every sample.
        tubelet: frames per token. patch: p, pixels per side of a token.
        normalize: subtract the mean per token and channel and divide by (its unbiased standard deviation + 1e-6).
        num_masked: M, if known to the caller; None reads it from the mask, with a device sync.

    Returns:
        (B, M, tubelet * p * p * 3), tokens ascending, without gradient, outside autocast.

    Raises:
        ValueError: the samples do not mask the same number of tokens.
    """
    if num_masked is None:
        counts = mask.sum(1)
        num_masked = int(counts[0])
        if not bool((counts == num_masked).all()):
            raise ValueError(f"every sample must mask {num_masked} tokens, found {counts.tolist()}")
    index = None
    if num_masked != mask.shape[1]:
        index = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :num_masked]
    with torch.autocast(video.device.type, enabled=False):
        tokens = patchify(video, index, tubelet, patch)
        full_scale = 1.0 if video.is_floating_point() else 255.0
        if tokens.dtype not in (torch.float32, torch.float64):
            tokens = tokens.float()
        if normalize:
            tokens = tokens - tokens.mean(dim=3, keepdim=True)
            # The norm over sqrt(n - 1) is the unbiased deviation, several times faster on a CPU than var_mean.
            spread = torch.linalg.vector_norm(tokens, dim=3, keepdim=True).div_(math.sqrt(tokens.shape[3] - 1))
            tokens.mul_(spread.add_(1e-6 * full_scale).reciprocal_())
        elif full_scale != 1.0:
            tokens = tokens / full_scale
        return tokens.transpose(2, 3).flatten(2)


def patchify(video: Tensor, index: Tensor | None, tubelet: int, patch: int) -> Tensor:
    """Cut the video into the pixels of its tokens (B, M or N, 3, tubelet * p * p), in its own dtype.

    Args:
        video: (B, 3, T, S, S). index: (B, M) int64 tokens, None for all N. tubelet: frames per token. patch: p.
    """
    batch, channels, frames, height, width = video.shape
    split = (batch, channels, frames // tubelet, tubelet, height // patch, patch, width // patch, patch)
    cubes = video.reshape(split).permute(0, 2, 4, 6, 1, 3, 5, 7)  # (B, t, h, w, 3, tubelet, p, p)
    tokens = cubes.reshape(batch, -1, channels, tubelet * patch * patch)
    if index is None:
        return tokens
    first = torch.arange(batch, device=index.device)[:, None] * tokens.shape[1]
    rows = tokens.flatten(0, 1).flatten(1)  # whole tokens are copied much faster than element by element
    return rows.index_select(0, (first + index).flatten()).view(batch, -1, *tokens.shape[2:])


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error over all masked tokens and pixels, a scalar in the target's dtype.

    Args:
        prediction: (B, M, P), any float dtype. target: (B, M, P) float32 (or float64).
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}")
    return F.mse_loss(prediction.to(target.dtype), target)


def unpatchify(tokens: Tensor, grid: tuple[int, int, int], tubelet: int, patch: int) -> Tensor:
    """Invert `pixel_targets` without normalization, for all tokens -> (B, 3, t * tubelet, h * p, w * p).

    Args:
        tokens: (B, N, tubelet * p * p * 3), tokens in the order time, row, column. grid: (t, h, w) tokens.
        tubelet: frames per token. patch: p.
    """
    t, h, w = grid
    cubes = tokens.reshape(-1, t, h, w, tubelet, patch, patch, 3).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return cubes.reshape(-1, 3, t * tubelet, h * patch, w * patch)
