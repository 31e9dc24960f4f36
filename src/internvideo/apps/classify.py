"""Classify clips among given labels, the classes of the model, or those of a fitted probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from internvideo.inference.video_model import VideoModel
from internvideo.probing.probe import Probe


class Scorer:
    """Compute probabilities of clips. Texts are encoded once; settings are checked before any video is opened.

    Args:
        model: the encoder.
        labels: at least two texts, for a model with a text tower; None for the classes of the model.
        probe: a classifier of `internvideo fit` instead of labels.

    Raises:
        RecipeError: labels that this model does not support. WeightsError: a classifier of another encoder.
    """

    def __init__(self, model: VideoModel, labels: Sequence[str] | None = None, probe: Probe | None = None) -> None:
        self.model, self.labels, self.probe = model, labels, probe
        if probe is not None:
            probe.check(model)
        else:
            self.names = model.label_names(labels)

    def __call__(self, clips: Tensor) -> list[dict[str, float]]:
        """Return label -> probability, by falling probability, for clips (B, 3, T, S, S)."""
        if self.probe is not None:
            return self.probe.predict(self.probe.features(self.model, clips))
        rows = self.model.probabilities(clips, self.labels)
        return [{self.names[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in rows]
