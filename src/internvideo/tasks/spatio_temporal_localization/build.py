"""Build training jobs of action detection at key frames."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from internvideo.data.preprocessing import Preprocessing
from internvideo.data.settings import KeyFrameAugment, SampledData
from internvideo.tasks.spatio_temporal_localization.data import KeyFrameClipSettings, KeyFrameLoader, KeyFrameSettings
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector
from internvideo.tasks.spatio_temporal_localization.object_boxes import (
    detections_of,
    object_frames,
    read_detections,
    with_training_targets,
)
from internvideo.tasks.spatio_temporal_localization.stage import RegionSettings, RegionStage
from internvideo.training.clip_job import check_clips, read_training_rows, refuse_flip
from internvideo.training.model_setup import init_model, load_init_weights, setting_errors
from internvideo.training.recipe import Job, Recipe, StageSpec


class KeyFrameData(SampledData):
    """Data settings: clips around key frames, with boxes."""

    augment: KeyFrameAugment = KeyFrameAugment()
    key_frames: KeyFrameSettings = Field(default_factory=KeyFrameSettings)


class RegionData(KeyFrameData):
    """Data settings: clips around key frames, of whole frames or (`around`) one per box."""

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing of whole frames."""
        clips = super().preprocessing()
        return clips if self.key_frames.around is not None else clips.with_settings(size=self.key_frames.short)


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe. Raises RecipeError, ManifestError, WeightsError."""
    data, settings = recipe.data_as(KeyFrameData), recipe.settings_as(RegionSettings)
    manifest = read_training_rows(recipe)
    refuse_flip(data.augment.flip, manifest.classes)
    model = init_model(recipe, len(manifest.classes), ActionDetector)
    check_clips(recipe, model)
    head_init_lines = load_init_weights(model, recipe, manifest.classes)
    with setting_errors("settings"):
        stage = RegionStage(model, settings)
    frames = None
    if data.key_frames.candidates is not None:
        detections = read_detections(data.key_frames.candidates)
        frames = [with_training_targets(frame, detections_of(frame, detections)) for frame in object_frames(manifest)]
    clip_settings = make_clip_settings(data, model.config.num_classes)
    loader = KeyFrameLoader(manifest, clip_settings, data.loader, skipped=skipped, frames=frames)
    return Job(recipe, stage, loader, manifest.classes, manifest.fingerprint, head_init_lines=head_init_lines)


def make_clip_settings(data: KeyFrameData, num_classes: int) -> KeyFrameClipSettings:
    """Return the settings of clips centered at a key frame."""
    transform = data.key_frames.transform(data.augment.size, flip=data.augment.flip)
    return KeyFrameClipSettings(data.sampling.frames, data.sampling.stride or 1, transform, num_classes)


STAGE = StageSpec(
    name="spatio_temporal_localization",
    about="classify the actions of each person box at key frames (AVA)",
    settings=RegionSettings,
    data=RegionData,
    stage=RegionStage,
    models=(ActionDetector,),
    build=build,
    classifier_paths=("",),
)
