"""Task specification: Verbs and nouns of first-person clips."""

from __future__ import annotations

from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.task import ClipOptions, TaskSpec
from internvideo.tasks.verb_noun.build import STAGE
from internvideo.tasks.verb_noun.evaluate import evaluate
from internvideo.tasks.verb_noun.predict import NAME, score

SPEC = TaskSpec(
    NAME,
    "verbs and nouns of clips: top-1 and top-5 of each",
    "Ego4D, arXiv 2211.09529",
    (ClipClassifier,),
    ClipOptions,
    evaluate,
    score,
    stages=(STAGE,),
)
