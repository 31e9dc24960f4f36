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

_NEW_MODULES = r"query|balance|global_blocks\..*|local[12]\..*|stem\.(motion|convolutions\..*)"
"""Names of the modules that UniFormerV2 adds to CLIP's image transformer."""


@dataclass(frozen=True)
class _Plan:
    """How the tensors of `clip.CLIPModel` initialize a model.

    Attributes:
        renamed: (pattern of CLIP's name, template of ours), first match applies; other names are equal.
        dropped: pattern of CLIP's names that the model does not have.
        newly_initialized: pattern of our names that CLIP does not have.
    """

    renamed: tuple[tuple[str, str], ...]
    dropped: str
    newly_initialized: str


_PLANS: dict[type[nn.Module], _Plan] = {
    UniFormerV2: _Plan(
        renamed=((r"visual\.(.*)", r"\1"),),
        dropped=r"visual\.(norm\..*|projection)|text\..*|logit_scale",
        newly_initialized=rf"{_NEW_MODULES}|proj\..*",
    ),
    VideoLanguage: _Plan(
        renamed=((r"visual\.norm\.(.*)", r"visual_norm.\1"), (r"visual\.projection", "visual_projection")),
        dropped="",
        newly_initialized=rf"visual\.({_NEW_MODULES})|text\.mask_embedding|caption_decoder\..*",
    ),
    ViCLIP: _Plan(renamed=(), dropped="logit_scale", newly_initialized=r"visual\.time_embedding|temperature"),
}


@dataclass(frozen=True)
class ClipImport:
    """Report of an import.

    Attributes:
        filled: our names that were loaded from CLIP.
        newly_initialized: our names that keep their random initialization.
        dropped: names (as in `clip.CLIPModel`) that were not used.
        resized: one line per resized position table.
    """

    filled: tuple[str, ...]
    newly_initialized: tuple[str, ...]
    dropped: tuple[str, ...]
    resized: tuple[str, ...]


def from_clip(model: nn.Module, state: Mapping[str, Tensor], where: object = "CLIP state dict") -> ClipImport:
    """Initialize a multimodal encoder, in place, with the weights of an image-text model.

    The image kernel is inflated to a video kernel that is zero except for the middle frame. Position embeddings of
    patches are resized for another image size (UniFormerV2's issue 12), those of text tokens are truncated.

    Args:
        model: `UniFormerV2`, `VideoLanguage` or `ViCLIP`.
        state: in the layout of OpenAI's CLIP, of transformers, or of `clip.CLIPModel`; any precision.
        where: file or source, for messages.

    Raises:
        WeightsError: unexpected or missing tensors, other shapes, values that are not finite. The model is then
            unchanged.
        ValueError: a model of another class.
    """
    plan = _PLANS.get(type(model))
    if plan is None:
        raise ValueError(f"{type(model).__name__} does not start from CLIP")
    target = model.state_dict()
    filled: dict[str, Tensor] = {}
    dropped = []
    for source, tensor in _to_our_names(model, state, where).items():
        name = _rename(plan.renamed, source)
        if re.fullmatch(plan.dropped, source) or (source.endswith("projection") and name not in target):
            dropped.append(source)
        elif name in target:
            filled[name] = _fit_shape(name, tensor, target[name])
        else:
            raise WeightsError(where, f"the model has no {source}", hint="the model is smaller or of another kind")
    newly_initialized = [name for name in target if name not in filled]
    missing = [name for name in newly_initialized if not re.fullmatch(plan.newly_initialized, name)]
    if missing:
        raise WeightsError(where, f"missing {', '.join(missing[:5])}", hint="the model is larger or of another kind")
    filled, resized = fit_positions(model, filled)
    load_state(model, {**target, **filled}, where)
    return ClipImport(tuple(filled), tuple(newly_initialized), tuple(dropped), resized)


def _to_our_names(model: nn.Module, state: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """Rename a state dict to the names of `clip.CLIPModel`. Raises WeightsError: an unknown tensor."""
    if "visual.stem.conv.weight" in state:
        return dict(state)
    public = published_clip(state) if "vision_model.embeddings.class_embedding" in state else state
    ours, unknown = convert_reference(model, public, CLIP)
    if unknown:
        raise WeightsError(where, f"unknown tensor {unknown[0]}", "the public CLIP layout")
    return ours


def _rename(rules: Iterable[tuple[str, str]], source: str) -> str:
    for pattern, template in rules:
        match = re.fullmatch(pattern, source)
        if match is not None:
            return match.expand(template)
    return source


def _fit_shape(name: str, tensor: Tensor, target: Tensor) -> Tensor:
    """Inflate the patch kernel and truncate text positions to the shape of `target`; return other tensors unchanged."""
    if name.endswith("stem.conv.weight"):
        return _inflate_kernel(tensor, target)
    if name == "text.positional_embedding" and tensor.dim() == 2 and len(tensor) > len(target):
        return tensor[: len(target)]
    return tensor


def _inflate_kernel(kernel: Tensor, target: Tensor) -> Tensor:
    """Inflate a kernel (D, 3, 1, p, p) to (D, 3, kt, p, p), zero except for the middle frame."""
    if kernel.dim() != 5 or kernel.shape[2] == target.shape[2]:
        return kernel
    inflated = kernel.new_zeros(*kernel.shape[:2], target.shape[2], *kernel.shape[3:])
    inflated[:, :, target.shape[2] // 2] = kernel[:, :, 0]
    return inflated
