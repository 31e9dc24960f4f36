"""Task specification: Text-video retrieval."""

from __future__ import annotations

from internvideo.data.settings import EvaluationClipData
from internvideo.models.clip import CLIPModel
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.retrieval.build import STAGE
from internvideo.tasks.retrieval.evaluate import RetrievalOptions, evaluate
from internvideo.tasks.retrieval.predict import NAME, score
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "text to video and video to text: raw, dual softmax and, with a bank, query-bank normalized",
    "4.3.2",
    (VideoLanguage, CLIPModel),
    RetrievalOptions,
    evaluate,
    score,
    stages=(STAGE,),
    data=EvaluationClipData,
)
