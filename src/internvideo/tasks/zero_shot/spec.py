"""Task specification: Zero-shot recognition from class names."""

from __future__ import annotations

from internvideo.data.settings import EvaluationClipData
from internvideo.models.clip import CLIPModel
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.task import TaskSpec
from internvideo.tasks.zero_shot.evaluate import ZeroShotOptions, evaluate
from internvideo.tasks.zero_shot.predict import NAME, score

SPEC = TaskSpec(
    NAME,
    "recognition from class names alone, prompt templates of the data set or 16 published ones",
    "4.3.3",
    (VideoLanguage, CLIPModel),
    ZeroShotOptions,
    evaluate,
    score,
    data=EvaluationClipData,
)
