"""Task specification: Language queries: when in a long video the answer to a sentence is shown (Ego4D)."""

from __future__ import annotations

from internvideo.tasks.grounding.build import STAGE
from internvideo.tasks.grounding.evaluate import GroundingOptions, evaluate
from internvideo.tasks.grounding.model import MODELS, Grounder
from internvideo.tasks.grounding.predict import NAME, score
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "which part of a video answers a query: R@1 and R@5 at tIoU 0.3 and 0.5 beside baselines",
    "Ego4D, arXiv 2211.09529",
    (Grounder,),
    GroundingOptions,
    evaluate,
    score,
    stages=(STAGE,),
    models=MODELS,
)
