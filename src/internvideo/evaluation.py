"""From weights and a manifest to a saved table and figures with their protocol."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from internvideo.data.loader import EvalLoader, LoaderSettings
from internvideo.data.manifest import Manifest, classes_beside, read_manifest
from internvideo.data.sample import Sample, did_you_mean
from internvideo.data.tokenizer import Tokenizer
from internvideo.data.world_actions import TIME_DIRECTED
from internvideo.errors import InternVideoError, ManifestError, RecipeError, RunError
from internvideo.feature_evaluation import evaluate_features
from internvideo.metrics import open_set as metrics_of_open_set
from internvideo.models.action_detector import ActionDetector
from internvideo.models.actionformer import ActionFormer
from internvideo.models.cross_model import CrossModel
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.pipeline import Trained, load_trained
from internvideo.recipe import SAMPLERS, TASKS, choose_device
from internvideo.region_evaluation import evaluate_regions
from internvideo.storage import write_text
from internvideo.tasks import multiple_choice, open_set, recognition, retrieval, zero_shot
from internvideo.tasks.protocol import ClipProtocol, clip_protocol, describe
from internvideo.tasks.scoring import score
from internvideo.tasks.table import Result, Table, print_result, save_result
from internvideo.training import distributed

LANGUAGE_TASKS = {
    "zero_shot": zero_shot.predict,
    "retrieval": retrieval.predict,
    "multiple_choice": multiple_choice.predict,
}


@dataclass(frozen=True)
class EvaluationSettings:
    """How videos become clips in testing.

    Attributes:
        views: temporal views per video; None for the recipe's `data.sampling.views`, or one where it has none.
        crops: 1 or 3 places per view. batch_size, workers: of the loader. device: where the model runs.
        unknown: open-set recognition: a manifest of unknown classes, beside the rows that say so themselves.
        train: open-set recognition: what the model learned from, where that is not where its recipe says.
        persons: spatio_temporal: boxes of a person detector in place of the annotated ones.
        class_scores: localisation: scores of whole videos, that give class-agnostic segments their classes.

    Raises:
        RecipeError: no view, or another number of crops.
    """

    views: int | None = None
    crops: int = 1
    batch_size: int = 16
    workers: int = 0
    device: str = "auto"
    unknown: Path | None = None
    train: Path | None = None
    class_scores: Path | None = None
    persons: Path | None = None

    def __post_init__(self) -> None:
        if self.views is not None and self.views < 1:
            raise RecipeError("views", str(self.views), "1 or more")
        if self.crops not in (1, 3):
            raise RecipeError("crops", str(self.crops), "1 or 3")


def predict(task: str, trained: Trained, manifest: Manifest, settings: EvaluationSettings) -> Table:
    """Predictions of a trained model on a split.

    Raises:
        RecipeError: no such task, or one that this kind of model cannot do.
    """
    _check(task, trained.model)
    model, device = trained.model, choose_device(settings.device)
    clips, source = clip_source(trained, manifest, settings)
    name = trained.recipe.model.name
    if task == "open_set":
        train = training_rows(trained, settings.train)
        return open_set.predict(
            cast(VideoMAEClassifier | UniFormerV2, model),
            (clip_source(trained, train, settings)[1], train),
            (source, manifest),
            clips,
            device,
            evidence=getattr(trained.recipe.settings, "evidence", None),
            model_name=name,
            frame_step=getattr(trained.recipe.settings, "frame_step", 1),
        )
    if task == "recognition":
        subsets = {}
        if set(manifest.classes) & set(TIME_DIRECTED):  # the sample world's
            subsets["time_directed"] = lambda row: manifest.classes[row.label] in TIME_DIRECTED
        return recognition.predict(
            model, scorer(trained), source, manifest, clips, device, model_name=name, subsets=subsets
        )
    tokenizer = Tokenizer(context=cast(VideoLanguage, model).config.text.context)
    return LANGUAGE_TASKS[task](model, tokenizer, source, manifest, clips, device, model_name=name)


def clip_source(trained: Trained, manifest: Manifest, settings: EvaluationSettings) -> tuple[ClipProtocol, EvalLoader]:
    """How the model's recipe cuts clips from a video in testing, and a loader that does it."""
    data = trained.recipe.data
    sampling = data.sampling
    views = settings.views or sampling.views or 1
    if views > 1 or hasattr(SAMPLERS[sampling.kind], "views"):  # a kind of several views, whose own default may be more
        sampling = sampling.model_copy(update={"views": views})
    sampler, transform = sampling.build(), data.augment.eval_transform(settings.crops)
    loader = LoaderSettings(
        batch_size=settings.batch_size,
        workers=settings.workers,
        short_side=data.loader.short_side,
        single_frame=data.loader.single_frame,
    )
    clips = clip_protocol(sampler, transform, single_frame=data.loader.single_frame)
    return clips, EvalLoader(
        manifest,
        sampler,
        transform,
        loader,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        collect=distributed.collect,
    )


def scorer(trained: Trained) -> recognition.Scorer:
    """uint8 clips -> named logits, each encoder with its own frames."""
    step: int = getattr(trained.recipe.settings, "frame_step", 1)
    if isinstance(trained.model, CrossModel):
        return recognition.interaction_scorer(trained.model, step)
    whole = recognition.classifier_scorer(trained.model)
    return lambda video: whole(video[:, :, ::step])


def _check(task: str, model: torch.nn.Module) -> None:
    if task not in TASKS:
        raise RecipeError("task", f"found '{task}'", ", ".join(TASKS))
    able: tuple[type[torch.nn.Module], ...] = (VideoLanguage,)
    if task == "recognition":
        able = (VideoMAEClassifier, UniFormerV2, CrossModel)
    elif task == "localisation":
        able = (ActionFormer,)
    elif task == "spatio_temporal":
        able = (ActionDetector,)
    elif task == "open_set":
        able = (VideoMAEClassifier, UniFormerV2)
    if not isinstance(model, able):
        names = ", ".join(kind.__name__ for kind in able)
        raise RecipeError("weights", f"hold a {type(model).__name__}", f"{names} for {task}", "choose another task")


def under_classes(manifest: Manifest, classes: tuple[str, ...]) -> Manifest:
    """The same rows with their labels as indices into a model's `classes`: by name, or as they are where the source
    has numbers without names.

    Raises:
        ManifestError: a class that is not among `classes`.
    """
    own = manifest.classes
    if own == classes:
        return manifest
    used = sorted({index for row in manifest.rows for index in row.class_indices()})
    beside = classes_beside(manifest.source) if manifest.source.is_file() else None
    if beside is None and all(name.isdecimal() for name in own):
        if used and used[-1] >= len(classes):
            raise ManifestError(
                manifest.source, f"class {used[-1]}", f"0 to {len(classes) - 1}, the classes that the model knows"
            )
        return replace(manifest, classes=classes)
    place = {name: index for index, name in enumerate(classes)}
    unknown = [own[index] for index in used if own[index] not in place]
    if unknown:
        raise ManifestError(
            manifest.source,
            f"the model was not trained on the class '{unknown[0]}'{did_you_mean(unknown[0], classes)}",
            f"the {len(classes)} classes of the weights",
        )
    moved = {index: place[own[index]] for index in used}
    return replace(manifest, rows=tuple(row.with_class_indices(moved) for row in manifest.rows), classes=classes)


def open_rows(manifest: Manifest, classes: tuple[str, ...], unknown: Path | None) -> Manifest:
    """Known rows under a model's `classes`, and unknown ones: those that say so, those whose class is none of
    `classes`, and all of the manifest `unknown`.

    Raises:
        ManifestError: no known or no unknown row, or a known one without label.
    """
    own = manifest.classes
    named = classes_beside(manifest.source) if manifest.source.is_file() else own
    numbers = named is None and all(name.isdecimal() for name in own)

    def strange(row: Sample) -> bool:
        other = not numbers and row.label is not None and own[row.label] not in classes
        return other or open_set.is_unknown(row)

    known = replace(manifest, rows=tuple(row for row in manifest.rows if not strange(row)))
    away = replace(manifest, rows=tuple(row for row in manifest.rows if strange(row)))
    added = open_set.strangers(away, manifest.root)
    if unknown is not None:
        added += open_set.strangers(read_manifest(unknown), manifest.root)
    return open_set.join(under_classes(known, classes), added)


def training_rows(trained: Trained, given: Path | None) -> Manifest:
    """The labelled rows that a model learned from, under its classes. Raises RecipeError when they are not there."""
    data = trained.recipe.data
    path = given or data.train
    if path is None or not path.exists():
        raise RecipeError(
            "--train", f"{path} is not there", "the manifest that the model learned from", "give --train MANIFEST"
        )
    rows = read_manifest(path)
    return under_classes(rows if data.split is None else rows.subset(split=data.split), trained.classes)


def evaluate_task(
    task: str, weights: Path, manifest: Path, output: Path, settings: EvaluationSettings, *, split: str | None = None
) -> Result:
    """Predict, save `TASK.npz` and `TASK.json` in `output`, print the figures.

    The classes are those of the manifest; for recognition they are found among the model's by name. Under torchrun the
    processes share the videos, and the first one writes the table that one process (of as many threads) would write.

    Raises:
        RecipeError: no such task, or one that the model cannot do.
        ManifestError: the manifest cannot be read, or has a class that a recognition model was not trained on.
        RunError: `output` holds the table of another model, of other rows or of clips cut otherwise.
    """
    if task not in TASKS:
        raise RecipeError("task", f"found '{task}'", ", ".join(TASKS))
    if task == "localisation":
        return evaluate_features(
            weights, manifest, output, split=split, class_scores=settings.class_scores, device=settings.device
        )
    with distributed.process_group(choose_device(settings.device)) as device:
        trained = load_trained(weights, device=str(device))
        _check(task, trained.model)
        rows = read_manifest(manifest)
        if split is not None:
            rows = rows.subset(split=split)
        if task in ("recognition", "spatio_temporal"):
            rows = under_classes(rows, trained.classes)
        if task == "spatio_temporal":
            return evaluate_regions(
                trained, rows, output, persons=settings.persons, workers=settings.workers, device=str(device)
            )
        if task == "open_set":
            rows = open_rows(rows, trained.classes, settings.unknown)
        settings, path = replace(settings, device=str(device)), output / f"{task}.npz"
        _check_output(path, trained, rows, clip_source(trained, rows, settings)[0])
        table = predict(task, trained, rows, settings)
        result: Result = score(table)
        error: InternVideoError | None = None
        if distributed.rank() == 0:
            try:
                save_result(result, table.save(path).with_suffix(".json"))
            except InternVideoError as found:
                error = found
            else:
                if task == "open_set":
                    _draw_open_set(table, output)
                print_result(result)
        distributed.raise_together(error)
    return result


def _check_output(path: Path, trained: Trained, rows: Manifest, clips: ClipProtocol) -> None:
    """Refuse to write over another measurement: only the same weights, rows and clips may be measured again."""
    error: InternVideoError | None = None
    if distributed.rank() == 0 and path.exists():
        ours = describe(trained.model, trained.recipe.model.name, rows, clips)
        choose = "choose another --output"
        try:
            theirs = Table.load(path).protocol
        except RunError:
            error = RunError(path, "is no table that was written here", "", choose)
        else:
            parts = {"weights_sha256": "weights", "split_sha256": "rows"}
            others = [
                parts.get(key, key) for key, value in ours.items() if key != "source" and theirs.get(key) != value
            ]
            if others:
                error = RunError(path, f"holds a table with other {', '.join(others)}", "", choose)
    distributed.raise_together(error)


def _draw_open_set(table: Table, output: Path) -> None:
    """Write uncertainty.svg and risk_coverage.svg."""
    from internvideo.figures import risk_coverage, uncertainty_histograms  # matplotlib is slow to import

    unknown = table["labels"] < 0
    parts, curves = {}, {}
    for name in open_set.methods(table):
        doubt = table[f"uncertainty:{name}"]
        parts[name] = (doubt[~unknown], doubt[unknown], open_set.threshold(table, name))
        curves[name] = metrics_of_open_set.risk_coverage(doubt, table[f"predicted:{name}"] == table["labels"])
    write_text(output / "uncertainty.svg", uncertainty_histograms(parts) + "\n")
    write_text(output / "risk_coverage.svg", risk_coverage(curves) + "\n")


def score_table(path: Path) -> Result:
    """Score a saved table again and print its figures."""
    result = score(Table.load(path))
    print_result(result)
    return result
