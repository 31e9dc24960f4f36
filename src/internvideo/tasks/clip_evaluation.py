"""What evaluations on clips of videos share: rows, clips, ensembles, and the files that they write."""

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
from internvideo.errors import InternVideoError, RecipeError, RunError
from internvideo.models.clip import Clip
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.members import described
from internvideo.tasks.protocol import ClipInputs, clip_protocol, weights_hash
from internvideo.tasks.table import Predictions, Result, print_result, save_result
from internvideo.tasks.task import ClipOptions
from internvideo.training.trained import Trained

LANGUAGE_MODELS = (VideoLanguage, Clip)


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(ClipOptions):
    """Options of tasks that several video-text models can do together."""

    ensemble_with: Annotated[tuple[Path, ...], "Weights of one more model; the similarities are averaged."] = ()


def with_others(trained: Trained, kinds: tuple[type[nn.Module], ...] = LANGUAGE_MODELS) -> list[Trained]:
    """The model and those beside it. Raises RecipeError: one of them is of another kind."""
    for other in trained.others:
        if not isinstance(other.model, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            found = f"{other.recipe.model.name} is a {type(other.model).__name__}"
            raise RecipeError("ensemble_with", found, f"{names}, as the first model")
    return [trained, *trained.others]


def members_told(models: Sequence[Trained]) -> dict[str, Any]:
    """What tells an ensemble's table from that of its first model."""
    members = [{"model": one.recipe.model.name, "weights_sha256": weights_hash(one.model)} for one in models]
    return {"ensemble": described(members) if len(members) > 1 else None}


def split_rows(manifest: Path, split: str | None) -> Manifest:
    """The rows of a split. Raises ManifestError."""
    rows = read_manifest(manifest).with_notes_logged()
    return rows if split is None else rows.subset(split=split)


def clip_source(trained: Trained, manifest: Manifest, settings: ClipOptions) -> ClipInputs[Any]:
    """A model with clips of the rows, cut from their videos as its recipe says for testing."""
    data = trained.recipe.data_as(SampledData)
    spec = data.clip_spec()
    sampler = spec.frame_sampler(settings.num_clips or data.sampling.num_clips or 1)
    transform = spec.transform(settings.num_crops)
    loader = LoaderSettings(
        settings.batch_size, settings.workers, short_side=spec.short_side, single_frame=spec.single_frame
    )
    clips = clip_protocol(sampler, transform, single_frame=spec.single_frame)
    source = EvalLoader(manifest, sampler, transform, loader)
    device = choose_device(settings.device)
    return ClipInputs(trained.model, source, manifest, clips, device, trained.recipe.model.name)


def text_tokenizer(trained: Trained) -> Tokenizer:
    """The tokenizer of a `VideoLanguage` or `Clip`."""
    return Tokenizer(context_length=cast(VideoLanguage | Clip, trained.model).config.text.context)


def finish(
    task: str,
    score: Callable[[Predictions], Result],
    inputs: ClipInputs[Any],
    output: Path,
    predict: Callable[[], Predictions],
    draw: Callable[[Predictions, Path], None] | None = None,
    told: Mapping[str, Any] | None = None,
) -> Result:
    """Predict, save `TASK.npz` and `TASK.json` in `output`, draw, print the figures.

    The processes share the videos; the first one writes the table that one process (of as many threads) would write.

    Args:
        task, score: its name and its figures. inputs: what is predicted, of what. output: a folder.
        predict: makes the table.
        draw: pictures of the table, into a folder.
        told: what else of the table's protocol must be the same in a table that is written over.

    Raises:
        RunError: `output` holds the table of another model, of other rows or of clips cut otherwise.
    """
    path = output / f"{task}.npz"
    check_output(path, inputs, told or {})
    table = predict()
    result: Result = score(table)
    error: InternVideoError | None = None
    if distributed.rank() == 0:
        try:
            save_result(result, table.save(path).with_suffix(".json"))
        except InternVideoError as found:
            error = found
        else:
            if draw is not None:
                draw(table, output)
            print_result(result)
    distributed.raise_together(error)
    return result


def check_output(path: Path, inputs: ClipInputs[Any], told: Mapping[str, Any]) -> None:
    """Refuse to write over another measurement: only the same weights, rows and clips may be measured again."""
    error: InternVideoError | None = None
    if distributed.rank() == 0 and path.exists():
        ours = {**inputs.describe(), **told}
        choose = "choose another --output"
        try:
            theirs = Predictions.load(path).protocol
        except RunError:
            error = RunError(path, "is no table that was written here", "", choose)
        else:
            parts = {"weights_sha256": "weights", "split_sha256": "rows"}
            others = [
                parts.get(key, key) for key, value in ours.items() if key != "source" and theirs.get(key) != value
            ]
            if others:
                error = RunError(path, f"holds a table with other {', '.join(others)}", "", choose)
    distributed.raise_together(error)
