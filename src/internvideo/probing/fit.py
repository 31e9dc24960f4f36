"""`internvideo fit`: a classifier of one's own from labelled videos and a model that stays as it is."""

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
from internvideo.inference.video_model import VideoModel
from internvideo.probing.cached_features import Features, Kind, cache_key, read_features
from internvideo.probing.fit_learn import (
    Data,
    Judged,
    Learned,
    Rules,
    cross_validate,
    judge,
    learn,
    leave_one_class_out,
)
from internvideo.probing.fit_report import (
    NAME,
    Shown,
    add_figures,
    add_spread,
    add_unknown,
    confusion,
    surest_mistakes,
    write_fit_report,
)
from internvideo.probing.fit_split import SHOWN, Sources, check_classes, near_duplicates, source_groups
from internvideo.probing.probe import EncoderReference, Probe
from internvideo.probing.probe_fit import standardised
from internvideo.storage import alone_in
from internvideo.tasks.protocol import check_labels
from internvideo.tasks.table import BOOTSTRAP, Figures, Result, print_result
from internvideo.terminal import Screen
from internvideo.training.checkpoint import init_run_dir

HeadName = Literal["linear", "attentive"]
KINDS: dict[HeadName, Kind] = {"linear": "video", "attentive": "tokens"}
TEST = "test"
LEARNING = ("train", "val", "valid", "validation", None)
CLASSIFIER = "classifier.safetensors"


@dataclass(frozen=True)
class FitSettings:
    """How a classifier is fitted.

    Attributes:
        head: "linear" on one vector a video, "attentive" on its tokens.
        folds: of the cross-validation, fewer where a class has fewer sources.
        group_pattern: finds the source in a path (`fit_split.source_groups`).
        accept_known: fraction of videos of known classes that must not be rejected as unknown.
        use_splits: learn from "train" and "validation" rows and judge on "test" rows where a manifest has both.
        seed: of the splits and of the attentive head.
        batch_size: clips at once. workers: processes that decode; None for a sensible number.

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
        if self.head not in KINDS:
            raise RecipeError("--head", f"found '{self.head}'", ", ".join(KINDS))
        for name, fits, allowed in (
            ("folds", 2 <= self.folds <= 100, "2 to 100"),
            ("accept-known", 0.5 <= self.accept_known < 1, "0.5 or more, below 1"),
            ("seed", 0 <= self.seed < 2**31, "0 or more"),
            ("batch-size", self.batch_size >= 1, "1 or more"),
            ("workers", self.workers is None or self.workers >= 0, "0 or more"),
        ):
            if not fits:
                raise RecipeError(f"--{name}", f"found {getattr(self, name.replace('-', '_'))}", allowed)


@dataclass(frozen=True)
class Fitted:
    """What came of it: the classifier, where it lies, its figures, and how long each part took (s)."""

    probe: Probe
    file: Path
    result: Result
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Case:
    """The readable videos, and which of them are only for judging."""

    manifest: Manifest
    data: Data
    test: NDArray[np.bool_]

    def ids(self, chosen: NDArray[np.bool_]) -> list[str]:
        return [row.id for row, wanted in zip(self.manifest.rows, chosen, strict=True) if wanted]


def fit(
    source: Path,
    model: VideoModel,
    output: Path,
    settings: FitSettings | None = None,
    *,
    features: Path | None = None,
    console: Screen | None = None,
) -> Fitted:
    """Fit, judge and save a classifier.

    Args:
        source: a folder with one folder a class, or a manifest.
        model: whose features it learns from.
        output: folder of this fit alone; takes classifier.safetensors, report.json, confusion.svg, run.json.
        settings: see there.
        features: folder of computed features, to share among fits; OUTPUT/features when not given.
        console: where progress and figures are printed.

    Raises:
        ManifestError: fewer than 2 classes, or a class with too few videos or sources.
        RunError: `output` is another fit's or has another writer, or no video can be read.
        RecipeError: a setting that does not fit.
    """
    settings, out = settings or FitSettings(), console or Screen()
    manifest, sources = read_source(source, settings)
    with alone_in(output):
        init_run_dir(output, _recipe(manifest, model, settings), results=(CLASSIFIER,))
        for note in (*manifest.notes, *sources.notes):
            out.print(note, highlight=False, markup=False)
        found = read_features(
            model,
            manifest,
            features or output / "features",
            kind=KINDS[settings.head],
            batch_size=settings.batch_size,
            workers=_workers(settings.workers),
        )
        _tell_features(out, found)
        began = time.perf_counter()
        case = _case(manifest, sources, found, settings)
        rules = Rules(len(manifest.classes), settings.accept_known, settings.seed)
        return _judged_and_saved(case, rules, found, model, output, settings, out, began)


def _judged_and_saved(
    case: _Case,
    rules: Rules,
    found: Features,
    model: VideoModel,
    output: Path,
    settings: FitSettings,
    out: Screen,
    began: float,
) -> Fitted:
    classes, train = case.manifest.classes, case.data.part(~case.test)
    folded = cross_validate(train, rules, settings.folds, lambda line: out.print(line, highlight=False))
    learned = learn(train, rules)
    figures = Figures()
    add_figures(figures, "", folded, train)
    each = add_spread(figures, folded, train)
    unknown = add_unknown(figures, leave_one_class_out(train, learned, folded.fold, rules), classes)
    judged, data, chosen = folded, train, ~case.test
    if case.test.any():
        data, chosen = case.data.part(case.test), case.test
        judged = judge(learned, train, data, rules)
        add_figures(figures, "test_", judged, data)
    close = _duplicates(case, out)
    seconds = {"features": found.seconds, "fit": time.perf_counter() - began}
    result = _result(figures, case, model, learned, settings, found, folded)
    more = {
        "folds": each,
        "confusion": confusion(judged, data, rules.classes).tolist(),
        "classes": list(classes),
        "unknown_classes": unknown,
        "surest_mistakes": surest_mistakes(judged, data, Shown(case.ids(chosen), classes)),
        "near_duplicates": close,
        "seconds": seconds,
    }
    probe = _probe(learned, classes, model, result)
    probe.save(output / CLASSIFIER)
    write_fit_report(output, result, more, classes)
    print_result(result, out)
    out.print(
        f"features {seconds['features']:.1f} s ({found.computed} of {found.coverage['read']} videos computed), "
        f"fit {seconds['fit']:.1f} s",
        highlight=False,
    )
    return Fitted(probe, output / CLASSIFIER, result, seconds)


# ---------------------------------------------------------------------------------------------------------- the data


def read_source(source: Path, settings: FitSettings) -> tuple[Manifest, Sources]:
    """The labelled videos and where they come from, without opening one. Raises as `fit`."""
    manifest = _tidied(read_manifest(source))
    sources = source_groups(manifest, settings.group_pattern)
    check_classes(manifest, check_labels(manifest), sources.group)
    _check_splits(manifest, sources, settings)
    return manifest, sources


def _tidied(manifest: Manifest) -> Manifest:
    """The same rows under the classes that occur."""
    used = sorted({row.label for row in manifest.rows if row.label is not None})
    unused = [name for index, name in enumerate(manifest.classes) if index not in used]
    if not unused:
        return manifest
    place = {index: number for number, index in enumerate(used)}
    rows = tuple(
        row.model_copy(update={"label": None if row.label is None else place[row.label]}) for row in manifest.rows
    )
    shown = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
    note = f"{len(unused)} classes without a video left out: {shown}"
    names = tuple(manifest.classes[index] for index in used)
    return replace(manifest, rows=rows, classes=names, notes=(*manifest.notes, note))


def _is_test(manifest: Manifest, settings: FitSettings) -> NDArray[np.bool_]:
    """(n,) rows that are only for judging: those of split "test" where there are others to learn from."""
    test = np.asarray([row.split == TEST for row in manifest.rows])
    return test if settings.use_splits and not test.all() else np.zeros(len(test), dtype=bool)


def _check_splits(manifest: Manifest, sources: Sources, settings: FitSettings) -> None:
    test = _is_test(manifest, settings)
    if not test.any():
        return
    odd = sorted({str(row.split) for row in manifest.rows} - {str(name) for name in (*LEARNING, TEST)})
    if odd:
        raise ManifestError(manifest.source, f"split '{odd[0]}'", "train, validation, test", "or give --no-splits")
    shared = np.intersect1d(sources.group[test], sources.group[~test])
    if len(shared):
        row = next(row for row, group in zip(manifest.rows, sources.group, strict=True) if group == shared[0])
        raise ManifestError(
            manifest.source,
            f"{len(shared)} sources have videos in both train and test, such as that of '{row.id}'",
            "a source on one side",
            "move them to one side, or give --no-splits to have them split anew",
        )


def _case(manifest: Manifest, sources: Sources, found: Features, settings: FitSettings) -> _Case:
    """The readable rows with their features; again what can be learned from must be left."""
    test = _is_test(manifest, settings)[found.read]
    readable = replace(manifest, rows=tuple(manifest.rows[index] for index in found.read))
    data = Data(found.values, check_labels(readable), sources.group[found.read])
    train = data.part(~test)
    check_classes(readable, train.labels, train.groups, len(found.coverage["unreadable"]))
    return _Case(readable, data, test)


def _workers(asked: int | None) -> int:
    """One process that decodes beside the encoder, more on large machines."""
    return max(0, min(4, (os.cpu_count() or 1) // 2)) if asked is None else asked


def _duplicates(case: _Case, out: Screen) -> list[dict[str, Any]]:
    """Warn of videos of different sources, which may stand on two sides, that look the same to the model."""
    plain = case.data.features.float().reshape(len(case.data), -1, case.data.features.shape[-1]).mean(dim=1)
    pairs = near_duplicates(standardised(plain).numpy(), case.data.groups)
    if pairs:
        first, second = (case.manifest.rows[index].id for index in pairs[0][:2])
        out.print(
            f"warning: {len(pairs)} pairs of videos of different sources look the same to the model, such as "
            f"'{first}' and '{second}': if they come from one recording, give them one group",
            highlight=False,
            markup=False,
        )
    rows = case.manifest.rows
    return [{"ids": [rows[i].id, rows[j].id], "cosine": round(cosine, 6)} for i, j, cosine in pairs[:SHOWN]]


# -------------------------------------------------------------------------------------------------------- the record


def _recipe(manifest: Manifest, model: VideoModel, settings: FitSettings) -> dict[str, Any]:
    """What makes a fit another one; batches and workers do not."""
    kept = {key: value for key, value in asdict(settings).items() if key not in ("batch_size", "workers")}
    kept["known"] = kept.pop("accept_known")  # as the run.json of earlier fits has it
    kind = KINDS[settings.head]
    return {"fit": kept, "manifest": manifest.fingerprint, "model": model.name, "features": cache_key(model, kind)}


def _result(
    figures: Figures,
    case: _Case,
    model: VideoModel,
    learned: Learned,
    settings: FitSettings,
    found: Features,
    folded: Judged,
) -> Result:
    encoder = EncoderReference.of(model)
    rule = model.preprocessing
    protocol: dict[str, Any] = {
        "model": encoder.name,
        "weights_sha256": encoder.weights_sha256,
        "weights": encoder.source,
        "split_sha256": case.manifest.fingerprint,
        "source": str(case.manifest.source),
        "videos": int((~case.test).sum()),
        "test_videos": int(case.test.sum()),
        "classes": len(case.manifest.classes),
        "sources": len(np.unique(case.data.groups)),
        "folds": len(np.unique(folded.fold)),
        "head": settings.head,
        "strength": learned.strength,
        "temperature": round(learned.temperature, 6),
        "threshold": round(learned.threshold, 6),
        "known": settings.accept_known,
        "seed": settings.seed,
        "frames": rule.frames,
        "size": rule.size,
        "sampling": rule.sampler,
        "preprocessing": rule.to_json(),
        "precision": model.precision,
        "bootstrap": {**BOOTSTRAP, "method": "percentile, whole sources"},
    }
    return {
        "task": NAME,
        "figures": figures.figures,
        "intervals": figures.intervals,
        "protocol": protocol,
        "coverage": found.coverage,
    }


def _probe(learned: Learned, classes: tuple[str, ...], model: VideoModel, result: Result) -> Probe:
    facts = {"figures": result["figures"], "intervals": result["intervals"], "protocol": result["protocol"]}
    return Probe(learned.head, classes, learned.temperature, learned.threshold, EncoderReference.of(model), facts)


def _tell_features(out: Screen, found: Features) -> None:
    if found.computed:
        out.print(
            f"features of {found.computed} videos: {found.seconds:.1f} s, {found.seconds / found.computed:.2f} s each",
            highlight=False,
        )
    lost = found.coverage["unreadable"]
    if lost:
        out.print(f"{len(lost)} videos cannot be read and are left out, such as '{lost[0]['id']}'", highlight=False)
