"""Named sizes of ActionFormer, one per benchmark (ActionFormer's configs; arXiv 2211.09529 for Ego4D's moments)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class ActionFormerConfig:
    """Sizes of ActionFormer.

    Attributes:
        input_width: channels of the features.
        width, heads: D and H.
        windows: attention window per level (odd; 1 or less: all steps), or a single one for all levels.
        max_length: steps of a training sequence; test sequences may be longer.
        num_classes: K, 1 for class-agnostic.
        embedding_layers, stem_layers, branch_layers: numbers of layers; each branch layer halves the time.
        neck: "identity" or "pyramid" (top-down).
        absolute_positions: add fixed sinusoidal positions. relative_positions: learned bias per offset in a window.
        head_layers: convolutions of each head including the last.
        ranges: per level, the range of distances to the farther end (in steps) that it detects.
        drop_path, dropout: in the layers.
        prior: probability of a class at initialization.
    """

    input_width: int = 1280
    width: int = 512
    heads: int = 4
    windows: tuple[int, ...] = (19,)
    max_length: int = 2304
    num_classes: int = 20
    embedding_layers: int = 2
    stem_layers: int = 2
    branch_layers: int = 5
    neck: Literal["identity", "pyramid"] = "identity"
    absolute_positions: bool = False
    relative_positions: bool = False
    head_layers: int = 3
    ranges: tuple[tuple[float, float], ...] = ((0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 10000))
    drop_path: float = 0.1
    dropout: float = 0.0
    prior: float = 0.01

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if len(self.windows) not in (1, self.levels) or len(self.ranges) != self.levels:
            raise ValueError(f"windows and ranges need one entry for each of {self.levels} levels (or one window)")
        if any(window > 1 and window % 2 == 0 for window in self.windows):
            raise ValueError(f"windows {self.windows}: expected odd numbers, or 1 for all steps")
        if self.max_length % self.multiple:
            raise ValueError(f"max_length {self.max_length}: expected a multiple of {self.multiple} (stride x window)")

    @property
    def levels(self) -> int:
        """Number of levels; level l has stride 2^l."""
        return self.branch_layers + 1

    def window(self, level: int) -> int:
        """Return the attention window of a level."""
        return self.windows[level if len(self.windows) > 1 else 0]

    @property
    def multiple(self) -> int:
        """The length of a padded sequence must be a multiple of this."""
        return max((1 << level) * max(1, self.window(level) // 2 * 2) for level in range(self.levels))

    def padded_length(self, length: int) -> int:
        """Return the padded length of a test sequence: `max_length`, or the next multiple above it."""
        return self.max_length if length <= self.max_length else math.ceil(length / self.multiple) * self.multiple


_CLASS_AGNOSTIC = ActionFormerConfig(width=256, windows=(25,) * 5 + (1,), num_classes=1, absolute_positions=True)
_FINEACTION = replace(_CLASS_AGNOSTIC, windows=(7,) * 5 + (1,), max_length=192)
_EGO4D = ActionFormerConfig(
    width=384, windows=(9,), max_length=1024, num_classes=110, branch_layers=7, absolute_positions=True,
    ranges=(*ActionFormerConfig().ranges[:-1], (64, 128), (128, 256), (256, 10000)),
)  # fmt: skip
SIZES: dict[str, tuple[ActionFormerConfig, float | None, str]] = {
    "thumos": (ActionFormerConfig(), 28.072, "20 classes, windows of 19, up to 2304 steps"),
    "activitynet": (replace(_CLASS_AGNOSTIC, max_length=768), 7.533, "one class, windows of 25, up to 768 steps"),
    "hacs": (_CLASS_AGNOSTIC, None, "one class, windows of 25, up to 2304 steps"),
    "fineaction": (_FINEACTION, None, "one class, windows of 7, 192 steps"),
    "ego4d-mq": (_EGO4D, None, "110 classes, 8 levels, windows of 9, up to 1024 steps"),
}
"""Benchmark -> config, number of parameters in millions if published, and description."""
