"""One vector a clip from any depth of a model: pooled, a layer's mean token, or the classifier's probabilities."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from internvideo.apps.video_model import VideoModel
from internvideo.errors import RecipeError
from internvideo.models.videomae import VideoMAEPretrain

POOLED, SCORES = "pooled", "scores"

Encode = Callable[[Tensor], Tensor]
"""Clips (B, 3, T, S, S) -> (B, C) float32 on the CPU."""


def clip_encoder(model: VideoModel, layer: str = POOLED) -> Encode:
    """How clips become vectors.

    Args:
        model: any that sees videos.
        layer: "pooled", the model's own vector; "scores", the classifier's probabilities; or a number, the mean of all
            tokens behind that transformer layer: 1 is the first, -1 the last.

    Raises:
        RecipeError: no such layer, or a model without layers or a classifier of its own.
    """
    if layer == POOLED:
        return model.encode_clips
    if layer == SCORES:
        if not model.classes:
            raise RecipeError("layer", "scores of a model without a classifier", "pooled or the number of a layer")
        return lambda clips: model.logits(clips).double().softmax(dim=1).float()
    blocks = _blocks(model)
    try:
        number = int(layer)
    except ValueError:
        number = 0
    if not 1 <= abs(number) <= len(blocks):
        raise RecipeError("layer", f"'{layer}'", f"pooled, scores, 1 to {len(blocks)} or -{len(blocks)} to -1")
    block = blocks[number - 1 if number > 0 else number]

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
        tokens = output.reshape(len(clips), -1, output.shape[-1])  # frames of a clip stand one behind the other
        return tokens.float().mean(dim=1).cpu()

    return encode


class _Reached(Exception):  # noqa: N818  # no error: the layers above need not run
    """A layer's output."""


def _blocks(model: VideoModel) -> nn.ModuleList:
    """The transformer layers that every token of a clip goes through."""
    module: nn.Module = model.module
    if isinstance(module, VideoMAEPretrain):
        module = module.encoder
    inner = getattr(module, "model", module)
    visual = getattr(inner, "visual", inner)
    blocks = getattr(visual, "blocks", None)  # an interaction of two encoders has none of its own
    if not isinstance(blocks, nn.ModuleList) or len(getattr(visual, "local2", ())):
        raise RecipeError("layer", f"the layers of {model.name} cannot be told apart", "pooled")
    return blocks
