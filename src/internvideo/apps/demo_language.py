"""Evaluate the video-language model of a demo: zero-shot tasks, and captions with their correct and wrong words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.sampling import linspace_frames
from internvideo.data.tokenizer import Tokenizer
from internvideo.distributed import choose_device
from internvideo.evaluation import score
from internvideo.inference.caption_generation import CaptionGenerator
from internvideo.models.video_language import VideoLanguage
from internvideo.plots.report import GeneratedCaption, MetricValue
from internvideo.tasks.clip_evaluation import make_clip_inputs
from internvideo.tasks.multiple_choice.evaluate import predict as predict_choices
from internvideo.tasks.table import Predictions, save_result
from internvideo.tasks.task import ClipOptions
from internvideo.tasks.zero_shot.evaluate import predict as predict_zero_shot
from internvideo.training.trained import Trained
from internvideo.video.reader import Video

Predict = Callable[[Trained, Manifest, ClipOptions], Predictions]

DESCRIPTIONS = {
    "zero_shot_recognition": "recognition from class names, trained classes",
    "zero_shot_unseen_classes": "recognition from class names, classes that no clip of the training shows",
    "multiple_choice": "the right one of several sentences",
}


def language_tasks(
    output: Path, language: Trained, test: Manifest, unseen: Path | None, settings: ClipOptions
) -> tuple[dict[str, dict[str, float]], list[MetricValue]]:
    """Evaluate zero-shot recognition, and that of unseen classes and multiple choice if the data has them.

    Args:
        unseen: manifest of clips of classes that training did not show.

    Returns the metrics by task, and the rows of the report's table."""
    jobs: dict[str, tuple[Predict, Manifest]] = {"zero_shot_recognition": (predict_zero_shot, test)}
    if unseen is not None:
        jobs["zero_shot_unseen_classes"] = (predict_zero_shot, read_manifest(unseen))
    if all(row.choices for row in test.rows):
        jobs["multiple_choice"] = (predict_choices, test)
    figures, rows = {}, []
    for name, (predict, manifest) in jobs.items():
        table = predict(language, manifest, settings)
        result = score(table)
        save_result(result, table.save(output / "tables" / f"{name}.npz").with_suffix(".json"))
        figures[name] = result["figures"]
        main = "accuracy" if "accuracy" in result["figures"] else "top1"
        low, high = result["intervals"][main]
        chance = float(result["protocol"][f"chance_{main}"])
        rows.append(MetricValue(DESCRIPTIONS[name], result["figures"][main], (low, high), chance))
        for kind, value in result["figures"].items():
            if kind.startswith("against_"):
                description = f"the right sentence above the one of {kind.removeprefix('against_').replace('_', ' ')}"
                rows.append(
                    MetricValue(description, value, (result["intervals"][kind][0], result["intervals"][kind][1]), 0.5)
                )
    return figures, rows


@torch.inference_mode()
def generate_captions(trained: Trained, test: Manifest, device: str, num_clips: int = 6) -> list[GeneratedCaption]:
    """Generate captions for clips sampled from the split; a word is correct if a caption of the clip contains it.

    Returns [] for a model without a caption decoder.
    """
    model = cast(VideoLanguage, trained.model)
    if not model.can_caption:
        return []
    rows = tuple(test.rows[index] for index in linspace_frames(len(test), min(num_clips, len(test))).tolist())
    chosen = replace(test, rows=rows)
    generator = CaptionGenerator(model, Tokenizer(context_length=model.config.text.context_length))
    torch_device, examples = choose_device(device), []
    row_by_id = {row.id: row for row in rows}
    for batch, _ in make_clip_inputs(trained, chosen, ClipOptions(batch_size=num_clips, device=device)).loader:
        for name, caption in zip(batch.ids, generator(batch.to(torch_device).video), strict=True):
            row = row_by_id[name]
            reference_words = {
                word for text in row.captions for word in text.lower().replace(",", " ").replace(";", " ").split()
            }
            words = tuple((word, word.strip(",;.") in reference_words) for word in caption.split())
            with Video(test.video_path(row), short_side=64, fps=row.frame_rate) as video:
                frames = video.frames(linspace_frames(video.info.frames, 6).tolist())
            examples.append(GeneratedCaption(frames, words, row.captions[0]))
    return examples
