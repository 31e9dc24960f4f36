"""Task specification: Future hands: where both hands will be (Ego4D)."""

from __future__ import annotations

from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.future_hands.build import STAGE
from internvideo.tasks.future_hands.evaluate import evaluate
from internvideo.tasks.future_hands.predict import NAME, score
from internvideo.tasks.task import ClipOptions, TaskSpec

SPEC = TaskSpec(
    NAME,
    "where hands will be at five moments: mean displacement in pixels",
    "Ego4D, arXiv 2211.09529",
    (ClipClassifier,),
    ClipOptions,
    evaluate,
    score,
    stages=(STAGE,),
)
