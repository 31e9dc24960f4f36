"""Evaluate query grounding: predictions, metrics, submission file, timelines of the first queries."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from internvideo import distributed
from internvideo.data.vocabulary import Vocabulary
from internvideo.distributed import choose_device
from internvideo.plots import charts
from internvideo.plots.style import write_plot
from internvideo.storage import write_text
from internvideo.tasks.grounding import predict as grounding
from internvideo.tasks.grounding.build import QueryData
from internvideo.tasks.grounding.data import read_query_set
from internvideo.tasks.grounding.model import Grounder
from internvideo.tasks.grounding.stage import GroundingSettings
from internvideo.tasks.table import Predictions, Result, check_overwrite, print_result, save_result
from internvideo.tasks.task import EvaluateOptions
from internvideo.tasks.temporal_localization.evaluate import NUM_TIMELINES, check_protocol, timelines_html
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class GroundingOptions(EvaluateOptions):
    """Options of grounding evaluation."""

    features: Annotated[Path | None, "Folder of the features of the videos; by default the recipe's."] = None


def evaluate(trained: Trained, manifest: Path, output: Path, settings: GroundingOptions, split: str | None) -> Result:
    """Write grounding.npz and .json, nlq.json (Ego4D's format) and timelines.html; print the metrics.

    `manifest` has the queries. Raises ManifestError, RunError, RecipeError.
    """
    distributed.require_one_process("grounding")
    recipe = trained.recipe
    grounding_settings = recipe.settings_as(GroundingSettings)
    data = recipe.data_as(QueryData)
    query_settings = data.queries.model_copy(update={"features": settings.features or data.queries.features})
    queries = read_query_set(manifest, query_settings, data.features, split=split)
    check_protocol(trained.extra_metadata["features"], queries.features)
    target = output / f"{grounding.NAME}.npz"
    table = grounding.predict(
        cast(Grounder, trained.model),
        queries,
        Vocabulary(trained.classes),
        data.features,
        choose_device(settings.device),
        max_spans=grounding_settings.spans,
        nms_threshold=grounding_settings.nms_threshold,
        prior=trained.extra_metadata,
        model_name=recipe.model.name,
    )
    check_overwrite(target, table.protocol)
    table.save(target)
    # Before the metrics, which raise an error for a test set without answers.
    write_text(output / "nlq.json", json.dumps(grounding.submission(table)) + "\n")
    write_plot(output / "timelines.html", lambda: timelines_html(timelines(table)))
    result = grounding.score(table)
    save_result(result, target.with_suffix(".json"))
    print_result(result)
    return result


def timelines(table: Predictions) -> list[str]:
    """Draw the first queries with predicted spans and answers, one <svg> each."""
    query_spans, svgs = grounding.spans_of(table), []
    for index, text in enumerate(table["text"].tolist()[:NUM_TIMELINES]):
        scored = zip(query_spans[index].tolist(), table["score"][table["query"] == index].tolist(), strict=True)
        spans = [(*span, "span", value) for span, value in scored]
        start, end = table["truth"][index].tolist()
        answers = [] if math.isnan(start) else [(start, end, "answer")]
        name = f"{table['video'][index]}: {text}"
        svgs.append(charts.timeline(float(table["duration"][index]), spans, answers, name))
    return svgs
