"""History-aware planner: choose a waypoint from the instruction, the panoramas of past steps and the candidates.

Independent of the world. Source: Visual-Language-Navigation.
Shapes: B batch, L words, D width, H history tokens (a start token, then one per step), O observation tokens (candidate
waypoints, the stop token, views without a candidate), 12 views of a panorama.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from internvideo.models.module import Dropout, Embedding, LayerNorm, Linear, Module, Sequential
from internvideo.models.post_norm import EPS, PostNormAttention, PostNormConfig, PostNormFeed, PostNormLayer
from internvideo.tasks.navigation.planner_weights import PLANNER

FEATURE_WIDTH = 4
"""Width of an angle feature and of a distance feature."""
CONTEXT, CANDIDATE, STOP = 0, 1, 2
"""Navigation types of observation tokens."""


@dataclass(frozen=True)
class PlannerConfig:
    """Sizes.

    Attributes:
        rgb_width, depth_width: of one view's input features.
        width, heads, hidden: D, attention heads, feed-forward width.
        text_layers, cross_layers, panorama_layers: numbers of layers of the text encoder, of the cross-modal encoder
            and of the encoder over the views of one step of the history.
        vocab_size: number of word ids. max_words: of an instruction. max_steps: of an episode.
        dropout: of all layers.
        frozen_words: freeze the word embeddings (from BERT).
        frozen_history: freeze the history embeddings (released setting).
    """

    rgb_width: int = 768
    depth_width: int = 128
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    text_layers: int = 9
    cross_layers: int = 4
    panorama_layers: int = 2
    vocab_size: int = 30522
    max_words: int = 512
    max_steps: int = 50
    dropout: float = 0.1
    frozen_words: bool = True
    frozen_history: bool = True

    @property
    def layer(self) -> PostNormConfig:
        """Config of every transformer layer."""
        return PostNormConfig(self.width, self.heads, self.hidden, self.dropout)


class Observation(NamedTuple):
    """Observation tokens, padded at the end.

    Attributes:
        rgb: (B, O, rgb_width). depth: (B, O, depth_width). angle, distance: (B, O, 4).
        kind: (B, O) int64 CONTEXT, CANDIDATE or STOP. mask: (B, O) bool, False for padding.
    """

    rgb: Tensor
    depth: Tensor
    angle: Tensor
    distance: Tensor
    kind: Tensor
    mask: Tensor


class Plan(NamedTuple):
    """Scores (B, O), -inf for tokens that cannot be chosen, and encoded text (B, L, D), history and observation."""

    scores: Tensor
    text: Tensor
    history: Tensor
    observation: Tensor


class Projection(Module):
    """Input projection of a feature: norm(linear(x))."""

    def __init__(self, input_width: int, width: int) -> None:
        super().__init__()
        self.linear = Linear(input_width, width)
        self.norm = LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_width) -> (..., D)."""
        return self.norm(self.linear(x))


class WordEmbedding(Module):
    """Word, position and token-type embeddings; observations use token type 1 of the same table."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        self.word = Embedding(config.vocab_size, config.width)
        self.position = Embedding(config.max_words, config.width)
        self.token_type = Embedding(2, config.width)
        self.norm = LayerNorm(config.width, eps=EPS)
        self.dropout = Dropout(config.dropout)
        self.word.weight.requires_grad = not config.frozen_words

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        if ids.shape[1] > self.position.num_embeddings:
            raise ValueError(f"{ids.shape[1]} words, the planner takes at most {self.position.num_embeddings}")
        x = self.word(ids) + self.position.weight[: ids.shape[1]] + self.token_type.weight[0]
        return self.dropout(self.norm(x))


class HistoryEmbedding(Module):
    """One token per step: front view, turn taken, and an encoding of the 12 views."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        width = config.width
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.rgb, self.angle = Projection(config.rgb_width, width), Projection(FEATURE_WIDTH, width)
        self.view_rgb, self.view_angle = Projection(config.rgb_width, width), Projection(FEATURE_WIDTH, width)
        self.position = Embedding(config.max_steps, width)
        self.token_type = Embedding(1, width)
        self.layers = nn.ModuleList(PostNormLayer(config.layer) for _ in range(config.panorama_layers))
        self.norm = LayerNorm(width, eps=EPS)
        self.dropout = Dropout(config.dropout)
        if config.frozen_history:
            self.requires_grad_(False)

    def start_tokens(self, batch_size: int) -> Tensor:
        """Return the start tokens (B, D)."""
        token = self.norm(self.start[0] + self.token_type.weight)
        return self.dropout(token.expand(batch_size, -1))

    def forward(self, rgb: Tensor, angle: Tensor, views: Tensor, view_angles: Tensor, step: int) -> Tensor:
        """Embed a step.

        Args:
            rgb: (B, rgb_width) of the front view. angle: (B, 4) of the turn taken.
            views: (B, 12, rgb_width). view_angles: (B, 12, 4) or (12, 4).
            step: index of the step, from 0.

        Returns:
            (B, D).
        """
        panorama = self.dropout(self.view_rgb(views) + self.view_angle(view_angles))
        for layer in self.layers:
            panorama = layer(panorama)
        x = self.rgb(rgb) + self.angle(angle) + self.position.weight[step] + self.token_type.weight
        return self.dropout(self.norm(x + panorama.mean(dim=1)))


class ObservationEmbedding(Module):
    """Embed candidate waypoints, the stop token and the views without a candidate."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        width = config.width
        self.rgb, self.depth = Projection(config.rgb_width, width), Projection(config.depth_width, width)
        self.angle, self.distance = Projection(FEATURE_WIDTH, width), Projection(FEATURE_WIDTH, width)
        self.kind = Embedding(3, width)
        self.norm = LayerNorm(width, eps=EPS)
        self.dropout = Dropout(config.dropout)

    def forward(self, observation: Observation, token_type: Tensor) -> Tensor:
        """Map an observation and its token type embedding (D,) to tokens (B, O, D)."""
        x = self.rgb(observation.rgb) + self.depth(observation.depth)
        x = x + self.angle(observation.angle) + self.distance(observation.distance)
        return self.dropout(self.norm(x + token_type + self.kind(observation.kind)))


class CrossLayer(nn.Module):
    """Cross-attention between text and vision in both directions with shared weights, then self-attention in each."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        layer = config.layer
        self.cross = PostNormAttention(layer)
        self.text, self.text_feed = PostNormAttention(layer), PostNormFeed(layer)
        self.vision, self.vision_feed = PostNormAttention(layer), PostNormFeed(layer)

    def forward(
        self, text: Tensor, vision: Tensor, text_attn_mask: Tensor, vision_attn_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map text (B, L, D) and vision (B, H + O, D) to equal shapes.

        Masks: (B, 1, 1, L) and (B, 1, 1, H + O) bool, False for padding.
        """
        text, vision = self.cross(text, vision, vision_attn_mask), self.cross(vision, text, text_attn_mask)
        text, vision = self.text(text, attn_mask=text_attn_mask), self.vision(vision, attn_mask=vision_attn_mask)
        return self.text_feed(text), self.vision_feed(vision)


class Planner(nn.Module):
    """Encode an instruction once, embed a history token per step, and score the tokens of each observation."""

    published_names = PLANNER

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        self.config = config
        self.words = WordEmbedding(config)
        self.text_layers = nn.ModuleList(PostNormLayer(config.layer) for _ in range(config.text_layers))
        self.history = HistoryEmbedding(config)
        self.observation = ObservationEmbedding(config)
        self.cross_layers = nn.ModuleList(CrossLayer(config) for _ in range(config.cross_layers))
        width = config.width
        self.action = Sequential(
            Linear(width, width), nn.ReLU(), LayerNorm(width, eps=EPS), Dropout(config.dropout), Linear(width, 1)
        )
        # 0.02 at the published width; with 0.02, a narrow planner starts with nearly uniform attention.
        std = 0.02 * math.sqrt(768 / width)
        self.apply(lambda module: _initialize(module, std))

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode words (B, L) int64 with mask (B, L) (False for padding) to (B, L, D)."""
        x = self.words(ids)
        for layer in self.text_layers:
            x = layer(x, mask[:, None, None])
        return x

    def forward(
        self, text: Tensor, text_mask: Tensor, history: Tensor, history_mask: Tensor, observation: Observation
    ) -> Plan:
        """Score every token of an observation.

        Args:
            text: (B, L, D) of `encode_text`. text_mask: (B, L) bool, False for padding.
            history: (B, H, D), the start token first. history_mask: (B, H) bool.
            observation: current panorama.
        """
        length = history.shape[1]
        vision = torch.cat([history, self.observation(observation, self.words.token_type.weight[1])], dim=1)
        text_attn_mask = text_mask[:, None, None]
        vision_attn_mask = torch.cat([history_mask, observation.mask], dim=1)[:, None, None]
        for layer in self.cross_layers:
            text, vision = layer(text, vision, text_attn_mask, vision_attn_mask)
        history, tokens = vision[:, :length], vision[:, length:]
        scores = self.action(tokens * text[:, :1])[..., 0]
        scores = scores.masked_fill((observation.kind == CONTEXT) | ~observation.mask, float("-inf"))
        return Plan(scores, text, history, tokens)


def _initialize(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, Projection):
        # The stop token's features are 0. With a zero bias the norm gets 0, where its slope is 1 / EPS^0.5.
        nn.init.normal_(module.linear.bias, std=std)
