"""Shared steps of evaluations on clips: read rows, build loaders, combine models, save results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from torch import nn

from internvideo import distributed
from internvideo.data.loader import EvalLoader, LoaderSettings
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.settings import SampledData
from internvideo.data.tokenizer import Tokenizer
from internvideo.distributed import choose_device
from internvideo.errors import RecipeError
from internvideo.models.clip import Clip
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.members import described
from internvideo.tasks.protocol import ClipInputs, clip_protocol, weights_hash
from internvideo.tasks.table import Predictions, Result, check_overwrite, print_result, save_result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained

LANGUAGE_MODELS = (VideoLanguage, Clip)


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(ClipOptions):
    """Options of tasks that support ensembles of video-text models."""

    ensemble_with: Annotated[tuple[Path, ...], "Weights of another model; the similarities are averaged."] = ()


def with_others(trained: Trained, kinds: tuple[type[nn.Module], ...] = LANGUAGE_MODELS) -> list[Trained]:
    """Return the model and the other members of the ensemble. Raises RecipeError: a member of another type."""
    for other in trained.others:
        if not isinstance(other.model, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            found = f"{other.recipe.model.name} is a {type(other.model).__name__}"
            raise RecipeError("ensemble_with", found, f"{names}, as the first model")
    return [trained, *trained.others]


def ensemble_protocol(models: Sequence[Trained]) -> dict[str, Any]:
    """Return the protocol entry that lists the members of an ensemble, None for one model."""
    members = [{"model": one.recipe.model.name, "weights_sha256": weights_hash(one.model)} for one in models]
    return {"ensemble": described(members) if len(members) > 1 else None}


def split_rows(manifest: Path, split: str | None) -> Manifest:
    """Read the rows of a split, of all splits for None. Raises ManifestError."""
    rows = read_manifest(manifest).with_notes_logged()
    return rows if split is None else rows.subset(split=split)


def clip_source(trained: Trained, manifest: Manifest, settings: ClipOptions) -> ClipInputs[Any]:
    """Return a model with a loader of test clips of the rows, preprocessed as its recipe says."""
    data = trained.recipe.data_as(SampledData)
    spec = data.preprocessing()
    sampler = spec.frame_sampler(settings.num_clips or data.sampling.num_clips or 1)
    transform = spec.transform(settings.num_crops)
    loader_settings = LoaderSettings(
        settings.batch_size, settings.workers, short_side=spec.short_side, single_frame=spec.single_frame
    )
    protocol = clip_protocol(sampler, transform, single_frame=spec.single_frame)
    loader = EvalLoader(manifest, sampler, transform, loader_settings)
    device = choose_device(settings.device)
    return ClipInputs(trained.model, loader, manifest, protocol, device, trained.recipe.model.name)


def text_tokenizer(trained: Trained) -> Tokenizer:
    """Return the tokenizer of a `VideoLanguage` or `Clip` model."""
    return Tokenizer(context_length=cast(VideoLanguage | Clip, trained.model).config.text.context)


def finish(
    task: str,
    score: Callable[[Predictions], Result],
    inputs: ClipInputs[Any],
    output: Path,
    predict: Callable[[], Predictions],
    draw: Callable[[Predictions, Path], None] | None = None,
    extra_protocol: Mapping[str, Any] | None = None,
) -> Result:
    """Predict, save `TASK.npz` and `TASK.json` in `output`, draw plots, print the metrics.

    The videos are divided among the processes; rank 0 writes the same predictions as a single process would.

    Args:
        task: name of the task. score: computes its metrics. inputs: model and clips. output: folder.
        predict: returns the predictions.
        draw: writes plots of the predictions into a folder.
        extra_protocol: further protocol entries that must agree with a table that is overwritten.

    Raises:
        RunError: `output` has the table of another model, other rows or other preprocessing.
    """
    path = output / f"{task}.npz"
    check_output(path, inputs, extra_protocol or {})
    table = predict()
    result: Result = score(table)

    def write() -> None:
        save_result(result, table.save(path).with_suffix(".json"))
        if draw is not None:
            draw(table, output)
        print_result(result)

    distributed.on_rank_zero(write)
    return result


def check_output(path: Path, inputs: ClipInputs[Any], extra_protocol: Mapping[str, Any]) -> None:
    """Raise RunError if `path` has a table with another protocol: only the same measurement may be overwritten."""

    def check() -> None:
        protocol = {**inputs.describe(), **extra_protocol}
        check_overwrite(path, protocol, [name for name in protocol if name != "source"])

    distributed.on_rank_zero(check)
