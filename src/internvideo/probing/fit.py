"""Fit a probe to labeled videos with a frozen encoder, evaluate it by cross-validation and save it."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from internvideo.data.manifest import Manifest, read_manifest
from internvideo.errors import ManifestError, RecipeError
from internvideo.extras import require
from internvideo.inference.video_model import VideoModel
from internvideo.probing.cached_features import Features, Kind, cache_key, read_features
from internvideo.probing.fit_learn import (
    FitConfig,
    FittedProbe,
    LabeledFeatures,
    OutOfFoldPredictions,
    cross_validate,
    fit_probe,
    leave_one_class_out,
    predict_held_out,
)
from internvideo.probing.fit_report import (
    NAME,
    add_fold_metrics,
    add_metrics,
    add_unknown,
    count_confusion,
    most_confident_mistakes,
    write_fit_report,
)
from internvideo.probing.fit_split import MAX_REPORTED, VideoGroups, assign_groups, check_classes, near_duplicates
from internvideo.probing.probe import EncoderReference, Probe
from internvideo.probing.probe_fit import standardize
from internvideo.storage import folder_lock
from internvideo.tasks.protocol import check_labels
from internvideo.tasks.table import BOOTSTRAP, MetricValues, Result, print_result
from internvideo.terminal import Screen
from internvideo.training.checkpoint import init_run_dir

HeadName = Literal["linear", "attentive"]
FEATURE_KINDS: dict[HeadName, Kind] = {"linear": "video", "attentive": "tokens"}
TEST_SPLIT = "test"
TRAIN_SPLITS = ("train", "val", "valid", "validation", None)
CLASSIFIER_FILE = "classifier.safetensors"


@dataclass(frozen=True)
class FitSettings:
    """Settings of `fit`.

    Attributes:
        head: "linear" on one vector per video, "attentive" on the tokens of each video.
        folds: number of folds of the cross-validation; fewer if a class has fewer groups.
        group_pattern: regular expression for the group in a path (`fit_split.assign_groups`).
        accept_known: fraction of the held-out videos of known classes that the threshold accepts.
        use_splits: if a manifest has "test" rows and others, evaluate on the former and train on the latter.
        seed: of the splits and of the attentive head.
        batch_size: clips per batch. workers: number of decoding processes; None for one per two cores, at most 4.

    Raises:
        RecipeError: a setting out of range.
    """

    head: HeadName = "linear"
    folds: int = 5
    group_pattern: str | None = None
    accept_known: float = 0.95
    use_splits: bool = True
    seed: int = 0
    batch_size: int = 8
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.head not in FEATURE_KINDS:
            raise RecipeError("--head", f"found '{self.head}'", ", ".join(FEATURE_KINDS))
        for name, is_valid, expected in (
            ("folds", 2 <= self.folds <= 100, "2 to 100"),
            ("accept-known", 0.5 <= self.accept_known < 1, "0.5 or more, below 1"),
            ("seed", 0 <= self.seed < 2**31, "0 or more"),
            ("batch-size", self.batch_size >= 1, "1 or more"),
            ("workers", self.workers is None or self.workers >= 0, "0 or more"),
        ):
            if not is_valid:
                raise RecipeError(f"--{name}", f"found {getattr(self, name.replace('-', '_'))}", expected)


@dataclass(frozen=True)
class FitResult:
    """The probe, its file, its metrics, and the seconds of "features" and of "fit"."""

    probe: Probe
    file: Path
    result: Result
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Dataset:
    """The n readable videos; `is_test` (n,) marks those that are only for evaluation."""

    manifest: Manifest
    data: LabeledFeatures
    is_test: NDArray[np.bool_]

    def ids(self, mask: NDArray[np.bool_]) -> list[str]:
        return [self.manifest.rows[index].id for index in np.flatnonzero(mask).tolist()]


def fit(
    source: Path,
    model: VideoModel,
    output: Path,
    settings: FitSettings | None = None,
    *,
    features: Path | None = None,
    console: Screen | None = None,
) -> FitResult:
    """Fit, evaluate and save a probe.

    Args:
        source: a folder with one folder per class, or a manifest.
        model: the frozen encoder.
        output: folder of this fit for classifier.safetensors, report.json, confusion.svg and run.json.
        features: cache folder of features, which several fits can share; by default OUTPUT/features.
        console: prints progress and metrics.

    Raises:
        ManifestError: fewer than 2 classes, or a class with too few videos or groups.
        RunError: `output` has another fit, another process writes to it, or no video can be read.
        RecipeError: a setting that is not allowed. ExtraError: scikit-learn or scipy is not installed.
    """
    settings, screen = settings or FitSettings(), console or Screen()
    require("fit", "internvideo fit")
    manifest, groups = read_labeled_manifest(source, settings)
    workers = max(0, min(4, (os.cpu_count() or 1) // 2)) if settings.workers is None else settings.workers
    options: dict[str, Any] = {
        "kind": FEATURE_KINDS[settings.head],
        "batch_size": settings.batch_size,
        "workers": workers,
    }
    with folder_lock(output):
        init_run_dir(output, _run_settings(manifest, model, settings), results=(CLASSIFIER_FILE,))
        for note in (*manifest.notes, *groups.notes):
            screen.print(note, highlight=False, markup=False)
        video_features = read_features(model, manifest, features or output / "features", **options)
        _print_feature_report(screen, video_features)
        start_time = time.perf_counter()
        dataset = _readable_dataset(manifest, groups, video_features, settings)
        config = FitConfig(len(manifest.classes), settings.accept_known, settings.seed)
        return _evaluate_and_save(dataset, config, video_features, model, output, settings, screen, start_time)


def _evaluate_and_save(
    dataset: _Dataset,
    config: FitConfig,
    features: Features,
    model: VideoModel,
    output: Path,
    settings: FitSettings,
    screen: Screen,
    start_time: float,
) -> FitResult:
    classes, train = dataset.manifest.classes, dataset.data.subset(~dataset.is_test)
    out_of_fold = cross_validate(train, config, settings.folds, lambda line: screen.print(line, highlight=False))
    fitted = fit_probe(train, config)
    metrics = MetricValues()
    add_metrics(metrics, "", out_of_fold, train)
    fold_accuracies = add_fold_metrics(metrics, out_of_fold, train)
    unknown = add_unknown(metrics, leave_one_class_out(train, fitted, out_of_fold.fold, config), classes)
    predictions, data, mask = out_of_fold, train, ~dataset.is_test
    if dataset.is_test.any():
        data, mask = dataset.data.subset(dataset.is_test), dataset.is_test
        predictions = predict_held_out(fitted, train, data, config)
        add_metrics(metrics, "test_", predictions, data)
    duplicates = _report_duplicates(dataset, screen)
    seconds = {"features": features.seconds, "fit": time.perf_counter() - start_time}
    result: Result = {
        "task": NAME,
        "figures": metrics.values,
        "intervals": metrics.intervals,
        "protocol": _make_protocol(dataset, model, fitted, settings, out_of_fold),
        "coverage": features.coverage,
    }
    details = {
        "folds": fold_accuracies,
        "confusion": count_confusion(predictions, data, config.num_classes).tolist(),
        "classes": list(classes),
        "unknown_classes": unknown,
        "surest_mistakes": most_confident_mistakes(predictions, data, dataset.ids(mask), classes),
        "near_duplicates": duplicates,
        "seconds": seconds,
    }
    metadata = {"figures": result["figures"], "intervals": result["intervals"], "protocol": result["protocol"]}
    probe = Probe(
        fitted.head, classes, fitted.temperature, fitted.threshold, EncoderReference.from_model(model), metadata
    )
    probe.save(output / CLASSIFIER_FILE)
    write_fit_report(output, result, details, classes)
    print_result(result, screen)
    screen.print(
        f"features {seconds['features']:.1f} s ({features.num_computed} of {features.coverage['read']} videos "
        f"computed), fit {seconds['fit']:.1f} s",
        highlight=False,
    )
    return FitResult(probe, output / CLASSIFIER_FILE, result, seconds)


# ---------------------------------------------------------------------------------------------------------- the data


def read_labeled_manifest(source: Path, settings: FitSettings) -> tuple[Manifest, VideoGroups]:
    """Read the labeled rows and their groups, without opening a video. Raises as `fit`."""
    manifest = _drop_unused_classes(read_manifest(source))
    groups = assign_groups(manifest, settings.group_pattern)
    check_classes(manifest, check_labels(manifest), groups.ids)
    _check_splits(manifest, groups, settings)
    return manifest, groups


def _drop_unused_classes(manifest: Manifest) -> Manifest:
    """Drop classes without a row and renumber the labels."""
    used = sorted({row.label for row in manifest.rows if row.label is not None})
    unused = [name for index, name in enumerate(manifest.classes) if index not in used]
    if not unused:
        return manifest
    new_index: dict[int | None, int] = {index: new_label for new_label, index in enumerate(used)}
    rows = tuple(row.model_copy(update={"label": new_index.get(row.label)}) for row in manifest.rows)
    shown = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
    note = f"{len(unused)} classes without a video left out: {shown}"
    names = tuple(manifest.classes[index] for index in used)
    return replace(manifest, rows=rows, classes=names, notes=(*manifest.notes, note))


def _is_test(manifest: Manifest, settings: FitSettings) -> NDArray[np.bool_]:
    """Return a mask (n,) of the rows that are only for evaluation: those of split "test"; none if all rows are."""
    is_test = np.asarray([row.split == TEST_SPLIT for row in manifest.rows])
    return is_test if settings.use_splits and not is_test.all() else np.zeros(len(is_test), dtype=bool)


def _check_splits(manifest: Manifest, groups: VideoGroups, settings: FitSettings) -> None:
    is_test = _is_test(manifest, settings)
    if not is_test.any():
        return
    known = (*TRAIN_SPLITS, TEST_SPLIT)
    if unknown := sorted({str(row.split) for row in manifest.rows if row.split not in known}):
        found, expected = f"split '{unknown[0]}'", "train, validation, test"
        raise ManifestError(manifest.source, found, expected, "or give --no-splits")
    shared = np.intersect1d(groups.ids[is_test], groups.ids[~is_test])
    if len(shared):
        row = next(row for row, group in zip(manifest.rows, groups.ids, strict=True) if group == shared[0])
        found = f"{len(shared)} groups have videos in both train and test, such as that of '{row.id}'"
        hint = "move them to one split, or give --no-splits, which ignores the splits"
        raise ManifestError(manifest.source, found, "each group in one split", hint)


def _readable_dataset(manifest: Manifest, groups: VideoGroups, features: Features, settings: FitSettings) -> _Dataset:
    """Select the readable rows with their features; check again that the classes have enough videos."""
    is_test = _is_test(manifest, settings)[features.row_index]
    readable = replace(manifest, rows=tuple(manifest.rows[index] for index in features.row_index))
    data = LabeledFeatures(features.values, check_labels(readable), groups.ids[features.row_index])
    train = data.subset(~is_test)
    check_classes(readable, train.labels, train.groups, len(features.coverage["unreadable"]))
    return _Dataset(readable, data, is_test)


def _report_duplicates(dataset: _Dataset, screen: Screen) -> list[dict[str, Any]]:
    """Warn of pairs of videos with nearly equal features in different groups: they may be in different folds."""
    mean_features = (
        dataset.data.features.float().reshape(len(dataset.data), -1, dataset.data.features.shape[-1]).mean(dim=1)
    )
    pairs = near_duplicates(standardize(mean_features).numpy(), dataset.data.groups)
    if pairs:
        first, second = (dataset.manifest.rows[index].id for index in pairs[0][:2])
        screen.print(
            f"warning: {len(pairs)} pairs of videos of different groups have nearly equal features, such as "
            f"'{first}' and '{second}': if a pair comes from one recording, put it in one group",
            highlight=False,
            markup=False,
        )
    rows = dataset.manifest.rows
    return [{"ids": [rows[i].id, rows[j].id], "cosine": round(cosine, 6)} for i, j, cosine in pairs[:MAX_REPORTED]]


# -------------------------------------------------------------------------------------------------------- the record


def _run_settings(manifest: Manifest, model: VideoModel, settings: FitSettings) -> dict[str, Any]:
    """Return the settings that identify a fit in run.json; batch size and workers do not change the result."""
    identity = {key: value for key, value in asdict(settings).items() if key not in ("batch_size", "workers")}
    identity["known"] = identity.pop("accept_known")  # as in the run.json of earlier fits
    features = cache_key(model, FEATURE_KINDS[settings.head])
    return {"fit": identity, "manifest": manifest.fingerprint, "model": model.name, "features": features}


def _make_protocol(
    dataset: _Dataset,
    model: VideoModel,
    fitted: FittedProbe,
    settings: FitSettings,
    out_of_fold: OutOfFoldPredictions,
) -> dict[str, Any]:
    encoder, preprocessing = EncoderReference.from_model(model), model.preprocessing
    return {
        "model": encoder.name,
        "weights_sha256": encoder.weights_sha256,
        "weights": encoder.source,
        "split_sha256": dataset.manifest.fingerprint,
        "source": str(dataset.manifest.source),
        "videos": int((~dataset.is_test).sum()),
        "test_videos": int(dataset.is_test.sum()),
        "classes": len(dataset.manifest.classes),
        "sources": len(np.unique(dataset.data.groups)),
        "folds": len(np.unique(out_of_fold.fold)),
        "head": settings.head,
        "strength": fitted.regularization,
        "temperature": round(fitted.temperature, 6),
        "threshold": round(fitted.threshold, 6),
        "known": settings.accept_known,
        "seed": settings.seed,
        "frames": preprocessing.frames,
        "size": preprocessing.size,
        "sampling": preprocessing.sampler,
        "preprocessing": preprocessing.to_json(),
        "precision": model.precision,
        "bootstrap": {**BOOTSTRAP, "method": "percentile, whole sources"},
    }


def _print_feature_report(screen: Screen, features: Features) -> None:
    if features.num_computed:
        screen.print(
            f"features of {features.num_computed} videos: {features.seconds:.1f} s, "
            f"{features.seconds / features.num_computed:.2f} s each",
            highlight=False,
        )
    if failed := features.coverage["unreadable"]:
        screen.print(
            f"{len(failed)} videos cannot be read and are left out, such as '{failed[0]['id']}'", highlight=False
        )
