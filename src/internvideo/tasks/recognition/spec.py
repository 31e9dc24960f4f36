"""Task specification: Action recognition."""

from __future__ import annotations

from internvideo.models.cross_model import CrossModel
from internvideo.models.encoder import ClipClassifier
from internvideo.tasks.recognition.evaluate import RecognitionOptions, evaluate
from internvideo.tasks.recognition.predict import NAME, score
from internvideo.tasks.task import TaskSpec

SPEC = TaskSpec(
    NAME,
    "top-1, top-5 and mean class accuracy of a classifier over views",
    "4.3.1",
    (ClipClassifier, CrossModel),
    RecognitionOptions,
    evaluate,
    score,
)
