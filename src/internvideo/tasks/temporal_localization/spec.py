"""Task specification: Temporal localization: which action happens when (ActionFormer)."""

from __future__ import annotations

from internvideo.tasks.task import TaskSpec
from internvideo.tasks.temporal_localization.build import STAGE
from internvideo.tasks.temporal_localization.evaluate import DetectionOptions, evaluate
from internvideo.tasks.temporal_localization.model import MODELS, ActionFormer
from internvideo.tasks.temporal_localization.predict import NAME, score

SPEC = TaskSpec(
    NAME,
    "when which action happens: mAP over tIoU thresholds, recall",
    "4.3.1",
    (ActionFormer,),
    DetectionOptions,
    evaluate,
    score,
    stages=(STAGE,),
    models=MODELS,
)
