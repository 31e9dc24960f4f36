"""What a model starts from: the weights of an earlier stage, read strictly into the part they belong to.

Source: paper 3.2, 3.3; modeling_finetune.py (classifier from pretraining), uniformerv2_model.py, viclip.py (CLIP).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from internvideo.errors import RecipeError, WeightsError
from internvideo.models.cross_model import CrossModel
from internvideo.models.embeddings import NATIVE_CLIP
from internvideo.models.factory import configure
from internvideo.models.heads import FusedAnswer, VideoQuestionAnswering
from internvideo.models.positions import NATIVE_SLOTS
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.viclip import ViCLIP
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig
from internvideo.storage import class_names, read_metadata
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.grounding.model import Grounder
from internvideo.tasks.spatiotemporal.model import FRESH, ActionDetector, FrameTrunk, of_encoder
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.untrusted import parse_json
from internvideo.weights.clip_import import from_clip
from internvideo.weights.published_config import check_quick_gelu
from internvideo.weights.state import load_part, load_pretrained, read_safetensors, select_head_rows

FROM_CLIP = (UniFormerV2, VideoLanguage, ViCLIP)
"""What can start from an image-text model."""


def class_layer(model: nn.Module) -> tuple[str, int]:
    """The layer with one output a class, and how many outputs of no class follow those; "" where there is none."""
    if isinstance(model, VideoMAEClassifier):
        return "head", 0
    if isinstance(model, UniFormerV2):
        return "proj.linear", 0
    if isinstance(model, ActionDetector):
        return "head.projection", 0
    if isinstance(model, Anticipator):
        return "head.projection", 1  # the background
    if isinstance(model, VideoQuestionAnswering):
        return f"head.{len(model.head) - 1}", 0
    if isinstance(model, ActionFormer):
        return "cls_head.cls_head.conv", 0
    return ("word", 0) if isinstance(model, Grounder) else ("", 0)  # words are learned like classes


class HeadRule(Protocol):
    """Asked where a file brings a head: which of its rows the model starts with."""

    def __call__(self, known: tuple[str, ...], path: Path) -> Sequence[int] | None:
        """Rows of the head of `path`, whose classes are `known`, numbers where it tells none; None for a fresh head."""


def initialise(model: nn.Module, sources: Mapping[str, Path], head: HeadRule | None = None) -> tuple[str, ...]:
    """Fill `model` from files; positions that were learned for another clip size are resized to the model's.

    Args:
        model: any model of the table.
        sources: {"weights": FILE} that `internvideo train` wrote; for a `CrossModel` {"masked": FILE,
            "multimodal": FILE}; for the encoders that start from an image-text model also {"clip": FILE}, in the public
            CLIP layout (converted by `internvideo convert`) or ours. Empty leaves the model as it was drawn, except a
            `CrossModel`, whose encoders never learn.
        head: of a file with a classification head; without it the whole head is taken.

    Returns:
        which positions were resized, one line each.

    Raises:
        WeightsError: a wrong name, an absent file, or tensors that do not fit. A model of one source is then unchanged.
    """
    if not sources and not isinstance(model, CrossModel):
        return ()
    allowed = [{"masked", "multimodal"}] if isinstance(model, CrossModel) else [{"weights"}]
    if isinstance(model, FROM_CLIP):
        allowed.append({"clip"})
    if set(sources) not in allowed:
        names = " or ".join(" and ".join(f"{name}: FILE" for name in sorted(choice)) for choice in allowed)
        raise WeightsError("init", f"holds {', '.join(sources) or 'nothing'}", names, "change `init` in the recipe")
    if isinstance(model, CrossModel):
        masked = _fill(model.masked, sources["masked"], head)
        return masked + _fill(model.multimodal, sources["multimodal"], head)
    if "clip" in sources:
        check_quick_gelu(Path(sources["clip"]))
        return from_clip(model, read_safetensors(sources["clip"])[0], where=sources["clip"]).resized
    return _fill(model, sources["weights"], head)


def native_clip(path: Path, tubelet: int) -> tuple[int, int]:
    """Pixels and frames of the clip that the fixed positions of a masked encoder's weights were built for.

    Files of published weights do not tell: InternVideo pretrains on 224 px and 16 frames, UMT, whose tubelets are of
    one frame, on 8.

    Raises:
        WeightsError: an absent file, or one whose settings cannot be read.
    """
    metadata = read_metadata(path)
    try:
        if "recipe" in metadata:  # of a run
            told = parse_json(metadata["recipe"])["model"]
            config = configure(told["name"], told["overrides"])
        elif "internvideo" in metadata:  # of save_pretrained
            told = parse_json(metadata["internvideo"])
            config = configure(told["model"], told["overrides"])
        else:
            config = None
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        raise WeightsError(path, f"settings that cannot be read: {error}") from error
    found = next((one for one in masked_parts(config).values()), None)
    if found is None:
        return (NATIVE_CLIP[0], NATIVE_SLOTS) if tubelet == 1 else NATIVE_CLIP
    return found.native_clip if found.position_table == "resized" else (found.image_size, found.frames)


def masked_parts(config: object) -> dict[str, VideoMAEConfig]:
    """Where a model's config has a masked encoder; "" is the config itself."""
    if isinstance(config, VideoMAEConfig):
        return {"": config}
    return {name: value for name, value in getattr(config, "__dict__", {}).items() if isinstance(value, VideoMAEConfig)}


def _fill(model: nn.Module, path: Path, head: HeadRule | None) -> tuple[str, ...]:
    state, metadata = read_safetensors(path)
    if isinstance(model, FrameTrunk) and "head.projection.weight" not in state:
        return load_part(model, of_encoder(state), fresh=FRESH, where=path)
    if isinstance(model, VideoMAEClassifier) and any(name.startswith("encoder.") for name in state):
        return load_pretrained(model, state, where=path)
    if isinstance(model, UniFormerV2) and any(name.startswith("visual.") for name in state):
        return load_part(model, _below(state, "visual."), fresh=r"proj\.", where=path)
    if isinstance(model, FusedAnswer) and not any(name.startswith("head.") for name in state):
        return load_part(model, of_language(state), fresh=r"head\.", where=path)
    if isinstance(model, VideoLanguage):
        return _fill_language(model, state, path)
    return _fill_classifier(model, state, metadata, path, head)


def _fill_classifier(
    model: nn.Module, state: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, rule: HeadRule | None
) -> tuple[str, ...]:
    """All of a model, with the rows of its head that `rule` chooses."""
    name, others = class_layer(model)
    weight = state.get(f"{name}.weight")
    fresh = None
    if rule is not None and name and weight is not None:
        count = len(weight) - others
        known = class_names(metadata, path) or tuple(map(str, range(count)))
        rows = rule(known, path)
        if rows is None:
            fresh = re.escape(name) + r"\."
        elif list(rows) != list(range(count)):
            state = select_head_rows(state, (*rows, *range(count, count + others)), name)
    return load_part(model, state, fresh=fresh, where=path)


def _fill_language(model: VideoLanguage, state: Mapping[str, Tensor], path: Path) -> tuple[str, ...]:
    """Towers and caption decoder; a decoder that only one of both has stays as drawn, or is left behind."""
    decoder = any(name.startswith("caption_decoder.") for name in state)
    if decoder and model.caption_decoder is None:
        state = {name: value for name, value in state.items() if not name.startswith("caption_decoder.")}
    return load_part(model, state, fresh=None if decoder else r"caption_decoder\.", where=path)


LEFT_BEHIND = re.compile(r"visual_projection|text\.projection|caption_decoder\.predictor\..*")
"""What an answering network has no use for: the ways into the joint space, and the words of captions."""


def of_language(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an answering network takes over from a video-language model, under its own names: all but `LEFT_BEHIND`."""
    return {f"model.{name}": value for name, value in state.items() if not LEFT_BEHIND.fullmatch(name)}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
