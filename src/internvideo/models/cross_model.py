"""Cross-model attention: two frozen video encoders exchange features through gated cross-attention.

The masked encoder's tokens attend to mid-level tokens of the multimodal encoder; in the last stage the multimodal
encoder's query token attends to the masked encoder's tokens; a learned linear combination joins the two scores. With
all gates at zero the outputs of both encoders are those without interaction.

Shapes: B batch, S stages n, D widths, C classes. Source: paper 3.3 (the published code has no such module).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from internvideo.distributed import full_tensor
from internvideo.models.block import Block, BlockConfig
from internvideo.models.encoder import ClipNeeds, VideoEncoder, in_part
from internvideo.models.module import Dropout, Module
from internvideo.models.uniformerv2 import ClassHead, UniFormerV2, UniFormerV2Config
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, run_blocks

EPS = 1e-5
Fusion = Literal["scalar", "per_class", "free"]
Placement = Literal["late", "uniform"]


@dataclass(frozen=True)
class CrossModelConfig:
    """Settings of the interaction.

    Attributes:
        direction: "paper" (into the masked encoder at every stage but the last, into the query token at the last) or
            "both" (also into the query token at every other stage).
        fusion: "scalar" (one weight), "per_class" (a weight per class), "free" (two weights, .5 + f each).
        head_dropout: dropout before both classifiers.
        placement: insertion layers in the masked encoder: "late", at the relative depth of the multimodal encoder's
            global layers, or "uniform", after equal stages; "the features in all stages" (paper 3.3) allows both.
    """

    direction: Literal["paper", "both"] = "paper"
    fusion: Fusion = "scalar"
    head_dropout: float = 0.9
    placement: Placement = "late"

    def __post_init__(self) -> None:
        allowed = {"direction": ("paper", "both"), "fusion": get_args(Fusion), "placement": get_args(Placement)}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} {getattr(self, name)!r}: {', '.join(values)}")


@dataclass(frozen=True)
class CrossModelOutput:
    """Logits (B, C): of the masked encoder, of the multimodal encoder, and joined."""

    masked: Tensor
    multimodal: Tensor
    fused: Tensor


class ScoreFusion(Module):
    """Learned linear combination of two scores, initialized as their mean."""

    def __init__(self, kind: Fusion, num_classes: int) -> None:
        super().__init__()
        self.kind = kind
        shape = {"scalar": (1,), "per_class": (num_classes,), "free": (2,)}[kind]
        self.weight = nn.Parameter(torch.zeros(shape))

    def weights(self) -> tuple[Tensor, Tensor]:
        """Weights of the first and the second score: scalars, (1,) or (C,)."""
        if self.kind == "free":
            return 0.5 + self.weight[0], 0.5 + self.weight[1]
        share = torch.sigmoid(self.weight)
        return share, 1 - share

    def forward(self, masked: Tensor, multimodal: Tensor) -> Tensor:
        """(B, C), (B, C) -> (B, C)."""
        first, second = self.weights()
        return first * masked + second * multimodal


def cross_attention_block(width: int, heads: int, context_width: int) -> Block:
    """Build a gated cross-attention module, initialized so that every part gets a gradient once the gates open."""
    block = Block(
        BlockConfig(
            width=width,
            heads=heads,
            mlp_dim=4 * width,
            activation="gelu",
            eps=EPS,
            context="separate",
            context_width=context_width,
            gated=True,
        )
    )
    for name, parameter in block.named_parameters():
        if name in {"attn.q.weight", "attn.k.weight", "attn.v.weight", "mlp.fc1.weight"}:
            nn.init.xavier_uniform_(parameter)
        elif name in {"attn.out.weight", "mlp.fc2.weight"}:
            # Not zero: with the gate at zero too, neither would get a gradient.
            nn.init.normal_(parameter, std=0.02)
        elif name.startswith(("attn.", "mlp.")):
            nn.init.zeros_(parameter)
    return block


def insertion_layers(
    global_layers: tuple[int, ...], multimodal_depth: int, masked_depth: int, kind: Placement = "late"
) -> tuple[int, ...]:
    """Return the number of masked layers before the module of each stage but the last, by `placement`."""
    if kind == "uniform":
        count = len(global_layers)
        return tuple(-(-stage * masked_depth // count) for stage in range(1, count))
    return tuple(-(-(layer + 1) * masked_depth // multimodal_depth) for layer in global_layers[:-1])


class CrossModel(VideoEncoder):
    """A masked and a multimodal encoder, both frozen except for their classifiers, with cross-model attention.

    Args:
        masked: the masked encoder with a head.
        multimodal: the multimodal encoder with a head of the same number of classes.
        config: settings of the interaction.

    Raises:
        ValueError: a missing head or different numbers of classes.

    Attributes:
        cma: one module per stage; all but the last update the masked encoder's tokens, the last the query token.
        cma_both: further modules of direction "both", one per stage, which update the query token.
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
        wide, deep = multimodal.config, masked.config
        self.insertion_layers = insertion_layers(wide.global_layers, wide.depth, deep.depth, config.placement)
        query_heads = wide.global_heads or wide.heads
        into_masked = [cross_attention_block(deep.width, deep.heads, wide.width) for _ in self.insertion_layers]
        into_query = [
            cross_attention_block(wide.width, query_heads, deep.width)
            for _ in range(len(wide.global_layers) if config.direction == "both" else 1)
        ]
        self.cma = nn.ModuleList([*into_masked, into_query[-1]])
        self.cma_both = nn.ModuleList(into_query[:-1])
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
        """Set the training mode of the new modules only: no drop path or running statistics in the encoders."""
        super().train(mode)
        self.masked.eval()
        self.multimodal.eval()
        return self

    def _masked_layers(self, x: Tensor, first: int, last: int) -> Tensor:
        """Run the masked layers first..last-1, without gradients before the first module."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and first > 0):
            return run_blocks(self.masked.blocks[first:last], x, self.checkpointing)

    def interact(self, masked_video: Tensor, multimodal_video: Tensor) -> tuple[Tensor, Tensor]:
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
        done, ends = 0, (*self.insertion_layers, self.masked.config.depth)
        for stage, (tokens, end) in enumerate(zip(stages, ends, strict=True)):
            query = self.multimodal.read_stage(stage, query, tokens, frames)
            x, done = self._masked_layers(x, done, end), end
            if stage < len(self.insertion_layers):
                x = self.cma[stage](x, tokens)
                if len(self.cma_both):
                    query = self.cma_both[stage](query, x)
        query = self.cma[-1](query, x)
        return x, self.multimodal.merge_class_token(query, last[:, :, 0].mean(dim=1))

    @property
    def build_config(self) -> InteractionConfig:
        """The config with the sizes of both encoders."""
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
        parts = (("masked", self.masked.clip_needs), ("multimodal", self.multimodal.clip_needs))
        return tuple(need for name, needs in parts for need in in_part(name, needs))

    @property
    def test_clips(self) -> dict[str, Any]:
        """As UniFormerV2 (paper 3.3), with the frames of the masked encoder."""
        size = self.masked.config.image_size
        return {**self.multimodal.test_clips, "frames": self.masked.config.frames, "size": size}

    def prepare(self, clips: Tensor, temporal_stride: int = 1) -> tuple[Tensor, Tensor]:
        """Normalize (B, 3, T, S, S) for each encoder; the multimodal one gets every `temporal_stride`-th frame."""
        return self.masked.prepare(clips), self.multimodal.prepare(clips[:, :, ::temporal_stride])

    def features(self, video: tuple[Tensor, Tensor]) -> Tensor:
        """Concatenate both encoders' L2-normalized features (B, Dm + Du), so that neither dominates."""
        tokens, feature = self.interact(*video)
        parts = [self.masked.pool(tokens), feature]
        return torch.cat([nn.functional.normalize(part.float(), dim=1) for part in parts], dim=1)

    def tokens(self, video: tuple[Tensor, Tensor]) -> Tensor:
        """Return the masked encoder's tokens (B, N, Dm), the input of its head."""
        return self.interact(*video)[0]

    def logits(self, video: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the fused scores (B, C)."""
        return self.forward(*video).fused

    def forward(self, masked_video: Tensor, multimodal_video: Tensor) -> CrossModelOutput:
        """Compute both scores and their combination; arguments as `interact`."""
        x, feature = self.interact(masked_video, multimodal_video)
        masked = self.masked.head(self.dropout(self.masked.pool(x)))
        multimodal = self._multimodal_head(feature)
        return CrossModelOutput(masked, multimodal, self.fuse(masked, multimodal))

    def _multimodal_head(self, feature: Tensor) -> Tensor:
        """Apply the multimodal head, (B, D) -> (B, C), with this model's dropout instead of the head's."""
        head = self.multimodal.proj
        assert isinstance(head, ClassHead)  # checked at construction
        return head.linear(self.dropout(head.norm(feature)))

    def gates(self) -> dict[str, Tensor]:
        """Return tanh of every gate and the mean fusion weights, as detached scalars."""
        values, branches = {}, {"attention": "gate_attn", "feed_forward": "gate_mlp"}
        for family, modules in (("cma", self.cma), ("cma_both", self.cma_both)):
            for stage, block in enumerate(modules):
                for branch, gate in branches.items():
                    value = full_tensor(block.get_parameter(gate).detach()).tanh().squeeze()
                    values[f"{family}.{stage}.{branch}"] = value
        masked, multimodal = self.fuse.weights()
        return {**values, "fuse.masked": masked.detach().mean(), "fuse.multimodal": multimodal.detach().mean()}

    def get_layer_id(self, name: str) -> int:
        """Return 0: all trainable parameters have the same learning rate."""
        return 0


@dataclass(frozen=True)
class InteractionConfig:
    """Config of a cross-model: both encoders and their interaction."""

    masked: VideoMAEConfig
    multimodal: UniFormerV2Config
    cross: CrossModelConfig = CrossModelConfig()


def build_cross_model(config: InteractionConfig) -> CrossModel:
    """Build both encoders with random weights, and their interaction."""
    return CrossModel(VideoMAEClassifier(config.masked), UniFormerV2(config.multimodal), config.cross)
