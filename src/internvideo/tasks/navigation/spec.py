"""Task specification: Vision-language navigation in continuous environments (VLN-CE)."""

from __future__ import annotations

from internvideo.tasks.navigation.build import STAGE, WAYPOINTS
from internvideo.tasks.navigation.evaluate import evaluate
from internvideo.tasks.navigation.model import MODELS, Navigator
from internvideo.tasks.navigation.predict import NAME, score
from internvideo.tasks.task import EvaluateOptions, TaskSpec

SPEC = TaskSpec(
    NAME,
    "walks that follow instructions: NE, PL, SR, OSR, SPL, nDTW beside baselines",
    "4.3.2",
    (Navigator,),
    EvaluateOptions,
    evaluate,
    score,
    stages=(WAYPOINTS, STAGE),
    models=MODELS,
)
