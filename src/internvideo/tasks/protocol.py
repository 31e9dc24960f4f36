"""Evaluation protocol, and the interfaces of models and loaders that tasks use.

Metrics are only comparable if their protocols agree: frames, views, crops, post-processing, split and weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from internvideo.data.batch import Batch
from internvideo.data.manifest import Manifest
from internvideo.data.sampling import FrameSampler
from internvideo.data.transforms import EvalTransform

Model = TypeVar("Model", covariant=True)
SAVED_NAMES = {"num_clips": "views", "num_crops": "crops"}
"""Attribute -> its name in saved tables."""


@dataclass(frozen=True)
class ClipProtocol:
    """Evaluation protocol of clips; `run_clips` checks that the loader's clips agree with it.

    Attributes:
        frames: T of a clip.
        size: S, side of a clip in pixels.
        num_clips: clips per video, at different times. num_crops: spatial crops per clip.
        sampling: description of the frame sampling.
        precision: compute dtype.
        resizing: description of the resizing before the crops, see `EvalTransform.resizing`.
    """

    frames: int
    size: int
    num_clips: int = 1
    num_crops: int = 1
    sampling: str = ""
    precision: Literal["float32", "bfloat16"] = "float32"
    resizing: str = ""

    @property
    def num_views(self) -> int:
        """Number of views per video: num_clips x num_crops."""
        return self.num_clips * self.num_crops


def clip_protocol(sampler: FrameSampler, transform: EvalTransform, *, single_frame: bool = False) -> ClipProtocol:
    """Return the protocol of a loader with this sampler and transform, or of one with `single_frame` set."""
    if single_frame:
        return ClipProtocol(1, transform.size, 1, transform.num_crops, "middle frame", resizing=transform.resizing)
    num_clips = len(sampler.test(16 * sampler.frames))
    sampling = repr(sampler).replace("num_clips=", "views=")  # the spelling of saved tables
    size, crops = transform.size, transform.num_crops
    return ClipProtocol(sampler.frames, size, num_clips, crops, sampling, resizing=transform.resizing)


class EvalClipLoader(Protocol):
    """An evaluation loader: yields every clip of every readable video once, over all processes together."""

    @property
    def unreadable(self) -> Sequence[tuple[str, Any, str]]:
        """(id, path, reason) of the videos that this process could not read; complete after the iteration."""

    def __iter__(self) -> Iterator[tuple[Batch, NDArray[Any]]]:
        """Yield batches, each with the view index (B,), 0..num_views-1, of its clips."""


class VideoTextModel(Protocol):
    """A dual encoder of videos and texts; features need not be L2-normalized."""

    def normalize(self, video: Tensor) -> Tensor:
        """Normalize uint8 (B, 3, T, S, S) to float."""

    def encode_video(self, video: Tensor, frame_mask: Tensor | None = None, /) -> Tensor:
        """Encode normalized (B, 3, T, S, S), with (B, T) bool where frames are real or None, to (B, E)."""

    def encode_text(self, ids: Tensor, /) -> Tensor:
        """Encode token ids (B, L) to (B, E)."""

    @property
    def scale(self) -> Tensor:
        """Logit scale of the cosines, about 100."""


def weights_hash(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Hash name, dtype, shape and bytes of all tensors, sorted by name: SHA-256, 64 hex digits."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        # Bytes, because NumPy has no bfloat16; a tensor without dimensions cannot be viewed as bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ClipInputs(Generic[Model]):
    """A model with the loader of the clips that it is evaluated on.

    Attributes:
        model: on `device`. loader: of the clips of `manifest`. manifest: rows of the evaluated split.
        protocol: of the loader's clips.
        device: of the model. model_name: for the saved protocol.
    """

    model: Model
    loader: EvalClipLoader
    manifest: Manifest
    protocol: ClipProtocol
    device: torch.device
    model_name: str = ""

    def describe(self) -> dict[str, Any]:
        """Return the protocol entries that all tasks on clips have, as JSON values."""
        return {
            "model": self.model_name,
            "weights_sha256": weights_hash(cast(nn.Module, self.model)),
            "split_sha256": self.manifest.fingerprint,
            "splits": sorted({row.split for row in self.manifest.rows if row.split is not None}),
            "source": str(self.manifest.source),
            **{SAVED_NAMES.get(name, name): value for name, value in asdict(self.protocol).items()},
        }


def check_labels(manifest: Manifest) -> NDArray[np.int64]:
    """Return the class indices (N,) of the rows. Raises ManifestError for a row without a label."""
    manifest.require("label")
    return np.asarray([row.label for row in manifest.rows], dtype=np.int64)
