"""Classify clips with labels, the classes of the model or a fitted probe; encode many videos for classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from internvideo.features.embedding import EmbeddingSettings, TableWriter
from internvideo.features.engine import TimedWindows, vector_provenance
from internvideo.features.feature_layers import Encode
from internvideo.features.ray_engine import run_on
from internvideo.features.vector_files import PartsFolder
from internvideo.features.video_files import VideoFile
from internvideo.inference.video_model import VideoModel
from internvideo.probing.probe import Probe
from internvideo.storage import folder_lock


class Scorer:
    """Compute class probabilities of clips. Labels are encoded once; settings are checked at construction.

    Args:
        model: the encoder.
        labels: at least two texts, for a model with a text tower; None for the classes of the model.
        probe: a classifier of `internvideo fit` instead of labels.

    Attributes:
        make_encode: function of a model that returns `encode`, from clips to the values (n, ...) that `results` takes.

    Raises:
        RecipeError: labels that this model does not support. WeightsError: a classifier of another encoder.
    """

    def __init__(self, model: VideoModel, labels: Sequence[str] | None = None, probe: Probe | None = None) -> None:
        self.probe, self.names = probe, () if probe is not None else model.label_names(labels)
        if probe is not None:
            probe.check(model)
        self.make_encode: Callable[[VideoModel], Encode] = (
            partial(_probabilities, labels) if probe is None else partial(_features, probe)
        )
        self._encode = self.make_encode(model)

    def __call__(self, clips: Tensor) -> list[dict[str, float]]:
        """Return {label: probability} in descending order for clips (B, 3, T, S, S)."""
        return self.results(self._encode(clips))

    def results(self, values: Tensor) -> list[dict[str, float]]:
        """Return {label: probability} in descending order for encoded clips."""
        if self.probe is not None:
            return self.probe.predict(values)
        rows = values.numpy()
        return [{self.names[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in rows]


def _probabilities(labels: Sequence[str] | None, model: VideoModel) -> Encode:
    return lambda clips: torch.from_numpy(model.probabilities(clips, labels))


def _features(probe: Probe, model: VideoModel) -> Encode:
    return partial(probe.features, model)


def encode_videos(
    videos: Sequence[VideoFile],
    model: VideoModel,
    make_encode: Callable[[VideoModel], Encode],
    output: Path,
    settings: EmbeddingSettings,
    values_description: object,
    *,
    overwrite: bool = False,
) -> TableWriter:
    """Encode the windows of videos into OUTPUT.parts, from which the same call resumes; see `embed`.

    Args:
        make_encode: function of a model that returns the function from clips to values.
        values_description: what the values are, as JSON values; OUTPUT.parts of other values is refused.
        overwrite: recompute the values in OUTPUT.parts.

    Returns:
        The writer, with a complete report; its `read_finished` yields the values of each video.

    Raises:
        As `embed`.
    """
    size = {"window": settings.window_seconds, "stride": settings.stride_seconds, "values": values_description}
    provenance = vector_provenance(model, {**size, "width": 0})
    windows = TimedWindows(model.preprocessing, settings.window_seconds, settings.stride_seconds)
    with folder_lock(PartsFolder(output).folder):
        writer = TableWriter(videos, output, provenance, overwrite=overwrite)
        batch_size, workers = settings.batch_size, settings.workers
        run_on(settings.ray, writer, windows, model, make_encode, batch_size=batch_size, workers=workers)
        writer.final_report()
    return writer
