"""Text-video retrieval in both directions, raw and with dual soft-max side by side (spec 4, 8)."""

from __future__ import annotations

from collections import Counter
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from internvideo.data.manifest import Manifest
from internvideo.errors import RecipeError
from internvideo.metrics import bootstrap
from internvideo.metrics.classification import merge_rows, unit
from internvideo.metrics.retrieval import RECALLS, directions, rank_figures, tied_queries
from internvideo.tasks.protocol import ClipProtocol, ClipSource, TextEncoder, VideoTextModel, describe
from internvideo.tasks.table import BOOTSTRAP, Figures, Result, Table
from internvideo.tasks.views import evaluating, run_clips, run_texts, video_function

NAME = "retrieval"


def predict(
    model: nn.Module,
    tokenizer: TextEncoder,
    source: ClipSource,
    manifest: Manifest,
    clips: ClipProtocol,
    device: torch.device,
    *,
    model_name: str = "",
    captions: Literal["first", "all", "joined"] = "first",
) -> Table:
    """Encode every video and its captions.

    Args:
        model: a `VideoTextModel` on `device`. tokenizer: of its text tower.
        source: loader over `manifest`. manifest: rows with captions. clips: how videos become clips.
        device: where the model is.
        model_name: for the protocol.
        captions: the first of each video, all of them as separate queries, or all joined to one paragraph.

    Returns:
        ids (N,), captions (Q,), owner (Q,), text (Q, E), video (N, E) mean of the views' unit vectors, scale (), of the
        videos read; the captions of an unreadable video are left out with it.

    Raises:
        RecipeError: a row without caption.
        RunError: see `run_clips`.
    """
    empty = [row.id for row in manifest.rows if not row.captions]
    if empty:
        raise RecipeError(
            manifest.source,
            f"{len(empty)} of {len(manifest.rows)} rows have no caption, first '{empty[0]}'",
            "",
            "give every row a caption or choose a split that has them",
        )
    towers = cast("VideoTextModel", model)
    with evaluating(model, device, clips.precision):
        views = run_clips(video_function(towers), source, manifest, clips, device, NAME)
        texts, owner = _queries([manifest.rows[index].captions for index in views.read], captions)
        text = run_texts(towers, tokenizer, texts, device)
        scale = float(towers.scale)
    video = merge_rows(unit(views.values["video"]), views.sample, len(views.read))
    arrays = {
        "ids": np.asarray([manifest.rows[index].id for index in views.read]),
        "captions": np.asarray(texts),
        "owner": owner,
        "text": text,
        "video": video.astype(np.float32),
        "scale": np.asarray(scale),
    }
    protocol = {**describe(model, model_name, manifest, clips), "captions": captions, "merge": "mean of unit vectors"}
    return Table(NAME, arrays, protocol, views.coverage)


def _queries(captions: list[tuple[str, ...]], which: str) -> tuple[list[str], NDArray[np.int64]]:
    def chosen(own: tuple[str, ...]) -> tuple[str, ...]:
        return {"first": own[:1], "all": own, "joined": (" ".join(own),)}[which]

    pairs = [(text, index) for index, own in enumerate(captions) for text in chosen(own)]
    return [text for text, _ in pairs], np.asarray([index for _, index in pairs], dtype=np.int64)


def similarity(table: Table) -> NDArray[np.float64]:
    """(Q, N) scale x cosine, in double precision so that the dual soft-max does not underflow into ties."""
    text, video = unit(table["text"].astype(np.float64)), unit(table["video"].astype(np.float64))
    result: NDArray[np.float64] = float(table["scale"]) * text @ video.T
    return result


def score(table: Table) -> Result:
    """DIRECTION_FIGURE raw and DIRECTION_FIGURE_dual_softmax: r1, r5, r10, median_rank, mean_rank for t2v and v2t.

    Queries that tie are ranked last among their equals, so that a model which says the same of everything finds
    nothing; the protocol counts them, and the captions that more than one video has.
    """
    figures = Figures()
    matrix, owner = similarity(table), table["owner"]
    videos = matrix.shape[1]
    owners = None if len(owner) == videos and (owner == np.arange(videos)).all() else owner
    for suffix, dual in (("", "none"), ("_dual_softmax", "released")):
        forward, backward = directions(matrix, owners, dual=cast("Literal['none', 'released']", dual))
        for name, ranks, groups in (("t2v", forward, owner), ("v2t", backward, None)):
            _add(figures, name, suffix, ranks, groups)
    owned: Counter[str] = Counter()
    for text, _ in {(str(text), int(index)) for text, index in zip(table["captions"], owner, strict=True)}:
        owned[text] += 1
    return figures.result(
        table,
        dual_softmax="shown beside the raw figures",
        chance_r1=1 / videos,
        ties={"rule": "pessimistic", "queries": tied_queries(matrix, owner)},
        texts=len(owner),
        captions_of_several_videos=sum(count > 1 for count in owned.values()),
    )


def _add(
    figures: Figures, direction: str, suffix: str, ranks: NDArray[np.int64], groups: NDArray[np.int64] | None
) -> None:
    hits = np.stack([ranks < k for k in RECALLS] + [ranks + 1], axis=1)
    means = bootstrap.interval(bootstrap.mean(hits), len(ranks), groups=groups, **BOOTSTRAP)
    middle = bootstrap.interval(bootstrap.median(ranks + 1), len(ranks), groups=groups, **BOOTSTRAP)
    bounds = {f"r{k}": means[:, column] for column, k in enumerate(RECALLS)}
    bounds |= {"mean_rank": means[:, -1], "median_rank": middle}
    for name, value in rank_figures(ranks).items():
        figures.add(f"{direction}_{name}{suffix}", value, bounds[name])
