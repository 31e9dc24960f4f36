"""The task as one object: Text-video retrieval."""

from __future__ import annotations

from internvideo.data.settings import EvaluationClipData
from internvideo.models.clip import Clip
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.retrieval.build import STAGE
from internvideo.tasks.retrieval.evaluate import RetrievalOptions, evaluate
from internvideo.tasks.retrieval.predict import NAME, score
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "text to video and video to text: raw, dual softmax and, with a bank, query-bank normalised",
    "4.3.2",
    (VideoLanguage, Clip),
    RetrievalOptions,
    evaluate,
    score,
    stages=(STAGE,),
    data=EvaluationClipData,
)
