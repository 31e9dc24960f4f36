"""Run a model over every clip of a split and keep one row per clip; encode texts in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.data.dataset import TextEncoder
from internvideo.data.manifest import Manifest
from internvideo.data.sample import Sample
from internvideo.errors import RunError
from internvideo.tasks.protocol import ClipInputs, ClipProtocol, VideoTextModel
from internvideo.terminal import bars_disabled

TEXTS_AT_ONCE = 256

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Views:
    """Outputs with one row per clip.

    Attributes:
        values: of each named output (R, ...) float32.
        sample: (R,) index of the row's video among those read; view: (R,) number of the clip.
        read: (N,) index in the manifest of each video read, ascending. rows: these videos.
        coverage: see `Predictions`.
    """

    values: dict[str, Floats]
    sample: Ints
    view: Ints
    read: Ints
    rows: tuple[Sample, ...]
    coverage: dict[str, Any]


@dataclass
class _RankResult:
    """Results of one process: named outputs, manifest rows and view indices of each batch; failed videos."""

    values: dict[str, list[Floats]] = field(default_factory=dict)
    rows: list[Ints] = field(default_factory=list)
    views: list[Ints] = field(default_factory=list)
    lost: dict[str, dict[str, str]] = field(default_factory=dict)


@contextmanager
def evaluating(model: object, device: torch.device, precision: str) -> Iterator[None]:
    """Run a block in evaluation mode, without gradients, in the given precision; restore the mode afterwards."""
    module = model if isinstance(model, nn.Module) else None
    was_training = {part: part.training for part in module.modules()} if module is not None else {}
    if module is not None:
        module.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        for part, training in was_training.items():
            part.training = training


def run_clips(function: Callable[[Batch], Mapping[str, Tensor]], inputs: ClipInputs[object], title: str) -> Views:
    """Apply `function` to every clip, in evaluation mode, and gather the results of all processes.

    Args:
        function: batch of uint8 clips on `inputs.device` -> named outputs (B, ...).
        title: shown beside the progress.

    Raises:
        RunError: missing, duplicate or unknown clips, clips of another shape than `inputs.clips`, an output that is
            not finite, or no readable video.
    """
    source, manifest, clips = inputs.source, inputs.manifest, inputs.clips
    index_of = {row.id: index for index, row in enumerate(manifest.rows)}
    result = _RankResult()
    bar = tqdm(total=len(index_of) * clips.num_views, desc=title, unit="clip", leave=False, disable=bars_disabled())
    with bar, evaluating(inputs.model, inputs.device, clips.precision):
        for batch, numbers in source:
            _check_shape(batch, clips, index_of)
            for name, output in function(batch.to(inputs.device)).items():
                result.values.setdefault(name, []).append(_finite(output, name, batch))
            result.rows.append(np.asarray([index_of[name] for name in batch.ids], dtype=np.int64))
            result.views.append(np.asarray(numbers, dtype=np.int64))
            bar.update(len(batch))
    result.lost = {
        name: {"id": name, "path": str(path), "reason": str(reason)} for name, path, reason in source.unreadable
    }
    results: list[_RankResult] = distributed.all_gather_objects(result)
    unreadable = {name: entry for part_result in results for name, entry in part_result.lost.items()}
    where = [rows for part_result in results for rows in part_result.rows]
    if not where or len(unreadable) == len(index_of):
        reason = next(iter(unreadable.values()))["reason"] if unreadable else "the loader gave no clip"
        found = f"none of {len(index_of)} videos could be read ({reason})"
        raise RunError(manifest.source, found, "", "check the files")
    rows = np.concatenate(where)
    views = np.concatenate([numbers for part_result in results for numbers in part_result.views])
    values = {
        name: np.concatenate([part for part_result in results for part in part_result.values.get(name, [])])
        for name in next(part_result.values for part_result in results if part_result.values)
    }
    # A video that broke after some of its views is unreadable as a whole: it is never scored on fewer views.
    kept = np.flatnonzero(~np.isin(rows, [index_of[name] for name in unreadable if name in index_of]))
    kept = kept[np.argsort(rows[kept], kind="stable")]  # the manifest's order, whoever read what
    rows, views = rows[kept], views[kept]
    read = np.asarray([index for name, index in index_of.items() if name not in unreadable], dtype=np.int64)
    _check_complete(rows, views, read, manifest, clips)
    return Views(
        {name: parts[kept] for name, parts in values.items()},
        np.searchsorted(read, rows).astype(np.int64),
        views,
        read,
        tuple(manifest.rows[index] for index in read),
        {"asked": len(index_of), "read": len(read), "unreadable": [unreadable[name] for name in sorted(unreadable)]},
    )


def _check_shape(batch: Batch, clips: ClipProtocol, index_of: Mapping[str, int]) -> None:
    frames, side = batch.video.shape[2], tuple(batch.video.shape[3:])
    if frames != clips.frames or side != (clips.size, clips.size):
        expected = f"{clips.frames} frames at {clips.size}x{clips.size}, as the protocol states"
        raise RunError("protocol", f"clips of {frames} frames at {side[0]}x{side[1]}", expected)
    unknown = next((name for name in batch.ids if name not in index_of), None)
    if unknown is not None:
        raise RunError("loader", f"clip of '{unknown}', which is not in the manifest", "", "use one manifest for both")


def _finite(output: Tensor, name: str, batch: Batch) -> Floats:
    array: Floats = output.detach().float().cpu().numpy()
    bad = ~np.isfinite(array.reshape(len(batch), -1)).all(axis=1)
    if bad.any():
        ids = ", ".join(batch.ids[index] for index in np.flatnonzero(bad)[:5])
        raise RunError("model", f"{name} is NaN or infinite for {ids}", "finite numbers", "check the weights")
    return array


def _check_complete(rows: Ints, views: Ints, read: Ints, manifest: Manifest, clips: ClipProtocol) -> None:
    outside = (views < 0) | (views >= clips.num_views)
    places = rows * clips.num_views + np.where(outside, 0, views)
    counts = np.bincount(places, minlength=len(manifest.rows) * clips.num_views)
    wrong = np.flatnonzero((counts.reshape(-1, clips.num_views)[read] != 1).any(axis=1))
    if outside.any() or len(wrong):
        name = manifest.rows[int(rows[outside][0] if outside.any() else read[wrong[0]])].id
        found = np.sort(views[rows == [row.id for row in manifest.rows].index(name)]).tolist()
        raise RunError("loader", f"clips {found} of '{name}'", f"each of 0..{clips.num_views - 1} once")


def run_texts(inputs: ClipInputs[VideoTextModel], tokenizer: TextEncoder, texts: Sequence[str]) -> Floats:
    """Encode texts as (Q, E) float32, not L2-normalized, in evaluation mode. Manifests contain no blank text."""
    parts = []
    with evaluating(inputs.model, inputs.device, inputs.clips.precision):
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            tokens = tokenizer.encode(list(texts[start : start + TEXTS_AT_ONCE])).to(inputs.device)
            parts.append(inputs.model.encode_text(tokens).float().cpu().numpy())
    features: Floats = np.concatenate(parts)
    if not np.isfinite(features).all():
        bad = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise RunError("model", f"text feature of {texts[bad]!r} is NaN or infinite", "", "check the weights")
    return features


def video_function(model: VideoTextModel) -> Callable[[Batch], Mapping[str, Tensor]]:
    """Make the function of `run_clips` that returns {"video": features}."""

    def encode(batch: Batch) -> dict[str, Tensor]:
        mask = () if batch.frame_mask is None else (batch.frame_mask,)
        return {"video": model.encode_video(model.normalize(batch.video), *mask)}

    return encode
