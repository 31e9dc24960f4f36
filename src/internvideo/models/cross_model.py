"""Cross-model attention: two frozen video encoders exchange features through gated cross-attention.

The masked encoder's tokens attend to mid-level tokens of the multimodal encoder; in the last stage the multimodal
encoder's query token attends to the masked encoder's tokens; a learned linear combination joins the logits of both.
With all gates at zero both encoders compute what they compute alone.

Shapes: B batch, S stages n, D widths, C classes. Source: paper 3.3 (the published code has no such module).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from internvideo.distributed import full_tensor
from internvideo.models.block import Block, BlockConfig
from internvideo.models.encoder import ClipNeeds, VideoEncoder, prefix_clip_needs
from internvideo.models.module import Dropout, Module
from internvideo.models.uniformerv2 import ClassHead, UniFormerV2, UniFormerV2Config
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, run_blocks

EPS = 1e-5
Fusion = Literal["scalar", "per_class", "free"]
Placement = Literal["late", "uniform"]


@dataclass(frozen=True)
class CrossModelConfig:
    """Settings of the cross-model attention.

    Attributes:
        direction: "paper": the masked encoder's tokens are updated after every stage but the last, the query token
            after the last; "both": the query token is updated after every stage.
        fusion: of the logits: "scalar" (weights w, 1 - w), "per_class" (the same with one w per class), or "free" (two
            independent weights).
        head_dropout: dropout rate before both classifiers.
        placement: insertion layers in the masked encoder: "late", at the relative depth of the multimodal encoder's
            global layers, or "uniform", at equal distances; "the features in all stages" (paper 3.3) allows both.
    """

    direction: Literal["paper", "both"] = "paper"
    fusion: Fusion = "scalar"
    head_dropout: float = 0.9
    placement: Placement = "late"

    def __post_init__(self) -> None:
        allowed = {"direction": ("paper", "both"), "fusion": get_args(Fusion), "placement": get_args(Placement)}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(values)}")


@dataclass(frozen=True)
class CrossModelOutput:
    """Logits (B, C): of the masked encoder, of the multimodal encoder, and joined."""

    masked: Tensor
    multimodal: Tensor
    fused: Tensor


class ScoreFusion(Module):
    """Learned linear combination of two logits, initialized as their mean."""

    def __init__(self, kind: Fusion, num_classes: int) -> None:
        super().__init__()
        self.kind = kind
        shape = {"scalar": (1,), "per_class": (num_classes,), "free": (2,)}[kind]
        self.weight = nn.Parameter(torch.zeros(shape))

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the weights of the masked and the multimodal logits: scalars, (1,) or (C,)."""
        if self.kind == "free":
            return 0.5 + self.weight[0], 0.5 + self.weight[1]
        masked_weight = torch.sigmoid(self.weight)
        return masked_weight, 1 - masked_weight

    def forward(self, masked: Tensor, multimodal: Tensor) -> Tensor:
        """(B, C), (B, C) -> (B, C)."""
        masked_weight, multimodal_weight = self.weights()
        return masked_weight * masked + multimodal_weight * multimodal


def cross_attention_block(width: int, heads: int, context_width: int) -> Block:
    """Build a gated cross-attention module: gates and biases start at zero, all weights at random."""
    block = Block(
        BlockConfig(
            width=width,
            heads=heads,
            mlp_dim=4 * width,
            activation="gelu",
            eps=EPS,
            cross_attention="separate",
            context_width=context_width,
            gated=True,
        )
    )
    for name, parameter in block.named_parameters():
        if name in {"attn.q.weight", "attn.k.weight", "attn.v.weight", "mlp.fc1.weight"}:
            nn.init.xavier_uniform_(parameter)
        elif name in {"attn.out.weight", "mlp.fc2.weight"}:
            # If these were zero like the gates, neither would get a gradient.
            nn.init.normal_(parameter, std=0.02)
        elif name.startswith(("attn.", "mlp.")):
            nn.init.zeros_(parameter)
    return block


def insertion_layers(
    global_layers: tuple[int, ...], multimodal_depth: int, masked_depth: int, placement: Placement = "late"
) -> tuple[int, ...]:
    """Return, for each stage but the last, the number of masked-encoder layers before its cross-attention module."""
    if placement == "uniform":
        num_stages = len(global_layers)
        return tuple(-(-stage * masked_depth // num_stages) for stage in range(1, num_stages))
    return tuple(-(-(layer + 1) * masked_depth // multimodal_depth) for layer in global_layers[:-1])


class CrossModel(VideoEncoder):
    """A masked and a multimodal encoder, both frozen except for their classifiers, with cross-model attention.

    Args:
        masked: the masked encoder with a head.
        multimodal: the multimodal encoder with a head of the same number of classes.
        config: settings of the cross-model attention.

    Raises:
        ValueError: a missing head or different numbers of classes.

    Attributes:
        cma: one module per stage; all but the last update the masked encoder's tokens, the last the query token.
        cma_both: with direction "both", one further module per stage but the last, which updates the query token.
        checkpointing: recompute the masked encoder's activations in the backward pass.
    """

    config: CrossModelConfig
    has_logits = True
    takes_temporal_stride = True
    max_layer_id = 0
    tower = None  # there are two encoders
    initial_sources = (("masked", "multimodal"),)
    """Both encoders are frozen, so both are loaded from files."""

    def __init__(self, masked: VideoMAEClassifier, multimodal: UniFormerV2, config: CrossModelConfig) -> None:
        super().__init__()
        num_classes = multimodal.config.num_classes
        if not num_classes or masked.config.num_classes != num_classes:
            raise ValueError(
                f"the masked encoder has {masked.config.num_classes} classes and the multimodal encoder {num_classes}; "
                "both need a head of the same classes"
            )
        self.config = config
        self.masked = masked
        self.multimodal = multimodal
        self.checkpointing = False
        global_layers, masked_width, width = (
            multimodal.config.global_layers,
            masked.config.width,
            multimodal.config.width,
        )
        self.insertion_layers = insertion_layers(
            global_layers, multimodal.config.depth, masked.config.depth, config.placement
        )
        token_blocks = [cross_attention_block(masked_width, masked.config.heads, width) for _ in self.insertion_layers]
        query_blocks = [
            cross_attention_block(width, multimodal.config.global_heads or multimodal.config.heads, masked_width)
            for _ in range(len(global_layers) if config.direction == "both" else 1)
        ]
        self.cma = nn.ModuleList([*token_blocks, query_blocks[-1]])
        self.cma_both = nn.ModuleList(query_blocks[:-1])
        self.fuse = ScoreFusion(config.fusion, num_classes)
        self.dropout = Dropout(config.head_dropout)
        self.freeze()

    @property
    def trainable_names(self) -> tuple[str, ...]:
        """Names of the trainable parameters, in the order of `named_parameters`."""
        prefixes = ("cma.", "cma_both.", "fuse.", "masked.head.", "multimodal.proj.")
        return tuple(n for n, _ in self.named_parameters() if n.startswith(prefixes) or n == "multimodal.query")

    def freeze(self) -> None:
        """Freeze all parameters but `trainable_names`, and keep the encoders in evaluation mode."""
        trainable = set(self.trainable_names)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> CrossModel:
        """Set the mode of the cross-attention, fusion and dropout modules; the encoders stay in evaluation mode."""
        super().train(mode)
        self.masked.eval()
        self.multimodal.eval()
        return self

    def _run_masked_layers(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Run the masked encoder's layers start..stop-1, without gradients before the first inserted module."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and start > 0):
            return run_blocks(self.masked.blocks[start:stop], x, self.checkpointing)

    def head_inputs(self, masked_video: Tensor, multimodal_video: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the inputs of both heads: masked tokens (B, N, Dm) and multimodal feature (B, Du).

        Args:
            masked_video: (B, 3, T, S, S), normalized for the masked encoder.
            multimodal_video: (B, 3, T', S', S'), normalized for the multimodal encoder.
        """
        with torch.no_grad():
            stages, last = self.multimodal.backbone(multimodal_video)
            x = self.masked.embed(masked_video)
        batch, frames = last.shape[:2]
        query = self.multimodal.query.expand(batch, -1, -1)
        start, stops = 0, (*self.insertion_layers, self.masked.config.depth)
        for stage, (tokens, stop) in enumerate(zip(stages, stops, strict=True)):
            query = self.multimodal.apply_global_stage(stage, query, tokens, frames)
            x, start = self._run_masked_layers(x, start, stop), stop
            if stage < len(self.insertion_layers):
                x = self.cma[stage](x, tokens)
                if len(self.cma_both):
                    query = self.cma_both[stage](query, x)
        query = self.cma[-1](query, x)
        return x, self.multimodal.merge_class_token(query, last[:, :, 0].mean(dim=1))

    @property
    def build_config(self) -> InteractionConfig:
        """The config of both encoders and of the cross-model attention."""
        return InteractionConfig(self.masked.config, self.multimodal.config, self.config)

    @property
    def embed_dim(self) -> int:
        """Dm + Du."""
        return self.masked.embed_dim + self.multimodal.embed_dim

    @property
    def num_classes(self) -> int:
        """C."""
        return self.multimodal.num_classes

    @property
    def default_temporal_stride(self) -> int:
        """The stride that gives the multimodal encoder the number of frames of its config."""
        return max(self.masked.config.frames // self.multimodal.config.frames, 1)

    @property
    def clip_needs(self) -> tuple[ClipNeeds, ...]:
        """Clip needs of both encoders."""
        masked = prefix_clip_needs("masked", self.masked.clip_needs)
        return (*masked, *prefix_clip_needs("multimodal", self.multimodal.clip_needs))

    @property
    def test_clips(self) -> dict[str, Any]:
        """Those of UniFormerV2 (paper 3.3), with size and number of frames of the masked encoder."""
        size = self.masked.config.image_size
        return {**self.multimodal.test_clips, "frames": self.masked.config.frames, "size": size}

    def prepare(self, clips: Tensor, temporal_stride: int = 1) -> tuple[Tensor, Tensor]:
        """Normalize (B, 3, T, S, S) for each encoder; the multimodal one gets every `temporal_stride`-th frame."""
        return self.masked.prepare(clips), self.multimodal.prepare(clips[:, :, ::temporal_stride])

    def features(self, video: tuple[Tensor, Tensor]) -> Tensor:
        """Concatenate both encoders' L2-normalized features (B, Dm + Du), so that neither dominates."""
        tokens, feature = self.head_inputs(*video)
        both = (self.masked.pool(tokens), feature)
        return torch.cat([nn.functional.normalize(each.float(), dim=1) for each in both], dim=1)

    def tokens(self, video: tuple[Tensor, Tensor]) -> Tensor:
        """Return the masked encoder's tokens (B, N, Dm), the input of its head."""
        return self.head_inputs(*video)[0]

    def logits(self, video: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the fused logits (B, C)."""
        return self.forward(*video).fused

    def forward(self, masked_video: Tensor, multimodal_video: Tensor) -> CrossModelOutput:
        """Compute the logits of both encoders and their combination; arguments as `head_inputs`."""
        x, feature = self.head_inputs(masked_video, multimodal_video)
        masked = self.masked.head(self.dropout(self.masked.pool(x)))
        multimodal = self._multimodal_head(feature)
        return CrossModelOutput(masked, multimodal, self.fuse(masked, multimodal))

    def _multimodal_head(self, feature: Tensor) -> Tensor:
        """Apply the multimodal head, (B, D) -> (B, C), with this model's dropout instead of the head's."""
        head = self.multimodal.proj
        assert isinstance(head, ClassHead)  # checked at construction
        return head.linear(self.dropout(head.norm(feature)))

    def gates(self) -> dict[str, Tensor]:
        """Return tanh of every gate and the mean fusion weights for the training log, as detached scalars."""
        values, branches = {}, {"attention": "gate_attn", "feed_forward": "gate_mlp"}
        for list_name, modules in (("cma", self.cma), ("cma_both", self.cma_both)):
            for stage, block in enumerate(modules):
                for branch, gate in branches.items():
                    value = full_tensor(block.get_parameter(gate).detach()).tanh().squeeze()
                    values[f"{list_name}.{stage}.{branch}"] = value
        masked, multimodal = self.fuse.weights()
        return {**values, "fuse.masked": masked.detach().mean(), "fuse.multimodal": multimodal.detach().mean()}

    def get_layer_id(self, name: str) -> int:
        """Return 0: all trainable parameters have the same learning rate."""
        return 0


@dataclass(frozen=True)
class InteractionConfig:
    """Config of a `CrossModel`: both encoders and the cross-model attention."""

    masked: VideoMAEConfig
    multimodal: UniFormerV2Config
    cross: CrossModelConfig = CrossModelConfig()


def build_cross_model(config: InteractionConfig) -> CrossModel:
    """Build both encoders and the cross-model attention with random weights."""
    return CrossModel(VideoMAEClassifier(config.masked), UniFormerV2(config.multimodal), config.cross)
