"""One vector a clip from any depth of a model: pooled, a layer's tokens averaged, or the classifier's probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.errors import RecipeError
from internvideo.inference.video_model import VideoModel
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.videomae import Trunk, VideoMAEPretrain

POOLED, SCORES = "pooled", "scores"

Encode = Callable[[Tensor], Tensor]
"""Clips (B, 3, T, S, S) -> (B, C) float32 on the CPU."""


def clip_encoder(model: VideoModel, layer: str = POOLED, grid: int = 1) -> Encode:
    """How clips become vectors.

    Args:
        model: any that sees videos.
        layer: "pooled", the model's own vector; "scores", the classifier's probabilities; or a number, the mean of all
            tokens behind that transformer layer: 1 is the first, -1 the last.
        grid: over 1, the tokens of a layer are averaged in each of grid x grid cells of the frame, over time, and the
            cells laid side by side, row by row: grid * grid * D numbers. Class tokens have no place and are left out.

    Raises:
        RecipeError: no such layer, or a model without layers or a classifier of its own; a grid that is finer than the
            tokens, or without tokens that have places.
    """
    if grid < 1:
        raise RecipeError("grid", str(grid), "1 or more")
    if layer in (POOLED, SCORES) and grid > 1:
        raise RecipeError("grid", f"{grid} with layer '{layer}', which has no places", "the number of a layer")
    if layer == POOLED:
        return model.encode_clips
    if layer == SCORES:
        if not model.classes:
            raise RecipeError("layer", "scores of a model without a classifier", "pooled or the number of a layer")
        return lambda clips: model.logits(clips).double().softmax(dim=1).float()
    encoder = _encoder(model)
    block = _block(model, encoder, layer)
    if grid > 1:
        _check_places(model, encoder)

    def encode(clips: Tensor) -> Tensor:
        def stop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            raise _Reached(output)

        hook = block.register_forward_hook(stop)
        try:
            model.tokens(clips)  # all layers in turn; `encode_clips` may take a shorter way
        except _Reached as reached:
            output: Tensor = reached.args[0]
        finally:
            hook.remove()
        if grid > 1:
            return in_cells(_places(encoder, output.float(), len(clips)), grid).cpu()
        tokens = output.reshape(len(clips), -1, output.shape[-1])  # frames of a clip stand one behind the other
        return tokens.float().mean(dim=1).cpu()

    return encode


def tile_side(size: int, tiles: int) -> int:
    """Pixels of the frame that tiles x tiles squares of `size` cover, neighbours overlapping by half."""
    return size * (tiles + 1) // 2


def over_tiles(encode: Encode, size: int, tiles: int) -> Encode:
    """The same for larger frames: each square of `size` pixels is a clip of its own.

    Args:
        encode: clips (B, 3, T, S, S) -> (B, C). size: S, even. tiles: along a side of the frame.

    Returns:
        clips (B, 3, T, F, F), F of `tile_side` -> (B, tiles * tiles * C), row by row.
    """
    if tiles == 1:
        return encode

    def each(clips: Tensor) -> Tensor:
        places = [(row * size // 2, column * size // 2) for row in range(tiles) for column in range(tiles)]
        seen = [encode(clips[..., top : top + size, left : left + size].contiguous()) for top, left in places]
        return torch.cat(seen, dim=1)

    return each


def in_cells(tokens: Tensor, grid: int) -> Tensor:
    """Tokens (B, T, H, W, D) averaged over time and in grid x grid cells of the frame -> (B, grid * grid * D).

    Where H or W is no multiple of the grid, a cell is every token that it touches. Raises RecipeError for a grid that
    is finer than the tokens.
    """
    rows, columns = tokens.shape[2:4]
    if grid > min(rows, columns):
        raise RecipeError("grid", str(grid), f"at most {min(rows, columns)}, the tokens along a side of the frame")
    cells = F.adaptive_avg_pool2d(tokens.mean(dim=1).permute(0, 3, 1, 2), grid)  # (B, D, grid, grid)
    return cells.permute(0, 2, 3, 1).flatten(1)


def _places(encoder: nn.Module, output: Tensor, clips: int) -> Tensor:
    """A layer's output as tokens with places (B, T, H, W, D), without class tokens; frames are square."""
    if isinstance(encoder, UniFormerV2):  # (B * T, 1 + HW, D)
        patches = output[:, 1:]
        side = math.isqrt(patches.shape[1])
        return patches.reshape(clips, -1, side, side, output.shape[-1])
    if not isinstance(encoder, Trunk):
        raise TypeError(f"the tokens of a {type(encoder).__name__} have no places")
    slots = encoder.config.grid[0]
    side = math.isqrt(output.shape[1] // slots)
    return output.reshape(clips, slots, side, side, output.shape[-1])


def _check_places(model: VideoModel, encoder: nn.Module) -> None:
    if not isinstance(encoder, UniFormerV2 | Trunk):
        raise RecipeError("grid", f"the tokens of {model.name} are not laid out by frame", "1")


class _Reached(Exception):  # noqa: N818  # no error: the layers above need not run
    """A layer's output."""


def _encoder(model: VideoModel) -> nn.Module:
    """The part of a model whose layers see the clip."""
    module: nn.Module = model.module
    if isinstance(module, VideoMAEPretrain):
        module = module.encoder
    inner = getattr(module, "model", module)
    visual: nn.Module = getattr(inner, "visual", inner)
    return visual


def _block(model: VideoModel, encoder: nn.Module, layer: str) -> nn.Module:
    """A transformer layer that every token of a clip goes through."""
    blocks = getattr(encoder, "blocks", None)  # an interaction of two encoders has none of its own
    if not isinstance(blocks, nn.ModuleList) or len(getattr(encoder, "local2", ())):
        raise RecipeError("layer", f"the layers of {model.name} cannot be told apart", "pooled")
    try:
        number = int(layer)
    except ValueError:
        number = 0
    if not 1 <= abs(number) <= len(blocks):
        raise RecipeError("layer", f"'{layer}'", f"pooled, scores, 1 to {len(blocks)} or -{len(blocks)} to -1")
    return blocks[number - 1 if number > 0 else number]
