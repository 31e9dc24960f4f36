"""Masked reconstruction: what the decoder must predict, and how far it is off (spec/models.md A.3)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def pixel_targets(
    video: Tensor, mask: Tensor, tubelet: int, patch: int, normalise: bool = True, masked: int | None = None
) -> Tensor:
    """Pixels of the masked tokens, ordered (frame, row, column, colour) within a token.

    Args:
        video: (B, 3, T, S, S) in 0..1; float64 stays float64, anything else is taken to float32.
        mask: (B, N) bool, True = masked, tokens in the order time, row, column; the same number in every sample.
        tubelet: frames per token.
        patch: p, pixels per side of a token.
        normalise: subtract the mean of each token and colour and divide by (its unbiased standard deviation + 1e-6).
        masked: M where the caller knows it; None reads it from the mask, which waits for a GPU.

    Returns:
        (B, M, tubelet * p * p * 3), tokens ascending, without gradient, outside autocast.

    Raises:
        ValueError: the samples do not mask the same number of tokens.
    """
    if masked is None:
        counts = mask.sum(1)
        masked = int(counts[0])
        if not bool((counts == masked).all()):
            raise ValueError(f"every sample must mask {masked} tokens, found {counts.tolist()}")
    with torch.autocast(video.device.type, enabled=False):
        if video.dtype != torch.float64:
            video = video.float()
        batch, colours, frames, height, width = video.shape
        split = (batch, colours, frames // tubelet, tubelet, height // patch, patch, width // patch, patch)
        cubes = video.view(split)
        cubes = cubes.permute(0, 2, 4, 6, 3, 5, 7, 1)  # a view (B, t, h, w, tubelet, p, p, 3)
        if masked == mask.shape[1]:
            tokens = cubes.flatten(4, 6).flatten(1, 3)
        else:
            index = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :masked]
            rows, columns = cubes.shape[2:4]
            place = index % (rows * columns)
            sample = torch.arange(batch, device=mask.device)[:, None]
            tokens = cubes[sample, index // (rows * columns), place // columns, place % columns].flatten(2, 4)
        if normalise:
            variance, mean = torch.var_mean(tokens, dim=2, correction=1, keepdim=True)
            tokens = (tokens - mean) / (variance.sqrt() + 1e-6)
        return tokens.flatten(2)


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all masked tokens and all their values.

    Args:
        prediction: (B, M, P), any float dtype.
        target: (B, M, P) float32 (or float64).

    Returns:
        Scalar in the target's dtype.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}")
    return (prediction.to(target.dtype) - target).square().mean()
