"""Task specification: Captioning: a sentence per clip."""

from __future__ import annotations

from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.captioning.evaluate import CaptioningOptions, evaluate
from internvideo.tasks.captioning.predict import NAME, score
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "a sentence for the clip: CIDEr, BLEU-4, ROUGE-L, METEOR without synonyms",
    "3.1.2",
    (VideoLanguage,),
    CaptioningOptions,
    evaluate,
    score,
)
