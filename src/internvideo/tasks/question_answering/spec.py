"""Task specification: Video question answering."""

from __future__ import annotations

from internvideo.models.heads import VideoQuestionAnswering
from internvideo.tasks.question_answering.build import STAGE
from internvideo.tasks.question_answering.evaluate import evaluate
from internvideo.tasks.question_answering.predict import NAME, score
from internvideo.tasks.task import ClipOptions, TaskSpec

SPEC = TaskSpec(
    NAME,
    "questions about the clip: accuracy over all, and over those that can be answered",
    "4.3.2",
    (VideoQuestionAnswering,),
    ClipOptions,
    evaluate,
    score,
    stages=(STAGE,),
)
