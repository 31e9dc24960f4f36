"""The table EVALUATIONS: what tests a model on a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import nn

from internvideo import distributed
from internvideo.errors import RecipeError, RunError
from internvideo.models.clip import Clip
from internvideo.models.cross_model import CrossModel
from internvideo.models.heads import PairScoringMultipleChoice, VideoQuestionAnswering
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.pipeline import Trained, load_trained
from internvideo.recipe import TASKS, choose_device
from internvideo.tasks import clip_evaluation as clips
from internvideo.tasks.anticipation import evaluate as anticipation
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.captioning import evaluate as captioning
from internvideo.tasks.evaluation_settings import OF_EVERY_TASK, EvaluationSettings, options
from internvideo.tasks.grounding import evaluate as grounding
from internvideo.tasks.grounding.model import Grounder
from internvideo.tasks.hands import evaluate as hands
from internvideo.tasks.navigation import evaluate as navigation
from internvideo.tasks.navigation.model import Navigator
from internvideo.tasks.open_set import evaluate as open_set
from internvideo.tasks.question_answering import evaluate as answering
from internvideo.tasks.refinement import evaluate as refinement
from internvideo.tasks.refinement.model import TCANet
from internvideo.tasks.retrieval import evaluate as retrieval
from internvideo.tasks.scoring import mean_of_splits, score
from internvideo.tasks.spatiotemporal import evaluate as regions
from internvideo.tasks.spatiotemporal import predict as spatio_temporal
from internvideo.tasks.spatiotemporal.model import ActionDetector
from internvideo.tasks.state_change import evaluate as state_change
from internvideo.tasks.table import Predictions, Result, print_result, print_results, short_names
from internvideo.tasks.temporal_localization import evaluate as features
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.verb_noun import evaluate as verb_noun
from internvideo.training import run_folder

__all__ = ["EvaluationSettings", "evaluate_task", "score_results", "score_table", "score_tables"]


class Evaluate(Protocol):
    """Writes `TASK.npz`, `TASK.json` and what else belongs to a task into `output`; prints the figures."""

    def __call__(
        self, trained: Trained, manifest: Path, output: Path, settings: EvaluationSettings, *, split: str | None
    ) -> Result:
        """Raise RecipeError, ManifestError, RunError: what does not fit together."""


@dataclass(frozen=True)
class Evaluation:
    """How a task is tested, the kinds of models that can do it, and the settings of its own that it reads."""

    evaluate: Evaluate
    models: tuple[type[nn.Module], ...]
    reads: tuple[str, ...]


EVALUATIONS: dict[str, Evaluation] = {
    "recognition": Evaluation(
        clips.evaluate_recognition,
        (VideoMAEClassifier, UniFormerV2, CrossModel),
        ("views", "crops", "restrict", "class_map"),
    ),
    "open_set": Evaluation(
        open_set.evaluate, (VideoMAEClassifier, UniFormerV2), ("views", "crops", "unknown", "train")
    ),
    "zero_shot": Evaluation(clips.language_evaluation("zero_shot"), (VideoLanguage, Clip), ("views", "crops", "also")),
    "retrieval": Evaluation(
        retrieval.evaluate, (VideoLanguage, Clip), ("views", "crops", "captions", "bank", "frames", "also")
    ),
    "multiple_choice": Evaluation(
        clips.language_evaluation("multiple_choice"),
        (VideoLanguage, Clip, PairScoringMultipleChoice),
        ("views", "crops", "also"),
    ),
    "localisation": Evaluation(features.evaluate, (ActionFormer,), ("class_scores",)),
    "grounding": Evaluation(grounding.evaluate, (Grounder,), ("features",)),
    "refinement": Evaluation(refinement.evaluate, (TCANet,), ("proposals", "class_scores")),
    "verb_noun": Evaluation(verb_noun.evaluate, (VideoMAEClassifier, UniFormerV2), ("views", "crops")),
    "anticipation": Evaluation(anticipation.evaluate, (Anticipator,), ("boxes",)),
    "state_change": Evaluation(state_change.evaluate, (ActionDetector,), ("boxes",)),
    "future_hands": Evaluation(hands.evaluate, (VideoMAEClassifier, UniFormerV2), ("views", "crops")),
    "navigation": Evaluation(navigation.evaluate, (Navigator,), ()),
    "spatio_temporal": Evaluation(regions.evaluate, (ActionDetector,), ("persons",)),
    "captioning": Evaluation(captioning.evaluate, (VideoLanguage,), ("views", "crops", "beams", "nucleus", "seed")),
    "answering": Evaluation(answering.evaluate, (VideoQuestionAnswering,), ("views", "crops")),
}
"""Task -> how it is tested."""


def evaluate_task(
    task: str, weights: Path, manifest: Path, output: Path, settings: EvaluationSettings, *, split: str | None = None
) -> Result:
    """Predict, save `TASK.npz` and `TASK.json` in `output`, print the figures.

    Raises:
        RecipeError: no such task, one that the model cannot do, or a setting that the task does not read.
        ManifestError: the manifest cannot be read, or has a class that a recognition model was not trained on.
        RunError: `output` holds the table of another model, of other rows or of clips cut otherwise, or another process
            writes there.
    """
    if task not in TASKS:
        raise RecipeError("task", f"found '{task}'", ", ".join(TASKS))
    entry = EVALUATIONS[task]
    _check_read(task, settings)
    with distributed.process_group(choose_device(settings.device)) as device:
        trained = load_trained(weights, device=str(device))
        if not isinstance(trained.model, entry.models):
            names = ", ".join(kind.__name__ for kind in entry.models)
            found = f"holds a {type(trained.model).__name__}"
            raise RecipeError(weights, found, f"{names} for {task}", "choose another task")
        with run_folder.locked(output):
            return entry.evaluate(trained, manifest, output, replace(settings, device=str(device)), split=split)


def _check_read(task: str, settings: EvaluationSettings) -> None:
    """Refuse settings of other tasks, which would be passed over in silence."""
    entry = EVALUATIONS[task]
    unread = [name for name in settings.given() if name not in entry.reads]
    if unread:
        told = (
            f"{options([name])} (of {', '.join(other for other, one in EVALUATIONS.items() if name in one.reads)})"
            for name in unread
        )
        raise RecipeError(task, f"does not read {', '.join(told)}", options((*entry.reads, *OF_EVERY_TASK)))


def score_table(path: Path) -> Result:
    """Score a saved table again and print its figures."""
    result = score(Predictions.load(path))
    print_result(result)
    return result


def score_results(results: Path, truth: Path | None, labels: Path | None, excluded: Path | None = None) -> Result:
    """Score AVA's results file against its own annotations and print the figures; see `spatio_temporal.table_of_files`.

    Raises:
        RunError: annotations or label map are not given. ManifestError: a malformed file.
    """
    if truth is None or labels is None:
        missing = "--truth" if truth is None else "--labels"
        raise RunError(results, f"results in AVA's form, without {missing}", "--truth CSV and --labels PBTXT")
    result = score(spatio_temporal.table_of_files(truth, results, labels, excluded))
    print_result(result)
    return result


def score_tables(paths: Sequence[Path]) -> Result:
    """Score tables of several splits of one set (HMDB51's three), print each and their mean; returns the mean.

    Raises:
        RunError: no tables, or such as cannot be averaged.
    """
    tables = dict(zip(short_names(paths), map(Predictions.load, paths), strict=True))
    results = {name: score(table) for name, table in tables.items()}
    mean = mean_of_splits(tables, results)
    print_results(mean["task"].replace("_", " "), {**results, f"mean of {len(paths)}": mean})
    return mean
