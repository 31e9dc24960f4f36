"""Task specification: Refinement of another detector's segments (TCANet)."""

from __future__ import annotations

from internvideo.tasks.refinement.build import STAGE
from internvideo.tasks.refinement.evaluate import RefinementOptions, evaluate
from internvideo.tasks.refinement.model import MODELS, TCANet
from internvideo.tasks.refinement.predict import NAME, score
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "a detector's segments with better ends: mAP before and after",
    "4.3.1",
    (TCANet,),
    RefinementOptions,
    evaluate,
    score,
    stages=(STAGE,),
    models=MODELS,
)
