"""Actions in a video, when they begin and end: features by an encoder, segments by a detector trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from internvideo.errors import RecipeError
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import Item
from internvideo.features.feature_layers import POOLED
from internvideo.features.video_files import VideoFile
from internvideo.features.window_sampling import WindowRule
from internvideo.inference.video_model import VideoModel
from internvideo.plots import charts as figures
from internvideo.probing.cached_features import model_hash
from internvideo.storage import write_text
from internvideo.tasks.temporal_localization.data import read_feature_set
from internvideo.tasks.temporal_localization.evaluate import LIKELY, Detector, page
from internvideo.tasks.temporal_localization.predict import find_segments

ACTION = "action"
"""What a detector without classes calls everything that it finds."""


@dataclass(frozen=True)
class Action:
    """Something that happens: s, s, its class, and how sure that is (0..1)."""

    start: float
    end: float
    label: str
    score: float


@dataclass(frozen=True)
class Localisation:
    """The actions of a video, best first, and how long it is, s."""

    path: str
    duration: float
    actions: tuple[Action, ...]

    def picture(self, least: float = LIKELY) -> str:
        """The timeline as an <svg>, without actions below a score."""
        found = [(a.start, a.end, a.label, min(a.score, 1.0)) for a in self.actions if a.score >= least]
        return figures.timeline(self.duration, found, title=Path(self.path).name)


def check_pair(model: VideoModel, detector: Detector) -> ExtractSettings:
    """How features must be made for a detector.

    Raises:
        RecipeError: the detector does not tell, or learned from features of another encoder.
    """
    made = detector.trained.context
    if not {"window", "stride"} <= set(made):
        raise RecipeError(
            "detector", "does not tell how its features were made", "one trained on `internvideo extract`"
        )
    theirs, ours = str(made.get("weights_sha256", "")), model_hash(model)
    if theirs != ours:
        found = f"{model.name} {ours[:12]}"
        raise RecipeError("encoder", found, f"{made.get('model')} {theirs[:12]}, whose features the detector knows")
    rule = WindowRule(int(made["window"]), int(made["stride"]), made.get("fps"))
    cells = {name: int(made.get(name, 1)) for name in ("grid", "tiles")}
    return ExtractSettings(rule, str(made.get("layer", POOLED)), **cells)


def localize(
    video: VideoFile,
    model: VideoModel,
    detector: Detector,
    *,
    class_scores: Mapping[str, float] | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Localisation:
    """Find the actions of one video.

    Args:
        video: a file or a piece of one; times are from its start.
        model: the encoder whose features the detector learned from. detector: of `load_detector`.
        class_scores: for a detector without classes, label -> score of the whole video; its two best name the segments.
        batch_size: windows at once; see `ExtractSettings`. progress: a bar on the error stream.

    Raises:
        VideoError: a video that cannot be read. RecipeError: an encoder and a detector that do not belong together.
    """
    settings = replace(check_pair(model, detector), batch_size=batch_size)
    recipe = detector.trained.recipe
    classes, scores = detector.trained.classes, None
    if detector.model.config.classes == 1 and len(classes) > 1:
        classes = (ACTION,)
        if class_scores is not None:
            classes, scores = tuple(class_scores), np.asarray(list(class_scores.values()))
    with TemporaryDirectory(prefix="internvideo-") as folder:
        extract([Item("video", video)], model, Path(folder), settings, progress=progress)
        reading = recipe.data.features.model_copy(update={"annotations": None, "folder": None})
        found = read_feature_set(Path(folder), reading).videos[0]
        decoding = detector.settings.decoding(classes=detector.model.config.classes)
        device = next(detector.model.parameters()).device
        segments = find_segments(detector.model, found, reading, decoding, device, scores)
    rows = zip(segments.spans.tolist(), segments.scores, segments.labels, strict=True)
    actions = [Action(start, end, classes[label], float(score)) for (start, end), score, label in rows]
    return Localisation(video.path, found.duration, tuple(sorted(actions, key=lambda action: -action.score)))


def check_picture(target: Path) -> None:
    """Raise RecipeError for a name that no picture can have."""
    if target.suffix not in (".svg", ".html"):
        raise RecipeError("picture", f"'{target.name}'", "a name that ends in .html or .svg")


def draw(found: Localisation, target: Path, least: float = LIKELY) -> None:
    """The timeline as a page (.html) or a picture (.svg). Raises RunError; RecipeError for another ending."""
    check_picture(target)
    picture = found.picture(least)
    write_text(target, page([picture]) if target.suffix == ".html" else picture + "\n")
