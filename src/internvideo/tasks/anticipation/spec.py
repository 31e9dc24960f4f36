"""Task specification: Short-term anticipation: which object will be touched, how and when (Ego4D)."""

from __future__ import annotations

from internvideo.tasks.anticipation.build import STAGE
from internvideo.tasks.anticipation.evaluate import evaluate
from internvideo.tasks.anticipation.model import MODELS, Anticipator
from internvideo.tasks.anticipation.predict import NAME, score
from internvideo.tasks.spatio_temporal_localization.box_evaluation import BoxOptions
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "what will be touched next, how and when: top-5 mAP",
    "Ego4D, arXiv 2211.09529",
    (Anticipator,),
    BoxOptions,
    evaluate,
    score,
    stages=(STAGE,),
    models=MODELS,
)
