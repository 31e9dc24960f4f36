"""Define the evaluation protocol, and the interfaces of models, loaders and tokenizers that tasks use.

A metric is only comparable with its protocol: frames, views, crops, post-processing, split and weights.
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
"""Setting -> its name in saved tables, which earlier versions fixed."""


@dataclass(frozen=True)
class ClipProtocol:
    """Evaluation protocol of clips; `predict` checks it against what the loader yields.

    Attributes:
        frames: T of a clip.
        size: S, pixels of a side.
        num_clips: clips per video, at different times. num_crops: spatial crops of each of them.
        sampling: frame sampling, as text or a class name.
        precision: compute dtype.
        resizing: size before the crops and pixel arithmetic, as `EvalTransform.resizing`.
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
    sampling = repr(sampler).replace("num_clips=", "views=")  # as saved tables have it
    size, crops = transform.size, transform.num_crops
    return ClipProtocol(sampler.frames, size, num_clips, crops, sampling, resizing=transform.resizing)


class ClipSource(Protocol):
    """An evaluation loader: all clips of all readable videos, once each over all processes."""

    @property
    def unreadable(self) -> Sequence[tuple[str, Any, str]]:
        """(id, path, reason) of every video of this process that gave no clip; complete after the iteration."""

    def __iter__(self) -> Iterator[tuple[Batch, NDArray[Any]]]:
        """Yield batches with the (B,) view index 0..num_views-1 of each clip."""


class VideoTextModel(Protocol):
    """A dual encoder of videos and texts; features need not be L2-normalized."""

    def normalize(self, video: Tensor) -> Tensor:
        """Normalize uint8 (B, 3, T, S, S) to float."""

    def encode_video(self, video: Tensor, frame_mask: Tensor | None = None, /) -> Tensor:
        """Encode normalized (B, 3, T, S, S), with (B, T) bool where frames are real or None, to (B, E)."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode ids (B, L) to (B, E)."""

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
    """A model and the clips of a split that it is evaluated on.

    Attributes:
        model: on `device`. source: loader over `manifest`. manifest: the split that was asked for.
        clips: what every clip and video must look like.
        device: where the model is. model_name: for the protocol.
    """

    model: Model
    source: ClipSource
    manifest: Manifest
    clips: ClipProtocol
    device: torch.device
    model_name: str = ""

    def describe(self) -> dict[str, Any]:
        """Return the part of the protocol that all tasks share, as JSON values."""
        return {
            "model": self.model_name,
            "weights_sha256": weights_hash(cast(nn.Module, self.model)),
            "split_sha256": self.manifest.fingerprint,
            "splits": sorted({row.split for row in self.manifest.rows if row.split is not None}),
            "source": str(self.manifest.source),
            **{SAVED_NAMES.get(name, name): value for name, value in asdict(self.clips).items()},
        }


def check_labels(manifest: Manifest) -> NDArray[np.int64]:
    """Return the class indices (N,). Raises ManifestError for a row without one, which could not be scored."""
    manifest.require("label")
    return np.asarray([row.label for row in manifest.rows], dtype=np.int64)
