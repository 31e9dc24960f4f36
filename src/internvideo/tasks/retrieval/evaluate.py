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

SELECTION_METRICS = ("t2v_r1", "v2t_r1")
"""`--frames` selects the number of frames with the best mean of these raw metrics, of ties the smallest."""


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(evaluation.EnsembleOptions):
    """Options of retrieval evaluation."""

    captions: Annotated[
        Literal["first", "all", "joined"] | None,
        "Queries of a video: its first caption, all captions, or all joined to one paragraph; by default joined if "
        "training joined them, else first.",
    ] = None
    querybank: Annotated[Path | None, "Manifest of training captions; adds metrics with query-bank normalization."] = (
        None
    )
    frames: Annotated[
        tuple[int, ...], "Numbers of frames to try, such as 4,5,6,7,8; selects the best on this split, and reports it."
    ] = ()
    agreement: Annotated[
        str | None, "Attributes such as shape,action: adds how often the top-1 video shares them with the right video."
    ] = None
    within: Annotated[
        str | None, "With --agreement: rank only videos that share these attributes with the right one: colour,place."
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within and not self.agreement:
            raise RecipeError("within", self.within, "together with agreement", "add --agreement ATTRIBUTES")
        if self.captions not in (None, "first", "all", "joined"):
            raise RecipeError("captions", str(self.captions), "first, all or joined")
        if any(num_frames < 1 for num_frames in self.frames):
            raise RecipeError("frames", ",".join(map(str, self.frames)), "numbers from 1 on")


def evaluate(trained: Trained, manifest: Path, output: Path, settings: RetrievalOptions, split: str | None) -> Result:
    """Write retrieval.npz and .json; print the metrics, and those for every number of frames of `settings.frames`.

    Raises RecipeError, ManifestError, RunError, WeightsError.
    """
    rows = evaluation.read_split(manifest, split)
    models = evaluation.ensemble_models(trained)
    extra_protocol = {"captions": _captions(trained, settings), **evaluation.ensemble_protocol(models)}
    models_by_frames = {
        num_frames: [_with_frames(model, num_frames) for model in models] for num_frames in settings.frames or (0,)
    }
    first_models = [members[0] for members in models_by_frames.values()]
    _check_any_output(output / f"{retrieval.NAME}.npz", first_models, rows, settings, extra_protocol)
    tables = {num_frames: predict(members, rows, settings) for num_frames, members in models_by_frames.items()}
    best_num_frames, metrics = next(iter(tables)), {}
    if len(tables) > 1:
        results = {num_frames: retrieval.score(table)["figures"] for num_frames, table in tables.items()}
        metrics = {
            num_frames: {name: values[name] for name in SELECTION_METRICS} for num_frames, values in results.items()
        }
        best_num_frames = max(metrics, key=lambda num_frames: (sum(metrics[num_frames].values()), -num_frames))
        _print_search(metrics, best_num_frames)
    table = tables[best_num_frames]
    if metrics:
        tried = {str(num_frames): values for num_frames, values in metrics.items()}
        chosen = "on this very split: best mean of raw t2v_r1 and v2t_r1, so the figures are biased upwards"
        table = replace(table, protocol={**table.protocol, "frames_tried": tried, "frames_chosen": chosen})
    inputs = evaluation.make_clip_inputs(models_by_frames[best_num_frames][0], rows, settings)
    return evaluation.run_evaluation(
        retrieval.NAME, retrieval.score, inputs, output, lambda: table, extra_protocol=extra_protocol
    )


def predict(models: Sequence[Trained], rows: Manifest, settings: RetrievalOptions) -> Predictions:
    """Predict with one model, or with several whose similarities are averaged."""
    texts, tables = _read_query_bank(rows, settings, models[0]), []
    for trained in models:
        inputs, tokenizer = evaluation.make_clip_inputs(trained, rows, settings), evaluation.text_tokenizer(trained)
        table = retrieval.predict(inputs, tokenizer, captions=_captions(models[0], settings))
        if texts:
            bank_protocol = {"texts": len(texts), "from": str(settings.querybank)}
            table = retrieval.add_query_bank(table, run_texts(inputs, tokenizer, texts), bank_protocol)
        tables.append(table)
    table = retrieval.ensemble(tables)
    if settings.agreement is None:
        return table
    agreement, within = (
        tuple((names or "").replace(",", " ").split()) for names in (settings.agreement, settings.within)
    )
    return retrieval.add_attributes(table, rows, agreement, within)


def _captions(trained: Trained, settings: RetrievalOptions) -> retrieval.CaptionUse:
    return settings.captions or ("joined" if getattr(trained.recipe.data, "captions", "") == "joined" else "first")


def _read_query_bank(rows: Manifest, settings: RetrievalOptions, trained: Trained) -> list[str]:
    """Read the query bank: one text per video of the split "train", or of all videos if there is no such split.

    Raises:
        RecipeError: no text, or a video of the evaluated split, whose texts would be queries and bank at once.
    """
    if settings.querybank is None:
        return []
    bank = read_manifest(settings.querybank).with_notes_logged()
    if any(row.split == "train" for row in bank.rows):
        bank = bank.subset(split="train")
    evaluated = {(os.path.realpath(rows.video_path(row)), row.span) for row in rows.rows}
    in_split = [row.id for row in bank.rows if (os.path.realpath(bank.video_path(row)), row.span) in evaluated]
    if in_split:
        values = f"{len(in_split)} of its videos are in the evaluated split, first '{in_split[0]}'"
        raise RecipeError("--querybank", values, "texts of other videos", "give the training manifest")
    join_captions = _captions(trained, settings) == "joined"
    texts = [" ".join(row.captions) if join_captions else row.captions[0] for row in bank.rows if row.captions]
    if not texts:
        raise RecipeError("--querybank", f"{settings.querybank} has no caption", "captions of other videos")
    return texts


def _with_frames(trained: Trained, num_frames: int) -> Trained:
    """Set the number of frames per clip in the recipe of a model; 0 keeps the recipe's."""
    if not num_frames:
        return trained
    recipe = trained.recipe
    data = recipe.data_as(SampledData)
    data = data.model_copy(update={"sampling": data.sampling.model_copy(update={"frames": num_frames})})
    return replace(trained, recipe=recipe.model_copy(update={"data": data}))


def _check_any_output(
    path: Path, models: Sequence[Trained], rows: Manifest, settings: RetrievalOptions, extra_protocol: Mapping[str, Any]
) -> None:
    """Raise the error of `check_output`, before the prediction, if no number of frames could overwrite `path`."""
    for number, trained in enumerate(models, 1):
        try:
            evaluation.check_output(path, evaluation.make_clip_inputs(trained, rows, settings), extra_protocol)
            return
        except RunError:
            if number == len(models):
                raise


def _print_search(metrics: Mapping[int, Mapping[str, float]], best: int) -> None:
    grid = RichTable(title="frames, each measured on this split", title_justify="left")
    for name in ("frames", *SELECTION_METRICS, ""):
        grid.add_column(name, justify="right")
    for num_frames, values in metrics.items():
        shown = [f"{100 * value:.2f} %" for value in values.values()]
        grid.add_row(str(num_frames), *shown, "selected on this split" if num_frames == best else "")
    distributed.on_rank_zero(lambda: Screen().print(grid))
