"""Sizes and settings of the VideoMAE family, and the clips that its models take.

Source: modeling_pretrain.py (pretraining) and modeling_finetune.py (finetuning).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from internvideo.models.block import Activation, check_activation
from internvideo.models.embeddings import IMAGENET_MEAN, IMAGENET_STD, NATIVE_CLIP
from internvideo.models.encoder import ClipNeeds, VideoEncoder

EPS = 1e-6


@dataclass(frozen=True)
class VideoMAEConfig:
    """Sizes of the pretraining model and of the classifier; some settings belong to one of them only.

    Attributes:
        image_size: S in pixels.
        patch_size: p, divides S.
        frames: T, a multiple of `tubelet`.
        tubelet: frames per token.
        width, depth, heads: encoder D, L, H.
        mlp_ratio: hidden width of the feed-forward is int(D * ratio), in the decoder too.
        decoder_width, decoder_depth, decoder_heads: pretraining only.
        qkv_bias: query and value have a bias; the key has none.
        layer_scale: initial per-channel scale of the residual branches, 0 for none.
        num_classes: C, 0 for no head.
        drop_path: stochastic depth of the last block, growing linearly from 0 (classifier).
        head_dropout: dropout rate before the head.
        pooling: input of the head: "mean" of the tokens, then normalized; or the "first" token of the normalized ones.
        final_norm: whether there is a norm after the last layer (pretraining: of the tokens; classifier: of `pooling`).
        learnable_positions: the encoder's positions are a parameter.
        position_table: "native" computes the fixed table for this clip size, as pretraining does; "resized" computes
            it for `native_clip` and resizes it, as the published classifier does. Equal for clips of that size.
        native_clip: side in pixels and frames of the clips of pretraining.
        init_scale: factor on the head's initial weight and bias.
        activation: of the feed-forwards.
        eps: of the norms of layers and encoder; head_eps: of the classifier's pooled norm and the decoder's last norm.
        mean, std: per channel, of pixels in 0..1.
        spatial_head: average the tokens over time only, and concatenate them over the positions in the frame as the
            head's input. For targets that are positions, on small data sets; not in the paper.
        motion_stem: a second tubelet embedding, zero at the start, of the clip minus its mean frame
            (`embeddings.TubeletEmbedding`). For small encoders trained from scratch; not in the paper.
    """

    image_size: int = 224
    patch_size: int = 16
    frames: int = 16
    tubelet: int = 2
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    decoder_width: int = 384
    decoder_depth: int = 4
    decoder_heads: int = 6
    qkv_bias: bool = True
    layer_scale: float = 0.0
    num_classes: int = 0
    drop_path: float = 0.0
    head_dropout: float = 0.0
    pooling: Literal["mean", "first"] = "mean"
    learnable_positions: bool = False
    position_table: Literal["resized", "native"] = "native"
    native_clip: tuple[int, int] = NATIVE_CLIP
    init_scale: float = 0.001
    final_norm: bool = True
    activation: Activation = "gelu"
    eps: float = EPS
    head_eps: float = EPS
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    motion_stem: bool = False
    spatial_head: bool = False

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.frames % self.tubelet:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size} and frames "
                f"{self.frames} of tubelet {self.tubelet}"
            )
        if self.pooling not in ("mean", "first") or self.position_table not in ("resized", "native"):
            raise ValueError(
                f"pooling {self.pooling!r}, position_table {self.position_table!r}: expected 'mean' or 'first', "
                "'native' or 'resized'"
            )
        if self.spatial_head and not (self.pooling == "mean" and self.final_norm):
            raise ValueError("spatial_head needs pooling 'mean' and final_norm")
        if len(self.native_clip) != 2 or not all(isinstance(size, int) and size > 0 for size in self.native_clip):
            raise ValueError(f"native_clip {self.native_clip}: expected a side in pixels and a number of frames")
        check_activation(self.activation)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(t, h, w) tokens."""
        side = self.image_size // self.patch_size
        return self.frames // self.tubelet, side, side

    @property
    def num_tokens(self) -> int:
        """N = t * h * w."""
        t, h, w = self.grid
        return t * h * w

    @property
    def head_width(self) -> int:
        """Width of the head's input."""
        return self.width * (self.grid[1] * self.grid[2] if self.spatial_head else 1)

    @property
    def values_per_token(self) -> int:
        """P: 3 channels x `tubelet` frames x patch_size^2 pixels."""
        return 3 * self.tubelet * self.patch_size**2


SOMETHING_SOMETHING = 174
"""Classes of Something-Something, whose classifiers were trained on sparse frames (run_class_finetuning.py)."""


class MaskedEncoder(VideoEncoder):
    """Base class of the VideoMAE models."""

    config: VideoMAEConfig
    undecayed = r"(pos_embed|mask_token)$"

    @property
    def embed_dim(self) -> int:
        """E, the width of the head's input."""
        return self.config.head_width

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Clips of the config's size, for which the positions are built."""
        return (ClipNeeds(image_size=self.config.image_size, frames=self.config.frames),)

    @property
    def test_clips(self) -> dict[str, Any]:
        """Frames of stride 4, or of equal segments for Something-Something; OpenCV resize (run_class_finetuning.py)."""
        sparse = self.config.num_classes == SOMETHING_SOMETHING
        sampling = {"sampler": "sparse_two_view"} if sparse else {"sampler": "dense", "stride": 4}
        return {"frames": self.config.frames, "size": self.config.image_size, **sampling, "resize_backend": "opencv"}
