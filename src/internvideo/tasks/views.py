"""Run a model over every clip of a split and return one row per clip; encode texts in batches."""

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

TEXT_BATCH_SIZE = 256

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Views:
    """Outputs with one row per clip.

    Attributes:
        values: name of an output -> (R, ...) float32.
        sample: (R,) index into `rows` of each clip's video. view: (R,) view index of each clip.
        read: (N,) manifest index of each readable video, ascending. rows: these N rows of the manifest.
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
    """Results of one process: outputs, manifest row and view indices of each batch; entries of unreadable videos."""

    values: dict[str, list[Floats]] = field(default_factory=dict)
    rows: list[Ints] = field(default_factory=list)
    views: list[Ints] = field(default_factory=list)
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)


@contextmanager
def evaluation_mode(model: object, device: torch.device, precision: str) -> Iterator[None]:
    """Run a block in evaluation mode, without gradients, in the given precision; restore the mode afterwards."""
    module = model if isinstance(model, nn.Module) else None
    was_training = {submodule: submodule.training for submodule in module.modules()} if module is not None else {}
    if module is not None:
        module.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        for submodule, training in was_training.items():
            submodule.training = training


def run_clips(function: Callable[[Batch], Mapping[str, Tensor]], inputs: ClipInputs[object], title: str) -> Views:
    """Apply `function` to every clip, in evaluation mode, and gather the results of all processes.

    Args:
        function: batch of uint8 clips on `inputs.device` -> named outputs (B, ...).
        title: of the progress bar.

    Raises:
        RunError: missing, duplicate or unknown clips, clips of another shape than `inputs.protocol`, a non-finite
            output, or no readable video.
    """
    loader, manifest, protocol = inputs.loader, inputs.manifest, inputs.protocol
    index_of = {row.id: index for index, row in enumerate(manifest.rows)}
    result = _RankResult()
    bar = tqdm(total=len(index_of) * protocol.num_views, desc=title, unit="clip", leave=False, disable=bars_disabled())
    with bar, evaluation_mode(inputs.model, inputs.device, protocol.precision):
        for batch, view_index in loader:
            _check_shape(batch, protocol, index_of)
            for name, output in function(batch.to(inputs.device)).items():
                result.values.setdefault(name, []).append(_check_finite(output, name, batch))
            result.rows.append(np.asarray([index_of[name] for name in batch.ids], dtype=np.int64))
            result.views.append(np.asarray(view_index, dtype=np.int64))
            bar.update(len(batch))
    result.unreadable = {
        name: {"id": name, "path": str(path), "reason": str(reason)} for name, path, reason in loader.unreadable
    }
    results: list[_RankResult] = distributed.all_gather_objects(result)
    unreadable = {name: entry for rank_result in results for name, entry in rank_result.unreadable.items()}
    rank_rows = [rows for rank_result in results for rows in rank_result.rows]
    if not rank_rows or len(unreadable) == len(index_of):
        reason = next(iter(unreadable.values()))["reason"] if unreadable else "the loader gave no clip"
        found = f"none of {len(index_of)} videos could be read ({reason})"
        raise RunError(manifest.source, found, "", "check the files")
    rows = np.concatenate(rank_rows)
    views = np.concatenate([view_index for rank_result in results for view_index in rank_result.views])
    values = {
        name: np.concatenate([submodule for rank_result in results for submodule in rank_result.values.get(name, [])])
        for name in next(rank_result.values for rank_result in results if rank_result.values)
    }
    # A video of which only some views could be read is unreadable: it is never scored on fewer views.
    order = np.flatnonzero(~np.isin(rows, [index_of[name] for name in unreadable if name in index_of]))
    order = order[np.argsort(rows[order], kind="stable")]  # in the order of the manifest, whichever process read them
    rows, views = rows[order], views[order]
    read = np.asarray([index for name, index in index_of.items() if name not in unreadable], dtype=np.int64)
    _check_complete(rows, views, read, manifest, protocol)
    return Views(
        {name: parts[order] for name, parts in values.items()},
        np.searchsorted(read, rows).astype(np.int64),
        views,
        read,
        tuple(manifest.rows[index] for index in read),
        {"asked": len(index_of), "read": len(read), "unreadable": [unreadable[name] for name in sorted(unreadable)]},
    )


def _check_shape(batch: Batch, protocol: ClipProtocol, index_of: Mapping[str, int]) -> None:
    frames, side = batch.video.shape[2], tuple(batch.video.shape[3:])
    if frames != protocol.frames or side != (protocol.size, protocol.size):
        expected = f"{protocol.frames} frames at {protocol.size}x{protocol.size}, as the protocol states"
        raise RunError("protocol", f"clips of {frames} frames at {side[0]}x{side[1]}", expected)
    unknown = next((name for name in batch.ids if name not in index_of), None)
    if unknown is not None:
        raise RunError("loader", f"clip of '{unknown}', which is not in the manifest", "", "use one manifest for both")


def _check_finite(output: Tensor, name: str, batch: Batch) -> Floats:
    array: Floats = output.detach().float().cpu().numpy()
    nonfinite = ~np.isfinite(array.reshape(len(batch), -1)).all(axis=1)
    if nonfinite.any():
        ids = ", ".join(batch.ids[index] for index in np.flatnonzero(nonfinite)[:5])
        raise RunError("model", f"{name} is NaN or infinite for {ids}", "finite numbers", "check the weights")
    return array


def _check_complete(rows: Ints, views: Ints, read: Ints, manifest: Manifest, protocol: ClipProtocol) -> None:
    out_of_range = (views < 0) | (views >= protocol.num_views)
    clip_index = rows * protocol.num_views + np.where(out_of_range, 0, views)
    counts = np.bincount(clip_index, minlength=len(manifest.rows) * protocol.num_views)
    wrong = np.flatnonzero((counts.reshape(-1, protocol.num_views)[read] != 1).any(axis=1))
    if out_of_range.any() or len(wrong):
        name = manifest.rows[int(rows[out_of_range][0] if out_of_range.any() else read[wrong[0]])].id
        found = np.sort(views[rows == [row.id for row in manifest.rows].index(name)]).tolist()
        raise RunError("loader", f"clips {found} of '{name}'", f"each of 0..{protocol.num_views - 1} once")


def run_texts(inputs: ClipInputs[VideoTextModel], tokenizer: TextEncoder, texts: Sequence[str]) -> Floats:
    """Encode texts as (Q, E) float32, not L2-normalized, in evaluation mode."""
    batches = []
    with evaluation_mode(inputs.model, inputs.device, inputs.protocol.precision):
        for start in range(0, len(texts), TEXT_BATCH_SIZE):
            ids = tokenizer.encode(list(texts[start : start + TEXT_BATCH_SIZE])).to(inputs.device)
            batches.append(inputs.model.encode_text(ids).float().cpu().numpy())
    features: Floats = np.concatenate(batches)
    if not np.isfinite(features).all():
        nonfinite = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise RunError("model", f"text feature of {texts[nonfinite]!r} is NaN or infinite", "", "check the weights")
    return features


def video_function(model: VideoTextModel) -> Callable[[Batch], Mapping[str, Tensor]]:
    """Make the function of `run_clips` that returns {"video": features}."""

    def encode(batch: Batch) -> dict[str, Tensor]:
        mask = () if batch.frame_mask is None else (batch.frame_mask,)
        return {"video": model.encode_video(model.normalize(batch.video), *mask)}

    return encode
