"""The weight tables of the multimodal family: published names -> ours (spec/models.md I)."""

from __future__ import annotations

from torch import nn

from internvideo.models.weight_rules import WeightTable

MULTIMODAL_TABLES: dict[type[nn.Module], WeightTable] = {}
"""Model class -> its table; merged into weights.TABLES."""
