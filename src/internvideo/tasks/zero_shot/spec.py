"""The task as one object: Zero-shot recognition from class names."""

from __future__ import annotations

from internvideo.models.clip import Clip
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.clip_evaluation import EnsembleOptions
from internvideo.tasks.task import TaskSpec
from internvideo.tasks.zero_shot.evaluate import evaluate
from internvideo.tasks.zero_shot.predict import NAME, score

SPEC = TaskSpec(
    NAME,
    "recognition from class names alone, 16 prompt templates",
    "4.3.3",
    (VideoLanguage, Clip),
    EnsembleOptions,
    evaluate,
    score,
)
