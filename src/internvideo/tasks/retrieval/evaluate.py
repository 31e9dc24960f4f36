"""Text-video retrieval: one model or several, at one number of frames or the best of some, with a bank of texts or not.

Source: Video-Text-Retrieval.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.table import Table as RichTable

from internvideo import distributed
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.settings import SampledData
from internvideo.errors import RecipeError, RunError
from internvideo.tasks.clip_evaluation import (
    EnsembleOptions,
    check_output,
    clip_source,
    finish,
    members_told,
    split_rows,
    text_tokenizer,
    with_others,
)
from internvideo.tasks.retrieval import predict as retrieval
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.views import run_texts
from internvideo.terminal import Screen
from internvideo.training.trained import Trained

CHOSEN_BY = ("t2v_r1", "v2t_r1")
"""The frame search keeps the number of frames with the best mean of these raw figures, the smaller one of equals."""


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(EnsembleOptions):
    """Options of the evaluation."""

    captions: Annotated[
        Literal["first", "all", "joined"] | None,
        "first, all (many captions per video) or joined (paragraphs); by default joined where the recipe learns that.",
    ] = None
    querybank: Annotated[
        Path | None, "Manifest of training captions, to report query-bank normalized figures beside the others."
    ] = None
    frames: Annotated[
        tuple[int, ...], "Numbers of frames to try, such as 4,5,6,7,8; the best is kept and reported as chosen."
    ] = ()

    agreement: Annotated[
        str | None, "Attributes of the rows, such as shape,action: how often the first video found has the query's own."
    ] = None
    within: Annotated[
        str | None, "With --agreement: only among videos that share these attributes, such as colour,place."
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within and not self.agreement:
            raise RecipeError("within", self.within, "with agreement: the attributes that are asked for")
        if self.captions not in (None, "first", "all", "joined"):
            raise RecipeError("captions", str(self.captions), "first, all or joined")
        if any(count < 1 for count in self.frames):
            raise RecipeError("frames", ",".join(map(str, self.frames)), "numbers from 1 on")


def evaluate(trained: Trained, manifest: Path, output: Path, settings: RetrievalOptions, split: str | None) -> Result:
    """Write retrieval.npz and .json; print the figures, and those of every number of frames that was tried.

    Raises:
        RecipeError, ManifestError, RunError, WeightsError: what does not fit together.
    """
    rows = split_rows(manifest, split)
    models = with_others(trained)
    told = {"captions": _captions(trained, settings), **members_told(models)}
    tried = {count: [_with_frames(model, count) for model in models] for count in settings.frames or (0,)}
    _check_some(output / f"{retrieval.NAME}.npz", [members[0] for members in tried.values()], rows, settings, told)
    tables = {count: predict(members, rows, settings) for count, members in tried.items()}
    best, figures = next(iter(tables)), {}
    if len(tables) > 1:
        figures = {count: _figures(retrieval.score(table)) for count, table in tables.items()}
        best = max(figures, key=lambda count: (sum(figures[count].values()), -count))
        _print_search(figures, best)
    table = tables[best]
    if figures:
        about = {str(count): found for count, found in figures.items()}
        chosen = "on this very split: best mean of raw t2v_r1 and v2t_r1, so the figures are a little flattered"
        table = replace(table, protocol={**table.protocol, "frames_tried": about, "frames_chosen": chosen})
    inputs = clip_source(tried[best][0], rows, settings)
    return finish(retrieval.NAME, retrieval.score, inputs, output, lambda: table, told=told)


def predict(models: Sequence[Trained], rows: Manifest, settings: RetrievalOptions) -> Predictions:
    """The table of one model, or of several whose similarities are averaged."""
    texts, tables = _bank(rows, settings, models[0]), []
    for trained in models:
        inputs, tokenizer = clip_source(trained, rows, settings), text_tokenizer(trained)
        table = retrieval.predict(inputs, tokenizer, captions=_captions(models[0], settings))
        if texts:
            about = {"texts": len(texts), "from": str(settings.querybank)}
            table = retrieval.with_bank(table, run_texts(inputs, tokenizer, texts), about)
        tables.append(table)
    joined = retrieval.ensemble(tables)
    if settings.agreement is None:
        return joined
    asked, shared = (tuple((names or "").replace(",", " ").split()) for names in (settings.agreement, settings.within))
    return retrieval.with_attributes(joined, rows, asked, shared)


def _captions(trained: Trained, settings: RetrievalOptions) -> retrieval.Captions:
    return settings.captions or ("joined" if getattr(trained.recipe.data, "captions", "") == "joined" else "first")


def _bank(rows: Manifest, settings: RetrievalOptions, trained: Trained) -> list[str]:
    """One text of each video of the bank: rows of split "train", or all where there are no splits.

    Raises:
        RecipeError: no text, or a video that is also searched for, whose texts would be the queries themselves.
    """
    if settings.querybank is None:
        return []
    bank = read_manifest(settings.querybank).with_notes_logged()
    if any(row.split == "train" for row in bank.rows):
        bank = bank.subset(split="train")
    searched = {(os.path.realpath(rows.video_path(row)), row.span) for row in rows.rows}
    both = [row.id for row in bank.rows if (os.path.realpath(bank.video_path(row)), row.span) in searched]
    if both:
        found = f"{len(both)} of its videos are searched for too, first '{both[0]}'"
        raise RecipeError("--querybank", found, "texts of other videos", "give the manifest that was trained on")
    joined = _captions(trained, settings) == "joined"
    texts = [" ".join(row.captions) if joined else row.captions[0] for row in bank.rows if row.captions]
    if not texts:
        raise RecipeError("--querybank", f"{settings.querybank} has no caption", "captions of other videos")
    return texts


def _with_frames(trained: Trained, count: int) -> Trained:
    """The model with clips of so many frames; 0 leaves the recipe's."""
    if not count:
        return trained
    recipe = trained.recipe
    data = recipe.data_as(SampledData)
    data = data.model_copy(update={"sampling": data.sampling.model_copy(update={"frames": count})})
    return replace(trained, recipe=recipe.model_copy(update={"data": data}))


def _check_some(
    path: Path, models: Sequence[Trained], rows: Manifest, settings: RetrievalOptions, told: Mapping[str, Any]
) -> None:
    """Refuse before hours of work what `finish` would refuse after them, whichever number of frames is the best."""
    last: RunError | None = None
    for trained in models:
        try:
            check_output(path, clip_source(trained, rows, settings), told)
        except RunError as error:
            last = error
        else:
            return
    if last is not None:
        raise last


def _figures(result: Result) -> dict[str, float]:
    return {name: result["figures"][name] for name in CHOSEN_BY}


def _print_search(figures: Mapping[int, Mapping[str, float]], best: int) -> None:
    if distributed.rank() != 0:
        return
    grid = RichTable(title="frames, each measured on this split", title_justify="left")
    for name in ("frames", *CHOSEN_BY, ""):
        grid.add_column(name, justify="right")
    for count, found in figures.items():
        shown = [f"{100 * value:.2f} %" for value in found.values()]
        grid.add_row(str(count), *shown, "kept, chosen on this split" if count == best else "")
    Screen().print(grid)
