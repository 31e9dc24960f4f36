"""What a model starts from: the weights of an earlier stage, read strictly into the part they belong to.

Source: paper 3.2 and 3.3; spec/models.md B (classifier from pretraining), C.3, D.3 and F (CLIP), G (interaction).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from internvideo.errors import WeightsError
from internvideo.models.action_detector import FRESH, ActionDetector, of_encoder
from internvideo.models.clip_import import from_clip
from internvideo.models.cross_model import CrossModel
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.viclip import ViCLIP
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.models.weights import load_part, load_pretrained, read_safetensors

FROM_CLIP = (UniFormerV2, VideoLanguage, ViCLIP)
"""What can start from an image-text model."""


def initialise(model: nn.Module, sources: Mapping[str, Path]) -> None:
    """Fill `model` from files.

    Args:
        model: any model of the table.
        sources: {"weights": FILE} that `internvideo train` wrote; for a `CrossModel` {"masked": FILE,
            "multimodal": FILE}; for the encoders that start from an image-text model also {"clip": FILE}, in the public
            CLIP layout (converted by `internvideo convert`) or ours. Empty leaves the model as it was drawn, except a
            `CrossModel`, whose encoders never learn.

    Raises:
        WeightsError: a wrong name, an absent file, or tensors that do not fit. A model of one source is then unchanged.
    """
    if not sources and not isinstance(model, CrossModel):
        return
    allowed = [{"masked", "multimodal"}] if isinstance(model, CrossModel) else [{"weights"}]
    if isinstance(model, FROM_CLIP):
        allowed.append({"clip"})
    if set(sources) not in allowed:
        names = " or ".join(" and ".join(f"{name}: FILE" for name in sorted(choice)) for choice in allowed)
        raise WeightsError("init", f"holds {', '.join(sources) or 'nothing'}", names, "change `init` in the recipe")
    if isinstance(model, CrossModel):
        _fill(model.masked, sources["masked"])
        _fill(model.multimodal, sources["multimodal"])
    elif "clip" in sources:
        from_clip(model, read_safetensors(sources["clip"])[0], where=sources["clip"])
    else:
        _fill(model, sources["weights"])


def _fill(model: nn.Module, path: Path) -> None:
    state, _ = read_safetensors(path)
    if isinstance(model, ActionDetector) and "head.projection.weight" not in state:
        load_part(model, of_encoder(state), fresh=FRESH, where=path)
    elif isinstance(model, VideoMAEClassifier) and any(name.startswith("encoder.") for name in state):
        load_pretrained(model, state, where=path)
    elif isinstance(model, UniFormerV2) and any(name.startswith("visual.") for name in state):
        load_part(model, _below(state, "visual."), fresh=r"proj\.", where=path)
    elif isinstance(model, VideoLanguage) and not any(name.startswith("caption_decoder.") for name in state):
        load_part(model, state, fresh=r"caption_decoder\.", where=path)
    else:
        load_part(model, state, fresh=None, where=path)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
