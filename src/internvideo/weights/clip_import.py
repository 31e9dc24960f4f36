"""Initialize a multimodal encoder from CLIP.

Source: uniformerv2_model.py, Multi-Modalities-Pretraining (video-language model), viclip.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from internvideo.errors import WeightsError
from internvideo.models.positions import fit_positions
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.viclip import ViCLIP
from internvideo.models.video_language import VideoLanguage
from internvideo.weights.key_tables import CLIP
from internvideo.weights.state import convert_reference, load_state
from internvideo.weights.transformers_names import published_clip

_ADDED = r"query|balance|global_blocks\..*|local[12]\..*|stem\.(motion|convolutions\..*)"
"""What UniFormerV2 adds to CLIP's image transformer."""


@dataclass(frozen=True)
class _Plan:
    """Map CLIP's tensors (named as in `clip.Clip`) to those of a model.

    Attributes:
        renamed: (regular expression of the source, template of ours), first match decides; others keep their name.
        dropped: sources that the model does not have.
        fresh: names of ours that CLIP does not have.
    """

    renamed: tuple[tuple[str, str], ...]
    dropped: str
    fresh: str


_PLANS: dict[type[nn.Module], _Plan] = {
    UniFormerV2: _Plan(
        renamed=((r"visual\.(.*)", r"\1"),),
        dropped=r"visual\.(norm\..*|projection)|text\..*|logit_scale",
        fresh=rf"{_ADDED}|proj\..*",
    ),
    VideoLanguage: _Plan(
        renamed=((r"visual\.norm\.(.*)", r"visual_norm.\1"), (r"visual\.projection", "visual_projection")),
        dropped="",
        fresh=rf"visual\.({_ADDED})|text\.mask_embedding|caption_decoder\..*",
    ),
    ViCLIP: _Plan(renamed=(), dropped="logit_scale", fresh=r"visual\.time_embedding|temperature"),
}


@dataclass(frozen=True)
class ClipImport:
    """Report of an import.

    Attributes:
        filled: our names that were loaded from CLIP.
        fresh: our names that keep their initialization.
        dropped: names (as in `clip.Clip`) that were not used.
        resized: which positions were resized.
    """

    filled: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    resized: tuple[str, ...]


def from_clip(model: nn.Module, state: Mapping[str, Tensor], where: object = "CLIP state dict") -> ClipImport:
    """Initialize a multimodal encoder, in place, with the weights of an image-text model.

    The image kernel is inflated to a video kernel that is zero but for the middle frame. Position embeddings of patches
    are resized for another image size (UniFormerV2's issue 12), those of words are truncated for a shorter context.

    Args:
        model: `UniFormerV2`, `VideoLanguage` or `ViCLIP`.
        state: in the public CLIP layout, transformers', or the state dict of our own `clip.Clip`; any precision.
        where: file or source, for messages.

    Raises:
        WeightsError: a tensor of CLIP that has no place and is not dropped on purpose, one of ours that CLIP should
            fill and does not, other shapes, values that are not finite. The model is then unchanged.
        ValueError: another class of model.
    """
    plan = _PLANS.get(type(model))
    if plan is None:
        raise ValueError(f"{type(model).__name__} does not start from CLIP")
    target = model.state_dict()
    filled: dict[str, Tensor] = {}
    dropped = []
    for source, tensor in _our_layout(model, state, where).items():
        name = _renamed(plan.renamed, source)
        if re.fullmatch(plan.dropped, source) or (source.endswith("projection") and name not in target):
            dropped.append(source)
        elif name in target:
            filled[name] = _fitted(name, tensor, target[name])
        else:
            raise WeightsError(where, f"no place for {source}", hint="the model is smaller or of another kind")
    fresh = [name for name in target if name not in filled]
    missing = [name for name in fresh if not re.fullmatch(plan.fresh, name)]
    if missing:
        raise WeightsError(where, f"missing {', '.join(missing[:5])}", hint="the model is larger or of another kind")
    filled, resized = fit_positions(model, filled)
    load_state(model, {**target, **filled}, where)
    return ClipImport(tuple(filled), tuple(fresh), tuple(dropped), resized)


def _our_layout(model: nn.Module, state: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """Rename a state dict to the names of `clip.Clip`. Raises WeightsError: an unknown tensor."""
    if "visual.stem.conv.weight" in state:
        return dict(state)
    public = published_clip(state) if "vision_model.embeddings.class_embedding" in state else state
    ours, unknown = convert_reference(model, public, CLIP)
    if unknown:
        raise WeightsError(where, f"unknown tensor {unknown[0]}", "the public CLIP layout")
    return ours


def _renamed(rules: Iterable[tuple[str, str]], source: str) -> str:
    for pattern, template in rules:
        match = re.fullmatch(pattern, source)
        if match is not None:
            return match.expand(template)
    return source


def _fitted(name: str, tensor: Tensor, target: Tensor) -> Tensor:
    """Convert a tensor to the shape of `target` where the rules allow it; loading refuses other shapes."""
    if name.endswith("stem.conv.weight"):
        return _inflated(tensor, target)
    if name == "text.positional_embedding" and tensor.dim() == 2 and len(tensor) > len(target):
        return tensor[: len(target)]
    return tensor


def _inflated(kernel: Tensor, target: Tensor) -> Tensor:
    """Inflate a kernel (D, 3, 1, p, p) to (D, 3, kt, p, p), zero but for the middle frame."""
    if kernel.dim() != 5 or kernel.shape[2] == target.shape[2]:
        return kernel
    inflated = kernel.new_zeros(*kernel.shape[:2], target.shape[2], *kernel.shape[3:])
    inflated[:, :, target.shape[2] // 2] = kernel[:, :, 0]
    return inflated
