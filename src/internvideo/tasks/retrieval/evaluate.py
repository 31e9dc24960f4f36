"""Evaluate text-video retrieval: ensembles, search for the number of frames, query-bank normalization.

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
from internvideo.tasks import clip_evaluation as evaluation
from internvideo.tasks.retrieval import predict as retrieval
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.views import run_texts
from internvideo.terminal import Screen
from internvideo.training.trained import Trained

CHOSEN_BY = ("t2v_r1", "v2t_r1")
"""The search keeps the number of frames with the best mean of these raw metrics, the smaller one of ties."""


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(evaluation.EnsembleOptions):
    """Options of retrieval evaluation."""

    captions: Annotated[
        Literal["first", "all", "joined"] | None,
        "first, all (many captions per video) or joined (paragraphs); by default as in training, joined or first.",
    ] = None
    querybank: Annotated[Path | None, "Manifest of training captions; adds metrics with query-bank normalization."] = (
        None
    )
    frames: Annotated[
        tuple[int, ...], "Numbers of frames to try, such as 4,5,6,7,8; the best on this split is kept, and reported so."
    ] = ()

    agreement: Annotated[
        str | None, "Attributes such as shape,action: how often the top-1 video has the values of the query's video."
    ] = None
    within: Annotated[
        str | None, "With --agreement: rank only videos with the same values of these, such as colour,place."
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within and not self.agreement:
            raise RecipeError("within", self.within, "together with agreement", "add --agreement ATTRIBUTES")
        if self.captions not in (None, "first", "all", "joined"):
            raise RecipeError("captions", str(self.captions), "first, all or joined")
        if any(count < 1 for count in self.frames):
            raise RecipeError("frames", ",".join(map(str, self.frames)), "numbers from 1 on")


def evaluate(trained: Trained, manifest: Path, output: Path, settings: RetrievalOptions, split: str | None) -> Result:
    """Write retrieval.npz and .json; print the metrics, and those of every number of frames that was tried.

    Raises RecipeError, ManifestError, RunError, WeightsError.
    """
    rows = evaluation.split_rows(manifest, split)
    models = evaluation.with_others(trained)
    extra_protocol = {"captions": _captions(trained, settings), **evaluation.ensemble_protocol(models)}
    models_by_frames = {count: [_with_frames(model, count) for model in models] for count in settings.frames or (0,)}
    first_models = [members[0] for members in models_by_frames.values()]
    _check_some(output / f"{retrieval.NAME}.npz", first_models, rows, settings, extra_protocol)
    tables = {count: predict(members, rows, settings) for count, members in models_by_frames.items()}
    best_count, metrics = next(iter(tables)), {}
    if len(tables) > 1:
        results = {count: retrieval.score(table)["figures"] for count, table in tables.items()}
        metrics = {count: {name: found[name] for name in CHOSEN_BY} for count, found in results.items()}
        best_count = max(metrics, key=lambda count: (sum(metrics[count].values()), -count))
        _print_search(metrics, best_count)
    table = tables[best_count]
    if metrics:
        about = {str(count): found for count, found in metrics.items()}
        chosen = "on this very split: best mean of raw t2v_r1 and v2t_r1, so the figures are a little flattered"
        table = replace(table, protocol={**table.protocol, "frames_tried": about, "frames_chosen": chosen})
    inputs = evaluation.clip_source(models_by_frames[best_count][0], rows, settings)
    return evaluation.finish(
        retrieval.NAME, retrieval.score, inputs, output, lambda: table, extra_protocol=extra_protocol
    )


def predict(models: Sequence[Trained], rows: Manifest, settings: RetrievalOptions) -> Predictions:
    """Predict with one model, or with several whose similarities are averaged."""
    texts, tables = _bank(rows, settings, models[0]), []
    for trained in models:
        inputs, tokenizer = evaluation.clip_source(trained, rows, settings), evaluation.text_tokenizer(trained)
        table = retrieval.predict(inputs, tokenizer, captions=_captions(models[0], settings))
        if texts:
            about = {"texts": len(texts), "from": str(settings.querybank)}
            table = retrieval.with_bank(table, run_texts(inputs, tokenizer, texts), about)
        tables.append(table)
    joined = retrieval.ensemble(tables)
    if settings.agreement is None:
        return joined
    options = (settings.agreement, settings.within)
    attributes, shared = (tuple((names or "").replace(",", " ").split()) for names in options)
    return retrieval.with_attributes(joined, rows, attributes, shared)


def _captions(trained: Trained, settings: RetrievalOptions) -> retrieval.Captions:
    return settings.captions or ("joined" if getattr(trained.recipe.data, "captions", "") == "joined" else "first")


def _bank(rows: Manifest, settings: RetrievalOptions, trained: Trained) -> list[str]:
    """Read the query bank: one text per video of split "train", or of all videos without that split.

    Raises:
        RecipeError: no text, or a video of the evaluated split, whose texts are the queries themselves.
    """
    if settings.querybank is None:
        return []
    bank = read_manifest(settings.querybank).with_notes_logged()
    if any(row.split == "train" for row in bank.rows):
        bank = bank.subset(split="train")
    evaluated = {(os.path.realpath(rows.video_path(row)), row.span) for row in rows.rows}
    in_split = [row.id for row in bank.rows if (os.path.realpath(bank.video_path(row)), row.span) in evaluated]
    if in_split:
        found = f"{len(in_split)} of its videos are in the evaluated split, first '{in_split[0]}'"
        raise RecipeError("--querybank", found, "texts of other videos", "give the training manifest")
    joined = _captions(trained, settings) == "joined"
    texts = [" ".join(row.captions) if joined else row.captions[0] for row in bank.rows if row.captions]
    if not texts:
        raise RecipeError("--querybank", f"{settings.querybank} has no caption", "captions of other videos")
    return texts


def _with_frames(trained: Trained, count: int) -> Trained:
    """Return the model with `count` frames per clip in its recipe; 0 keeps the recipe's."""
    if not count:
        return trained
    recipe = trained.recipe
    data = recipe.data_as(SampledData)
    data = data.model_copy(update={"sampling": data.sampling.model_copy(update={"frames": count})})
    return replace(trained, recipe=recipe.model_copy(update={"data": data}))


def _check_some(
    path: Path, models: Sequence[Trained], rows: Manifest, settings: RetrievalOptions, extra_protocol: Mapping[str, Any]
) -> None:
    """Raise the error of `check_output` before the prediction if no number of frames could be saved."""
    for number, trained in enumerate(models, 1):
        try:
            evaluation.check_output(path, evaluation.clip_source(trained, rows, settings), extra_protocol)
            return
        except RunError:
            if number == len(models):
                raise


def _print_search(metrics: Mapping[int, Mapping[str, float]], best: int) -> None:
    grid = RichTable(title="frames, each measured on this split", title_justify="left")
    for name in ("frames", *CHOSEN_BY, ""):
        grid.add_column(name, justify="right")
    for count, values in metrics.items():
        shown = [f"{100 * value:.2f} %" for value in values.values()]
        grid.add_row(str(count), *shown, "kept, chosen on this split" if count == best else "")
    distributed.on_rank_zero(lambda: Screen().print(grid))
