"""The table EVALUATIONS: what tests a model on a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import nn

from internvideo.errors import RecipeError, RunError
from internvideo.evaluation import (
    answering,
    anticipation,
    captioning,
    clips,
    features,
    grounding,
    hands,
    navigation,
    open_set,
    refinement,
    regions,
    retrieval,
    state_change,
    verb_noun,
)
from internvideo.evaluation.settings import EvaluationSettings
from internvideo.models.action_detector import ActionDetector
from internvideo.models.actionformer import ActionFormer
from internvideo.models.anticipation import Anticipator
from internvideo.models.clip import Clip
from internvideo.models.cross_model import CrossModel
from internvideo.models.grounding import Grounder
from internvideo.models.heads import RankedMultipleChoice, VideoQuestionAnswering
from internvideo.models.navigator import Navigator
from internvideo.models.tcanet import TCANet
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.pipeline import Trained, load_trained
from internvideo.recipe import TASKS, choose_device
from internvideo.tasks import spatio_temporal
from internvideo.tasks.scoring import mean_of_splits, score
from internvideo.tasks.table import Result, Table, print_result, print_results, short_names
from internvideo.training import distributed


class Evaluate(Protocol):
    """Writes `TASK.npz`, `TASK.json` and what else belongs to a task into `output`; prints the figures."""

    def __call__(
        self, trained: Trained, manifest: Path, output: Path, settings: EvaluationSettings, *, split: str | None
    ) -> Result:
        """Raise RecipeError, ManifestError, RunError: what does not fit together."""


@dataclass(frozen=True)
class Evaluation:
    """How a task is tested, and the kinds of models that can do it."""

    evaluate: Evaluate
    models: tuple[type[nn.Module], ...]


EVALUATIONS: dict[str, Evaluation] = {
    "recognition": Evaluation(clips.evaluate_recognition, (VideoMAEClassifier, UniFormerV2, CrossModel)),
    "open_set": Evaluation(open_set.evaluate, (VideoMAEClassifier, UniFormerV2)),
    "zero_shot": Evaluation(clips.language_evaluation("zero_shot"), (VideoLanguage, Clip)),
    "retrieval": Evaluation(retrieval.evaluate, (VideoLanguage, Clip)),
    "multiple_choice": Evaluation(
        clips.language_evaluation("multiple_choice"), (VideoLanguage, Clip, RankedMultipleChoice)
    ),
    "localisation": Evaluation(features.evaluate, (ActionFormer,)),
    "grounding": Evaluation(grounding.evaluate, (Grounder,)),
    "refinement": Evaluation(refinement.evaluate, (TCANet,)),
    "verb_noun": Evaluation(verb_noun.evaluate, (VideoMAEClassifier, UniFormerV2)),
    "anticipation": Evaluation(anticipation.evaluate, (Anticipator,)),
    "state_change": Evaluation(state_change.evaluate, (ActionDetector,)),
    "future_hands": Evaluation(hands.evaluate, (VideoMAEClassifier, UniFormerV2)),
    "navigation": Evaluation(navigation.evaluate, (Navigator,)),
    "spatio_temporal": Evaluation(regions.evaluate, (ActionDetector,)),
    "captioning": Evaluation(captioning.evaluate, (VideoLanguage,)),
    "answering": Evaluation(answering.evaluate, (VideoQuestionAnswering,)),
}
"""Task -> how it is tested."""


def evaluate_task(
    task: str, weights: Path, manifest: Path, output: Path, settings: EvaluationSettings, *, split: str | None = None
) -> Result:
    """Predict, save `TASK.npz` and `TASK.json` in `output`, print the figures.

    Raises:
        RecipeError: no such task, or one that the model cannot do.
        ManifestError: the manifest cannot be read, or has a class that a recognition model was not trained on.
        RunError: `output` holds the table of another model, of other rows or of clips cut otherwise.
    """
    if task not in TASKS:
        raise RecipeError("task", f"found '{task}'", ", ".join(TASKS))
    entry = EVALUATIONS[task]
    with distributed.process_group(choose_device(settings.device)) as device:
        trained = load_trained(weights, device=str(device))
        if not isinstance(trained.model, entry.models):
            names = ", ".join(kind.__name__ for kind in entry.models)
            found = f"holds a {type(trained.model).__name__}"
            raise RecipeError(weights, found, f"{names} for {task}", "choose another task")
        return entry.evaluate(trained, manifest, output, replace(settings, device=str(device)), split=split)


def score_table(path: Path) -> Result:
    """Score a saved table again and print its figures."""
    result = score(Table.load(path))
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
    tables = dict(zip(short_names(paths), map(Table.load, paths), strict=True))
    results = {name: score(table) for name, table in tables.items()}
    mean = mean_of_splits(tables, results)
    print_results(mean["task"].replace("_", " "), {**results, f"mean of {len(paths)}": mean})
    return mean
