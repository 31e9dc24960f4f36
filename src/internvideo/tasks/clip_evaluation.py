"""Steps that all evaluations on clips share: read rows, build loaders, list ensemble members, save results."""

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
from internvideo.models.clip import CLIPModel
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.members import describe_ensemble
from internvideo.tasks.protocol import ClipInputs, clip_protocol, weights_hash
from internvideo.tasks.table import Predictions, Result, check_overwrite, print_result, save_result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained

LANGUAGE_MODELS = (VideoLanguage, CLIPModel)


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(ClipOptions):
    """Options of tasks that can evaluate ensembles of video-text models."""

    ensemble_with: Annotated[tuple[Path, ...], "Weights of a further model, whose similarities are averaged."] = ()


def ensemble_models(trained: Trained, kinds: tuple[type[nn.Module], ...] = LANGUAGE_MODELS) -> list[Trained]:
    """Return all models of an ensemble, `trained` first. Raises RecipeError for a model that is none of `kinds`."""
    for member in trained.ensemble_members:
        if not isinstance(member.model, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            found = f"{member.recipe.model.name} is a {type(member.model).__name__}"
            raise RecipeError("ensemble_with", found, f"{names}, as the first model")
    return [trained, *trained.ensemble_members]


def ensemble_protocol(models: Sequence[Trained]) -> dict[str, Any]:
    """Return the protocol entry "ensemble", which lists the models; its value is None for a single model."""
    members = [{"model": model.recipe.model.name, "weights_sha256": weights_hash(model.model)} for model in models]
    return {"ensemble": describe_ensemble(members) if len(members) > 1 else None}


def read_split(manifest: Path, split: str | None) -> Manifest:
    """Read a manifest and select the rows of a split, of all splits for None. Raises ManifestError."""
    rows = read_manifest(manifest).with_notes_logged()
    return rows if split is None else rows.subset(split=split)


def make_clip_inputs(trained: Trained, manifest: Manifest, settings: ClipOptions) -> ClipInputs[Any]:
    """Build the loader of a model's test clips, with the preprocessing of its recipe."""
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
    """Return the tokenizer of a `VideoLanguage` or `CLIPModel` model."""
    return Tokenizer(context_length=cast(VideoLanguage | CLIPModel, trained.model).config.text.context_length)


def run_evaluation(
    task: str,
    compute_metrics: Callable[[Predictions], Result],
    inputs: ClipInputs[Any],
    output: Path,
    predict: Callable[[], Predictions],
    write_extras: Callable[[Predictions, Path], None] | None = None,
    extra_protocol: Mapping[str, Any] | None = None,
) -> Result:
    """Predict, save `TASK.npz` and `TASK.json` in `output`, write further files, print the metrics.

    The videos are distributed over the processes; rank 0 writes the same predictions as a single process would.

    Args:
        task: name of the task. compute_metrics: its `score`. inputs: model and clips. output: folder.
        predict: returns the predictions.
        write_extras: writes plots or further files from the predictions into a folder.
        extra_protocol: further protocol entries that must be equal for a table to be overwritten.

    Raises:
        RunError: `output` has a table of another model, other rows or other preprocessing.
    """
    path = output / f"{task}.npz"
    check_output(path, inputs, extra_protocol or {})
    table = predict()
    result: Result = compute_metrics(table)

    def write() -> None:
        save_result(result, table.save(path).with_suffix(".json"))
        if write_extras is not None:
            write_extras(table, output)
        print_result(result)

    distributed.on_rank_zero(write)
    return result


def check_output(path: Path, inputs: ClipInputs[Any], extra_protocol: Mapping[str, Any]) -> None:
    """Raise RunError if `path` has a table with another protocol, which would be overwritten."""

    def check() -> None:
        protocol = {**inputs.describe(), **extra_protocol}
        check_overwrite(path, protocol, [name for name in protocol if name != "source"])

    distributed.on_rank_zero(check)
