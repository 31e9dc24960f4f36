"""Task specification: State-change objects: which object changes its state (Ego4D)."""

from __future__ import annotations

from internvideo.tasks.spatio_temporal_localization.box_evaluation import BoxOptions
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector
from internvideo.tasks.state_change.evaluate import evaluate
from internvideo.tasks.state_change.predict import NAME, score
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "which object changes its state: COCO AP",
    "Ego4D, arXiv 2211.09529",
    (ActionDetector,),
    BoxOptions,
    evaluate,
    score,
)
