"""Evaluate open-set recognition: known and unknown rows, the training rows, metrics and plots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from internvideo.data.manifest import Manifest, classes_beside, read_manifest
from internvideo.data.sample import Sample
from internvideo.datasets.class_names import are_indices
from internvideo.errors import RecipeError
from internvideo.extras import require
from internvideo.plots.style import write_plot
from internvideo.tasks.class_rows import map_labels_to_classes
from internvideo.tasks.clip_evaluation import make_clip_inputs, read_split, run_evaluation
from internvideo.tasks.open_set import metrics as metrics_of_open_set
from internvideo.tasks.open_set import predict as open_set
from internvideo.tasks.table import Predictions, Result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained


@dataclass(frozen=True, kw_only=True)
class OpenSetOptions(ClipOptions):
    """Options of open-set evaluation."""

    unknown_manifest: Annotated[Path | None, "Manifest of further videos of unknown classes."] = None
    train_manifest: Annotated[Path | None, "The training manifest; by default the one of the training recipe."] = None


def evaluate(trained: Trained, manifest: Path, output: Path, settings: OpenSetOptions, split: str | None) -> Result:
    """Write open_set.npz and .json, uncertainty.svg, risk_coverage.svg; print the metrics.

    Raises RecipeError, ManifestError, RunError.
    """
    require("fit", "evaluate open_set")
    rows = read_open_rows(read_split(manifest, split), trained.classes, settings.unknown_manifest)

    inputs = make_clip_inputs(trained, rows, settings)

    def predict_table() -> Predictions:
        train = make_clip_inputs(trained, read_training_rows(trained, settings.train_manifest), settings)
        stage_settings = trained.recipe.settings
        evidence, stride = getattr(stage_settings, "evidence", None), getattr(stage_settings, "temporal_stride", 1)
        return open_set.predict(train, inputs, evidence=evidence, temporal_stride=stride)

    return run_evaluation(open_set.NAME, open_set.score, inputs, output, predict_table, write_plots)


def read_open_rows(manifest: Manifest, classes: tuple[str, ...], unknown: Path | None) -> Manifest:
    """Join the known rows, with labels as indices into `classes`, and the unknown rows.

    Unknown are rows with the mark of an unknown class, rows whose class is not in `classes`, and all rows of the
    manifest `unknown`.

    Raises:
        ManifestError: no known or no unknown row, or a known row without label.
    """
    names = manifest.classes
    names_file = classes_beside(manifest.source) if manifest.source.is_file() else names
    labels_are_indices = names_file is None and are_indices(names)

    def is_unknown(row: Sample) -> bool:
        unknown_class = not labels_are_indices and row.label is not None and names[row.label] not in classes
        return unknown_class or open_set.is_unknown(row)

    known, unknown_rows = (
        replace(manifest, rows=tuple(row for row in manifest.rows if is_unknown(row) == unknown_wanted))
        for unknown_wanted in (False, True)
    )
    all_unknown = open_set.as_unknown(unknown_rows, manifest.root)
    if unknown is not None:
        all_unknown += open_set.as_unknown(read_manifest(unknown).with_notes_logged(), manifest.root)
    return open_set.join(map_labels_to_classes(known, classes), all_unknown)


def read_training_rows(trained: Trained, train_manifest: Path | None) -> Manifest:
    """Read the model's training rows, with labels as indices into its classes.

    Raises:
        RecipeError: the training manifest does not exist.
    """
    data = (trained.run or trained.recipe).data
    path = train_manifest or data.train
    if path is None or not path.exists():
        hint = "give --train-manifest MANIFEST"
        raise RecipeError("--train-manifest", f"no such file: {path}", "the training manifest of the model", hint)
    rows = read_manifest(path)
    return map_labels_to_classes(rows if data.split is None else rows.subset(split=data.split), trained.classes)


def write_plots(table: Predictions, output: Path) -> None:
    """Write uncertainty.svg and risk_coverage.svg."""
    from internvideo.plots.charts import risk_coverage, uncertainty_histograms  # matplotlib is slow to import

    unknown = table["labels"] < 0
    histograms, curves = {}, {}
    for name in open_set.methods(table):
        uncertainty = table[f"uncertainty:{name}"]
        histograms[name] = (uncertainty[~unknown], uncertainty[unknown], open_set.threshold(table, name))
        curves[name] = metrics_of_open_set.risk_coverage(uncertainty, table[f"predicted:{name}"] == table["labels"])
    write_plot(output / "uncertainty.svg", lambda: uncertainty_histograms(histograms))
    write_plot(output / "risk_coverage.svg", lambda: risk_coverage(curves))
