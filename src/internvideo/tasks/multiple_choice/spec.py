"""Task specification: Multiple choice: which of a few sentences fits a clip."""

from __future__ import annotations

from internvideo.data.settings import EvaluationClipData
from internvideo.models.clip import CLIPModel
from internvideo.models.heads import PairScoringMultipleChoice
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.clip_evaluation import EnsembleOptions
from internvideo.tasks.multiple_choice.build import STAGE
from internvideo.tasks.multiple_choice.evaluate import evaluate
from internvideo.tasks.multiple_choice.predict import NAME, score
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "which of the texts fits the clip",
    "4.3.3",
    (VideoLanguage, CLIPModel, PairScoringMultipleChoice),
    EnsembleOptions,
    evaluate,
    score,
    stages=(STAGE,),
    data=EvaluationClipData,
)
