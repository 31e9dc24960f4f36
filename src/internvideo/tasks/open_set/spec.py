"""Task specification: Open-set recognition: which class, how uncertain, known or unknown."""

from __future__ import annotations

from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.open_set.build import STAGE
from internvideo.tasks.open_set.evaluate import OpenSetOptions, evaluate
from internvideo.tasks.open_set.predict import NAME, score
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "which class, how unsure, and unknown or not: evidential and five other methods",
    "4.3.3",
    (ClipClassifier,),
    OpenSetOptions,
    evaluate,
    score,
    stages=(STAGE,),
)
