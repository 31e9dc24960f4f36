"""Extract one vector per clip: the pooled output, a layer's averaged tokens, or the classifier's probabilities."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError
from internvideo.inference.video_model import VideoModel

POOLED, SCORES = "pooled", "scores"

Encode = Callable[[Tensor], Tensor]
"""Clips (B, 3, T, S, S) -> (B, C) float32 on the CPU."""


def create_feature_extractor(model: VideoModel, layer: str = POOLED, spatial_pool_size: int = 1) -> Encode:
    """Return the function that encodes clips.

    Args:
        model: any model that encodes videos.
        layer: "pooled", the model's video embedding; "scores", the classifier's probabilities; or a number g, the mean
            of all output tokens of transformer layer g: 1 is the first, -1 the last.
        spatial_pool_size: g > 1 averages the tokens of a layer over time and in each of g x g cells of the frame, and
            concatenates the cells row by row (g * g * D). Class tokens are left out.

    Raises:
        RecipeError: no such layer, a model without layers or without a classifier; a pool size above the number of
            tokens along a side, or a model whose tokens have no spatial layout.
    """
    if spatial_pool_size < 1:
        raise RecipeError("spatial_pool_size", str(spatial_pool_size), "1 or more")
    if layer in (POOLED, SCORES) and spatial_pool_size > 1:
        found = f"{spatial_pool_size} with layer '{layer}', which has no spatial layout"
        raise RecipeError("spatial_pool_size", found, "1, or the number of a layer")
    if layer == POOLED:
        return model.encode_clips
    if layer == SCORES:
        if not model.class_names:
            raise RecipeError("layer", "scores of a model without a classifier", "pooled or the number of a layer")
        return lambda clips: model.logits(clips).double().softmax(dim=1).float()
    block = _block(model, layer)
    to_grid: Callable[[Tensor, int], Tensor] | None = getattr(model.module.tower, "to_grid", None)
    if spatial_pool_size > 1 and to_grid is None:
        raise RecipeError("spatial_pool_size", f"the tokens of {model.name} are not laid out by frame", "1")

    def encode(clips: Tensor) -> Tensor:
        def stop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            raise _StopForward(output)

        hook = block.register_forward_hook(stop)
        try:
            model.tokens(clips)  # runs all layers; `encode_clips` may skip some
        except _StopForward as stopped:
            output: Tensor = stopped.args[0]
        finally:
            hook.remove()
        if spatial_pool_size > 1 and to_grid is not None:
            return spatial_pool(to_grid(output.float(), len(clips)), spatial_pool_size).cpu()
        tokens = output.reshape(len(clips), -1, output.shape[-1])  # the frames of a clip are consecutive rows
        return tokens.float().mean(dim=1).cpu()

    return encode


def tiled_frame_size(size: int, tiles: int) -> int:
    """Return the side, in pixels, of the frame that tiles x tiles crops of `size` cover, overlapping by half."""
    return size * (tiles + 1) // 2


def tiled_preprocessing(preprocessing: Preprocessing, tiles: int) -> Preprocessing:
    """Enlarge the frames so that tiles x tiles crops of the encoder's size cover them. RecipeError for an odd size."""
    if tiles == 1:
        return preprocessing
    if preprocessing.size % 2:
        raise RecipeError("tiles", f"{tiles} of {preprocessing.size} pixels", "an encoder of an even size")
    sides = {name: getattr(preprocessing, name) for name in ("size", "resize", "short_side")}
    larger = {name: tiled_frame_size(side, tiles) for name, side in sides.items() if side}
    return preprocessing.with_settings(**larger)


def encode_tiles(encode: Encode, size: int, tiles: int) -> Encode:
    """Apply an encoder to overlapping crops of larger frames and concatenate the outputs.

    Args:
        encode: clips (B, 3, T, S, S) -> (B, C). size: S, even. tiles: crops along a side of the frame.

    Returns:
        clips (B, 3, T, F, F), F of `tiled_frame_size` -> (B, tiles * tiles * C), row by row.
    """
    if tiles == 1:
        return encode

    def encode_all(clips: Tensor) -> Tensor:
        corners = [(row * size // 2, column * size // 2) for row in range(tiles) for column in range(tiles)]
        crops = [clips[..., top : top + size, left : left + size].contiguous() for top, left in corners]
        return torch.cat([encode(crop) for crop in crops], dim=1)

    return encode_all


def spatial_pool(tokens: Tensor, spatial_pool_size: int) -> Tensor:
    """Average tokens (B, T, H, W, D) over time and in g x g cells of the frame -> (B, g * g * D).

    Where H or W is no multiple of g, a cell averages every token that it touches (adaptive average pooling). Raises
    RecipeError for g > H or g > W.
    """
    if spatial_pool_size > (side := min(tokens.shape[2:4])):
        expected = f"at most {side}, the tokens along a side of the frame"
        raise RecipeError("spatial_pool_size", str(spatial_pool_size), expected)
    pooled = F.adaptive_avg_pool2d(tokens.mean(dim=1).permute(0, 3, 1, 2), spatial_pool_size)  # (B, D, grid, grid)
    return pooled.permute(0, 2, 3, 1).flatten(1)


class _StopForward(Exception):  # noqa: N818  # no error: the layers above need not run
    """Leave the forward pass with a layer's output."""


def _block(model: VideoModel, layer: str) -> nn.Module:
    """Return a transformer layer that processes every token of a clip."""
    blocks = getattr(model.module.tower, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise RecipeError("layer", f"{model.name} has no separate layers", "pooled")
    try:
        depth = int(layer)
    except ValueError:
        depth = 0
    if not 1 <= abs(depth) <= len(blocks):
        raise RecipeError("layer", f"'{layer}'", f"pooled, scores, 1 to {len(blocks)} or -{len(blocks)} to -1")
    return blocks[depth - 1 if depth > 0 else depth]
