"""Label the windows of a collection with linear classifiers of `internvideo fit`, from their stored vectors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from internvideo.errors import WeightsError
from internvideo.inference.video_model import VideoModel
from internvideo.probing.probe import UNKNOWN, Probe
from internvideo.search.store import Store
from internvideo.weights.fetch import sha256_of


def label(store: Store, model: VideoModel, classifier: Path) -> int:
    """Label all windows with a classifier; return the number of newly labeled videos.

    Raises:
        WeightsError: not a classifier of this model, or an attentive one (it needs tokens, which are not stored).
    """
    path = Path(os.path.abspath(classifier))
    probe = _linear_probe(path, model)
    name, digest = path.parent.name if path.stem == "classifier" else path.stem, sha256_of(path)
    with store.records.transaction():
        if store.records.classifiers().get(name, ("",))[0] != digest:
            store.records.set_classifier(name, digest, [*probe.classes, UNKNOWN])
        store.records.set_fact(f"classifier {name}", str(path))
        return _label(store, name, probe)


def label_new(store: Store, model: VideoModel) -> None:
    """Label the videos that are new since a classifier was used."""
    for name in store.records.classifiers():
        probe = _linear_probe(Path(store.records.fact(f"classifier {name}")), model)
        with store.records.transaction():
            _label(store, name, probe)


def _label(store: Store, name: str, probe: Probe) -> int:
    known, snapshot, count = store.records.labels(name), store.snapshot(), 0
    places = {label: place for place, label in enumerate([*probe.classes, UNKNOWN])}
    for index, video in enumerate(snapshot.videos):
        if video.id in known:
            continue
        rows = snapshot.rows(index)
        features = snapshot.vectors(rows) * snapshot.windows[rows, 3:].astype(np.float32)
        answers = [next(iter(answer.items())) for answer in probe.predict(features)]
        labels = np.array([places[label] for label, _ in answers])
        store.records.set_labels(video.id, name, labels, np.array([value for _, value in answers]))
        count += 1
    return count


def _linear_probe(path: Path, model: VideoModel) -> Probe:
    probe = Probe.load(path)
    probe.check(model)
    if probe.head.kind != "video":
        raise WeightsError(path, "is an attentive classifier, which reads tokens", "a linear one", "fit --head linear")
    return probe
