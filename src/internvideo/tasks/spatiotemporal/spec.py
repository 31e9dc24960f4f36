"""The task as one object: Spatio-temporal localization: what each person at a key frame does (AVA)."""

from __future__ import annotations

from internvideo.tasks.spatiotemporal.build import STAGE
from internvideo.tasks.spatiotemporal.evaluate import PersonOptions, evaluate
from internvideo.tasks.spatiotemporal.model import MODELS, ActionDetector
from internvideo.tasks.spatiotemporal.predict import NAME, score
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
