"""The named sizes of the multimodal family (spec/models.md C.2, D, F, G, H)."""

from __future__ import annotations

from internvideo.models.entry import ModelEntry

MULTIMODAL_MODELS: dict[str, ModelEntry] = {}
"""Name -> entry; merged into factory.MODELS."""
