"""Tasks on single clips: recognition, and what a video-language model does without learning more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from internvideo import distributed
from internvideo.data.loader import EvalLoader, LoaderSettings
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.tokenizer import Tokenizer
from internvideo.datasets.class_names import match_classes
from internvideo.errors import InternVideoError, RecipeError, RunError
from internvideo.models.clip import Clip
from internvideo.models.cross_model import CrossModel
from internvideo.models.heads import PairScoringMultipleChoice
from internvideo.models.video_language import VideoLanguage
from internvideo.pipeline import Trained, load_trained
from internvideo.recipe import SAMPLERS, choose_device
from internvideo.sample_world.actions import TIME_DIRECTED
from internvideo.sample_world.generate import is_sample_world
from internvideo.tasks.class_rows import under_classes
from internvideo.tasks.evaluation_settings import EvaluationSettings
from internvideo.tasks.members import described
from internvideo.tasks.multiple_choice import predict as multiple_choice
from internvideo.tasks.protocol import ClipProtocol, clip_protocol, describe, weights_hash
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.scoring import score
from internvideo.tasks.table import Predictions, Result, print_result, save_result
from internvideo.tasks.zero_shot import predict as zero_shot

Predict = Callable[[Trained, Manifest, EvaluationSettings], Predictions]

LANGUAGE_TASKS = {
    "zero_shot": zero_shot.predict,
    "multiple_choice": multiple_choice.predict,
}
ENSEMBLES = {"zero_shot": zero_shot.ensemble, "multiple_choice": multiple_choice.ensemble}
LANGUAGE_MODELS = (VideoLanguage, Clip)


def evaluate_recognition(
    trained: Trained, manifest: Path, output: Path, settings: EvaluationSettings, *, split: str | None
) -> Result:
    """Write recognition.npz and .json; print the figures. The classes are found among the model's by name.

    With `settings.restrict` a model of more classes (Kinetics-710 on 400) chooses among the manifest's alone: the
    logits of the others are left out before the soft-max, and the table is that of a model of these classes.

    Raises:
        RecipeError, ManifestError, RunError: what does not fit together.
    """
    rows = split_rows(manifest, split)
    if not settings.restrict:
        rows = under_classes(rows, trained.classes)
    return finish(recognition.NAME, trained, rows, output, settings, predict_recognition)


def predict_recognition(trained: Trained, manifest: Manifest, settings: EvaluationSettings) -> Predictions:
    """Scores of a classifier over views, with `settings.restrict` of the manifest's classes alone."""
    scores, told = scorer(trained), {}
    if settings.restrict:
        kept = match_classes(manifest.classes, trained.classes, where=manifest.source, class_map=settings.class_map)
        scores = recognition.restricted(scores, kept.rows)
        told = {"classes_kept": f"{kept.about}, before the soft-max"}
    clips, source = clip_source(trained, manifest, settings)
    subsets = {}
    if is_sample_world(manifest.source.parent) and set(manifest.classes) & set(TIME_DIRECTED):
        subsets["time_directed"] = lambda row: manifest.classes[row.label] in TIME_DIRECTED
    return recognition.predict(
        trained.model,
        scores,
        source,
        manifest,
        clips,
        choose_device(settings.device),
        model_name=trained.recipe.model.name,
        subsets=subsets,
        told=told,
    )


def language_evaluation(task: str) -> Callable[..., Result]:
    """What evaluates one of LANGUAGE_TASKS: writes TASK.npz and .json, prints the figures."""

    def evaluate(
        trained: Trained, manifest: Path, output: Path, settings: EvaluationSettings, *, split: str | None
    ) -> Result:
        ranked = isinstance(trained.model, PairScoringMultipleChoice)
        models = with_others(trained, settings, (PairScoringMultipleChoice,) if ranked else LANGUAGE_MODELS)

        def predict(_: Trained, rows: Manifest, settings: EvaluationSettings) -> Predictions:
            return ENSEMBLES[task]([predict_language(task, one, rows, settings) for one in models])

        return finish(task, trained, split_rows(manifest, split), output, settings, predict, told=members_told(models))

    return evaluate


def predict_language(task: str, trained: Trained, manifest: Manifest, settings: EvaluationSettings) -> Predictions:
    """The table of one of LANGUAGE_TASKS."""
    clips, source = clip_source(trained, manifest, settings)
    device, name = choose_device(settings.device), trained.recipe.model.name
    if isinstance(trained.model, PairScoringMultipleChoice):
        return multiple_choice.predict_ranked(trained.model, source, manifest, clips, device, model_name=name)
    tokenizer = Tokenizer(context_length=cast(VideoLanguage | Clip, trained.model).config.text.context)
    return LANGUAGE_TASKS[task](trained.model, tokenizer, source, manifest, clips, device, model_name=name)


def with_others(
    trained: Trained, settings: EvaluationSettings, kinds: tuple[type[nn.Module], ...] = LANGUAGE_MODELS
) -> list[Trained]:
    """The model and those of `settings.also`. Raises RecipeError: one of them is of another kind."""
    models = [trained]
    for path in settings.also:
        other = load_trained(path, device=settings.device)
        if not isinstance(other.model, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise RecipeError(path, f"holds a {type(other.model).__name__}", f"{names}, as the first model")
        models.append(other)
    return models


def members_told(models: Sequence[Trained]) -> dict[str, Any]:
    """What tells an ensemble's table from that of its first model."""
    members = [{"model": one.recipe.model.name, "weights_sha256": weights_hash(one.model)} for one in models]
    return {"ensemble": described(members) if len(members) > 1 else None}


def split_rows(manifest: Path, split: str | None) -> Manifest:
    """The rows of a split. Raises ManifestError."""
    rows = read_manifest(manifest).with_notes_logged()
    return rows if split is None else rows.subset(split=split)


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
    )


def scorer(trained: Trained) -> recognition.Scorer:
    """uint8 clips -> named logits, each encoder with its own frames."""
    step: int = getattr(trained.recipe.settings, "frame_step", 1)
    if isinstance(trained.model, CrossModel):
        return recognition.interaction_scorer(trained.model, step)
    whole = recognition.classifier_scorer(trained.model)
    return lambda video: whole(video[:, :, ::step])


def finish(
    task: str,
    trained: Trained,
    rows: Manifest,
    output: Path,
    settings: EvaluationSettings,
    predict: Predict,
    draw: Callable[[Predictions, Path], None] | None = None,
    told: Mapping[str, Any] | None = None,
) -> Result:
    """Predict, save `TASK.npz` and `TASK.json` in `output`, draw, print the figures.

    The processes share the videos; the first one writes the table that one process (of as many threads) would write.

    Args:
        task, trained, rows, output, settings, predict: what is predicted, of what, by what, and where the table goes.
        draw: pictures of the table, into a folder.
        told: what else of the table's protocol must be the same in a table that is written over.

    Raises:
        RunError: `output` holds the table of another model, of other rows or of clips cut otherwise.
    """
    path = output / f"{task}.npz"
    check_output(path, trained, rows, clip_source(trained, rows, settings)[0], told or {})
    table = predict(trained, rows, settings)
    result: Result = score(table)
    error: InternVideoError | None = None
    if distributed.rank() == 0:
        try:
            save_result(result, table.save(path).with_suffix(".json"))
        except InternVideoError as found:
            error = found
        else:
            if draw is not None:
                draw(table, output)
            print_result(result)
    distributed.raise_together(error)
    return result


def check_output(path: Path, trained: Trained, rows: Manifest, clips: ClipProtocol, told: Mapping[str, Any]) -> None:
    """Refuse to write over another measurement: only the same weights, rows and clips may be measured again."""
    error: InternVideoError | None = None
    if distributed.rank() == 0 and path.exists():
        ours = {**describe(trained.model, trained.recipe.model.name, rows, clips), **told}
        choose = "choose another --output"
        try:
            theirs = Predictions.load(path).protocol
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
