"""Order the best moments anew by how probable the caption decoder finds the text, given the clip of the moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from internvideo.data.preprocessing import Span
from internvideo.errors import RecipeError, VideoError
from internvideo.features.remote_files import local_copy
from internvideo.inference.video_model import VideoModel
from internvideo.objectives.captioning import after_end
from internvideo.search.finding import Moment
from internvideo.terminal import LOGGER

MAX_RERANKED = 100


def check_rerank(count: int, text: str, model: VideoModel) -> None:
    """Raise RecipeError for a number out of range, a query without a text, or a model without a caption decoder."""
    if not 0 <= count <= MAX_RERANKED:
        raise RecipeError("rerank", str(count), f"0 to {MAX_RERANKED}")
    if count and not text.strip():
        raise RecipeError("rerank", "a query without a text", "a text, which the caption decoder reads")
    if count and "caption" not in model.capabilities:
        raise RecipeError("rerank", f"{model.name} has no caption decoder", "a model that writes captions")


def rerank(model: VideoModel, text: str, moments: Sequence[Moment], count: int) -> tuple[Moment, ...]:
    """Return the moments with the first `count` of them ordered by the likelihood of the text, the others behind them.

    Each is decoded again; one whose file cannot be read any more is told and comes last of them.
    """
    made = []
    for moment in moments[:count]:
        likelihood = None
        try:
            with local_copy(moment.path) as path:
                (clips,) = model.read(Span(path, moment.start, moment.end))
            likelihood = float(caption_likelihood(model, clips, text)[0])
        except VideoError as error:
            LOGGER.warning("%s", error)
        made.append(replace(moment, likelihood=likelihood))
    made.sort(key=lambda moment: -math.inf if moment.likelihood is None else moment.likelihood, reverse=True)
    return (*made, *moments[count:])


@torch.no_grad()
def caption_likelihood(model: VideoModel, clips: Tensor, text: str) -> Tensor:
    """Score a text as the caption of clips (B, 3, T, S, S): the mean log probability of its tokens, (B,) on the CPU.

    Raises:
        RecipeError: the model has no caption decoder.
    """
    generator = model.caption_generator()
    language = generator.model
    tokens = generator.tokenizer.encode([text]).to(model.device).expand(len(clips), -1)
    logits = language.caption_logits(language.prepare(clips.to(model.device)), tokens).float()
    targets = tokens[:, 1:].masked_fill(after_end(tokens)[:, 1:], -100)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
    return -(losses.sum(dim=1) / (targets != -100).sum(dim=1)).cpu()
