"""Task specification: Spatio-temporal localization: what each person at a key frame does (AVA)."""

from __future__ import annotations

from internvideo.tasks.spatio_temporal_localization.build import STAGE
from internvideo.tasks.spatio_temporal_localization.evaluate import PersonOptions, evaluate
from internvideo.tasks.spatio_temporal_localization.model import MODELS, ActionDetector
from internvideo.tasks.spatio_temporal_localization.predict import NAME, score
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "what every person at a key frame does: frame mAP at IoU 0.5",
    "4.3.1",
    (ActionDetector,),
    PersonOptions,
    evaluate,
    score,
    stages=(STAGE,),
    models=MODELS,
)
