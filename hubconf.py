"""Entry points for `torch.hub.load`; each returns an `internvideo.VideoModel`.

model = torch.hub.load("ORGANISATION/REPOSITORY", "internvideo_mm", weights="hf://ORGANISATION/REPOSITORY/FILE")
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

dependencies = [
    "torch",
    "numpy",
    "av",
    "pydantic",
    "yaml",
    "safetensors",
    "huggingface_hub",
    "tokenizers",
    "ftfy",
    "typer",
]

_SOURCE = str(Path(__file__).resolve().parent / "src")
if _SOURCE not in sys.path:
    sys.path.insert(0, _SOURCE)


def load(name_or_path: str, **settings: Any) -> Any:
    """`internvideo.load`: a name with weights=..., a folder, a file, hf://... or https://..."""
    import internvideo

    return internvideo.load(name_or_path, **settings)


def create_model(name: str, **settings: Any) -> Any:
    """`internvideo.create_model`: a plain module; pretrained=FILE_OR_ADDRESS, num_classes=..., settings of a config."""
    import internvideo

    return internvideo.create_model(name, **settings)


def videomae(size: str = "b", *, weights: str, head: bool = True, **settings: Any) -> Any:
    """Masked encoder, sizes s, b, l, h, g14, g16, G14; with head=False the pretraining model."""
    return load(f"videomae-{size}-{'classifier' if head else 'pretrain'}", weights=weights, **settings)


def uniformerv2(size: str = "b16", *, weights: str, **settings: Any) -> Any:
    """Multimodal encoder with a head, sizes b16, l14, l14-336, b16-ssv2, l14-ssv2."""
    return load(f"uniformerv2-{size}", weights=weights, **settings)


def internvideo_mm(size: str = "l14", *, weights: str, caption: bool = False, **settings: Any) -> Any:
    """Video and text towers, sizes b16, l14; with caption=True also a caption decoder."""
    return load(f"internvideo-mm-{size}{'-caption' if caption else ''}", weights=weights, **settings)


def viclip(size: str = "l14", *, weights: str, **settings: Any) -> Any:
    """Joint space-time video tower and text tower, sizes b16, l14."""
    return load(f"viclip-{size}", weights=weights, **settings)


def clip(size: str = "l14", *, weights: str, **settings: Any) -> Any:
    """CLIP frame by frame, sizes b32, b16, l14, l14-336."""
    return load(f"clip-{size}", weights=weights, **settings)


def interaction(size: str = "h", *, weights: str, **settings: Any) -> Any:
    """Masked and multimodal encoder with cross-model attention, sizes b, l, h."""
    return load(f"interaction-{size}", weights=weights, **settings)
