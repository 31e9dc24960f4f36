"""Open-set recognition: which rows are known, what the model learned from, the pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from internvideo.data.manifest import Manifest, classes_beside, read_manifest
from internvideo.data.sample import Sample
from internvideo.datasets.class_names import only_count
from internvideo.errors import RecipeError
from internvideo.extras import require
from internvideo.plots.style import write_picture
from internvideo.tasks.class_rows import under_classes
from internvideo.tasks.clip_evaluation import clip_source, finish, split_rows
from internvideo.tasks.open_set import metrics as metrics_of_open_set
from internvideo.tasks.open_set import predict as open_set
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class OpenSetOptions(ClipOptions):
    """Options of the evaluation."""

    unknown_manifest: Annotated[Path | None, "Manifest of unknown classes, beside the rows that say so themselves."] = (
        None
    )
    train_manifest: Annotated[Path | None, "What the model learned from, where it is not where its recipe says."] = None


def evaluate(trained: Trained, manifest: Path, output: Path, settings: OpenSetOptions, split: str | None) -> Result:
    """Write open_set.npz and .json, uncertainty.svg, risk_coverage.svg; print the figures.

    Raises:
        RecipeError, ManifestError, RunError: what does not fit together.
    """
    require("fit", "evaluate open_set")
    rows = open_rows(split_rows(manifest, split), trained.classes, settings.unknown_manifest)

    inputs = clip_source(trained, rows, settings)

    def make() -> Predictions:
        train = clip_source(trained, training_rows(trained, settings.train_manifest), settings)
        learned = trained.recipe.settings
        evidence, stride = getattr(learned, "evidence", None), getattr(learned, "temporal_stride", 1)
        return open_set.predict(train, inputs, evidence=evidence, temporal_stride=stride)

    return finish(open_set.NAME, open_set.score, inputs, output, make, draw)


def open_rows(manifest: Manifest, classes: tuple[str, ...], unknown: Path | None) -> Manifest:
    """Known rows under a model's `classes`, and unknown ones: those that say so, those whose class is none of
    `classes`, and all of the manifest `unknown`.

    Raises:
        ManifestError: no known or no unknown row, or a known one without label.
    """
    own = manifest.classes
    named = classes_beside(manifest.source) if manifest.source.is_file() else own
    numbers = named is None and only_count(own)

    def strange(row: Sample) -> bool:
        other = not numbers and row.label is not None and own[row.label] not in classes
        return other or open_set.is_unknown(row)

    known = replace(manifest, rows=tuple(row for row in manifest.rows if not strange(row)))
    away = replace(manifest, rows=tuple(row for row in manifest.rows if strange(row)))
    added = open_set.strangers(away, manifest.root)
    if unknown is not None:
        added += open_set.strangers(read_manifest(unknown).with_notes_logged(), manifest.root)
    return open_set.join(under_classes(known, classes), added)


def training_rows(trained: Trained, given: Path | None) -> Manifest:
    """The labeled rows that a model learned from, under its classes. Raises RecipeError when they are not there."""
    data = (trained.run or trained.recipe).data
    path = given or data.train
    if path is None or not path.exists():
        raise RecipeError(
            "--train-manifest",
            f"{path} is not there",
            "the manifest that the model learned from",
            "give --train-manifest MANIFEST",
        )
    rows = read_manifest(path)
    return under_classes(rows if data.split is None else rows.subset(split=data.split), trained.classes)


def draw(table: Predictions, output: Path) -> None:
    """Write uncertainty.svg and risk_coverage.svg."""
    from internvideo.plots.charts import risk_coverage, uncertainty_histograms  # matplotlib is slow to import

    unknown = table["labels"] < 0
    parts, curves = {}, {}
    for name in open_set.methods(table):
        doubt = table[f"uncertainty:{name}"]
        parts[name] = (doubt[~unknown], doubt[unknown], open_set.threshold(table, name))
        curves[name] = metrics_of_open_set.risk_coverage(doubt, table[f"predicted:{name}"] == table["labels"])
    write_picture(output / "uncertainty.svg", lambda: uncertainty_histograms(parts))
    write_picture(output / "risk_coverage.svg", lambda: risk_coverage(curves))
