"""Localize actions in a video: extract features with an encoder, then apply the detector that was trained on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from internvideo.errors import RecipeError
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import RESERVED, Item
from internvideo.features.feature_layers import POOLED
from internvideo.features.read_report import ReadReport
from internvideo.features.video_files import VideoFile, unique_file_names
from internvideo.features.window_sampling import WindowRule
from internvideo.inference.hub_folder import model_hash
from internvideo.inference.video_model import VideoModel
from internvideo.plots import charts
from internvideo.storage import write_text
from internvideo.tasks.temporal_localization.build import FeatureData
from internvideo.tasks.temporal_localization.data import read_feature_set
from internvideo.tasks.temporal_localization.evaluate import MIN_PLOTTED_SCORE, Detector, timelines_html
from internvideo.tasks.temporal_localization.predict import find_segments

ACTION = "action"
"""Label of every segment of a class-agnostic detector."""


@dataclass(frozen=True)
class Action:
    """A detected segment: start and end in seconds, class, and score (0..1)."""

    start: float
    end: float
    label: str
    score: float


@dataclass(frozen=True)
class Localization:
    """The actions of a video, best first, and its duration in seconds."""

    path: str
    duration: float
    actions: tuple[Action, ...]

    def plot(self, score_threshold: float = MIN_PLOTTED_SCORE) -> str:
        """Plot the timeline as an <svg>, without actions below the threshold."""
        shown = [(a.start, a.end, a.label, min(a.score, 1.0)) for a in self.actions if a.score >= score_threshold]
        return charts.timeline(self.duration, shown, title=Path(self.path).name)


def extraction_settings(model: VideoModel, detector: Detector) -> ExtractSettings:
    """Return the settings with which the features of a detector must be extracted.

    Raises:
        RecipeError: the detector does not record them, or was trained on features of another encoder.
    """
    provenance = detector.trained.extra_metadata
    if not {"window", "stride"} <= set(provenance):
        found = "does not record how its features were extracted"
        raise RecipeError("detector", found, "a detector trained on features of `internvideo extract`")
    expected, actual = str(provenance.get("weights_sha256", "")), model_hash(model)
    if expected != actual:
        requirement = f"{provenance.get('model')} {expected[:12]}, on whose features the detector was trained"
        raise RecipeError("encoder", f"{model.name} {actual[:12]}", requirement)
    return ExtractSettings(
        WindowRule(int(provenance["window"]), int(provenance["stride"]), provenance.get("fps")),
        str(provenance.get("layer", POOLED)),
        spatial_pool_size=int(provenance.get("grid", 1)),
        tiles=int(provenance.get("tiles", 1)),
    )


def localize(
    video: VideoFile,
    model: VideoModel,
    detector: Detector,
    *,
    class_scores: Mapping[str, float] | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Localization:
    """Find the actions of one video.

    Args:
        video: a file or a span of one; times of the result are relative to the start of the span.
        model: the encoder on whose features the detector was trained. detector: from `load_detector`.
        class_scores: of a class-agnostic detector: label -> score of the video; each segment gets the two best labels.
        batch_size: windows per batch; see `ExtractSettings`. progress: show a bar on stderr.

    Raises:
        VideoError: a video that cannot be read. RecipeError: a detector that was trained on another encoder.
    """
    settings = {"class_scores": class_scores, "batch_size": batch_size, "progress": progress}
    with TemporaryDirectory(prefix="internvideo-") as folder:
        return next(localize_all([video], model, detector, Path(folder), **settings)[1])[1]  # type: ignore[arg-type]  # as above


def localize_all(
    videos: Sequence[VideoFile],
    model: VideoModel,
    detector: Detector,
    folder: Path,
    *,
    class_scores: Mapping[str, float] | None = None,
    batch_size: int | None = None,
    ray: str | None = None,
    progress: bool | None = None,
) -> tuple[ReadReport, Iterator[tuple[VideoFile, Localization]]]:
    """Find the actions of many videos: extract the features of all of them, then run the detector on each.

    Args:
        videos, model, detector, class_scores, batch_size, progress: as for `localize`.
        folder: where the features are written: the same call resumes, later ones read only new or changed videos.
        ray: address of a Ray cluster for the extraction; see `ExtractSettings`.

    Returns:
        The report of the extraction, and an iterator of (video, result) over the readable videos, in their order.

    Raises:
        VideoError: no video can be read. RecipeError: a detector that was trained on another encoder. RunError: the
        folder has features of another model or other settings.
    """
    settings = replace(extraction_settings(model, detector), batch_size=batch_size, ray=ray)
    items = [
        Item(name, video) for name, video in zip(unique_file_names(videos, reserved=RESERVED), videos, strict=True)
    ]
    report = extract(items, model, folder, settings, progress=progress)
    return report, _detect(items, detector, folder, class_scores)


def _detect(
    items: Sequence[Item], detector: Detector, folder: Path, class_scores: Mapping[str, float] | None
) -> Iterator[tuple[VideoFile, Localization]]:
    recipe = detector.trained.recipe
    classes, scores = detector.trained.classes, None
    if detector.model.config.num_classes == 1 and len(classes) > 1:
        classes = (ACTION,)
        if class_scores is not None:
            classes, scores = tuple(class_scores), np.asarray(list(class_scores.values()))
    feature_settings = recipe.data_as(FeatureData).features.model_copy(update={"annotations": None, "folder": None})
    decoding = detector.settings.decoding(num_classes=detector.model.config.num_classes)
    device = next(detector.model.parameters()).device
    features_of = {features.id: features for features in read_feature_set(folder, feature_settings).videos}
    for item in items:
        if (features := features_of.get(item.id)) is None:
            continue
        segments = find_segments(detector.model, features, feature_settings, decoding, device, scores)
        rows = zip(segments.spans.tolist(), segments.scores, segments.labels, strict=True)
        actions = [Action(start, end, classes[label], float(score)) for (start, end), score, label in rows]
        actions.sort(key=lambda action: -action.score)
        yield item.video, Localization(item.video.path, features.duration, tuple(actions))


def check_plot(target: Path) -> None:
    """Raise RecipeError for a plot whose name does not end in .svg or .html."""
    if target.suffix not in (".svg", ".html"):
        raise RecipeError("plot", f"'{target.name}'", "a name that ends in .html or .svg")


def write_plot(localization: Localization, target: Path, score_threshold: float = MIN_PLOTTED_SCORE) -> None:
    """Write the timeline as .html or .svg. Raises RunError; RecipeError for another extension."""
    check_plot(target)
    plot = localization.plot(score_threshold)
    write_text(target, timelines_html([plot]) if target.suffix == ".html" else plot + "\n")
