"""Test-time preprocessing: convert a video file, a span of it or decoded frames to the input clips of a model.

Published models use the settings of their published evaluation, models of a training run those of their recipe.
Deterministic, no augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.data.resize import ResizeBackend
from internvideo.data.sampling import SAMPLERS, FrameSampler, Indices, Sparse
from internvideo.data.transforms import EvalTransform
from internvideo.errors import RecipeError, VideoError
from internvideo.video.pool import borrow
from internvideo.video.reader import Video

SLACK = 1e-6
"""Tolerance of times for rounding, in seconds."""
MAX_SIZE = 8192
"""Maximum number of frames of a clip, and of pixels of its side."""
SAVED_NAMES = {"temporal_stride": "step", "sampled_frames": "sampled", "resize_backend": "style"}
"""Setting -> its name in saved files (kept for compatibility); `keep_aspect` is saved negated as "squash"."""


@dataclass(frozen=True)
class Span:
    """A span of a video: the frames with start <= time < end, in seconds from the video's start; `fps` is the frame
    rate of a folder of frames."""

    path: str | Path
    start: float
    end: float
    fps: float | None = None

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise VideoError(self.path, f"span from {self.start:g} s to {self.end:g} s", "start < end")


@dataclass(frozen=True)
class Preprocessing:
    """Settings of frame sampling, resizing and cropping.

    Attributes:
        frames: T of a clip.
        size: S, pixels.
        sampler: key of `data.sampling.SAMPLERS`. stride: of the dense samplers, in frames.
        sampled_frames, temporal_stride: the sampler selects `sampled_frames` frames (0 for T), of which the clip has
            every `temporal_stride`-th.
        resize: short side in pixels before the center crop, None for S. keep_aspect: False resizes to a square of it.
        resize_backend: pixel arithmetic (`data.resize`); with "torch" clips are float32 in 0..255 instead of uint8.
        short_side: short side in pixels to which the decoder scales, None for no scaling.
        single_frame: use only the middle frame, whatever the sampler.

    Raises:
        RecipeError: settings that do not fit together.
    """

    frames: int
    size: int
    sampler: str = "linspace"
    stride: int | None = None
    sampled_frames: int = 0
    temporal_stride: int = 1
    resize: int | None = None
    keep_aspect: bool = True
    resize_backend: ResizeBackend = "pil"
    short_side: int | None = None
    single_frame: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "size", "sampled_frames", "resize", "short_side"):
            if (getattr(self, name) or 0) > MAX_SIZE:
                raise RecipeError(f"preprocessing.{name}", str(getattr(self, name))[:20], f"up to {MAX_SIZE:,}")
        num_frames = len(range(0, self.sampled_frames or self.frames, max(self.temporal_stride, 1)))
        num_frames = 1 if self.single_frame else num_frames
        if self.temporal_stride < 1 or num_frames != self.frames:
            found = f"{self.sampled_frames} sampled frames with temporal stride {self.temporal_stride}"
            raise RecipeError("preprocessing", f"{found} give {num_frames} frames", str(self.frames))
        if self.resize_backend not in get_args(ResizeBackend):
            expected = ", ".join(get_args(ResizeBackend))
            raise RecipeError("preprocessing.resize_backend", repr(self.resize_backend), expected)
        self.frame_sampler(1)
        try:
            self.transform()
        except ValueError as error:
            raise RecipeError("preprocessing", str(error)) from error

    def frame_sampler(self, num_clips: int) -> FrameSampler:
        """Build the sampler of `num_clips` test clips. Raises RecipeError if the sampler does not support as many."""
        if self.sampler not in SAMPLERS:
            raise RecipeError("preprocessing.sampler", repr(self.sampler), ", ".join(SAMPLERS))
        takes_num_clips = hasattr(SAMPLERS[self.sampler], "num_clips")
        if num_clips < 1 or (num_clips > 1 and not takes_num_clips):
            expected = "1" if num_clips > 0 else "1 or more"
            raise RecipeError("num_clips", str(num_clips), f"{expected} with the frame rule '{self.sampler}'")
        arguments = {"frames": self.sampled_frames or self.frames}
        arguments |= {} if self.stride is None else {"stride": self.stride}
        arguments |= {"num_clips": num_clips} if takes_num_clips else {}
        try:
            return SAMPLERS[self.sampler](**arguments)
        except (TypeError, ValueError) as error:  # a stride for a rule that has none; num_clips or frames out of range
            raise RecipeError("preprocessing", f"the frame rule '{self.sampler}' does not take {arguments}") from error

    def transform(self, num_crops: int = 1) -> EvalTransform:
        """Return the resizing transform with `num_crops` crops per clip."""
        return EvalTransform(self.size, self.resize, num_crops, self.resize_backend, self.keep_aspect)

    def for_model(self, temporal_stride: int = 1) -> Preprocessing:
        """Return the settings for a model with fixed-length input that uses every `temporal_stride`-th sampled frame.

        The sampler "one_per_second", whose clips vary in length, is replaced by "linspace".
        """
        stride = 1 if self.single_frame else temporal_stride
        return self.with_settings(
            frames=1 if self.single_frame else len(range(0, self.sampled_frames or self.frames, stride)),
            sampler="linspace" if self.sampler == "one_per_second" else self.sampler,
            temporal_stride=stride,
        )

    def indices(self, n: int, num_clips: int = 1) -> list[Indices]:
        """Return the frame indices (T,) of each view of a video with n frames. Raises as `frame_sampler`."""
        sampler = self.frame_sampler(num_clips)
        if self.single_frame:
            return Sparse(frames=1, num_clips=1).test(n)
        return [indices[:: self.temporal_stride] for indices in sampler.test(n)]

    def frame_indices(
        self, video: Video, start: float | None = None, end: float | None = None, *, num_clips: int = 1
    ) -> list[Indices]:
        """Return the frame indices (T,) of each view of `clips` without decoding. Raises as `clips`."""
        in_span = video.without_damaged(_frames_in_span(video, start, end))
        return [in_span[indices] for indices in self.indices(len(in_span), num_clips)]

    def clips(
        self, video: Video, start: float | None = None, end: float | None = None, *, num_clips: int = 1
    ) -> list[Tensor]:
        """Return all test clips of a video or of a span of it, each (3, T, S, S); no frame is decoded twice.

        Args:
            video: open, at its full size or scaled to `short_side`.
            start: of the span start <= time < end, seconds; None for that of the video.
            end: likewise.
            num_clips: clips at different times.

        Raises:
            VideoError: unreadable video, or no frame in the span. RecipeError: `num_clips` is not supported.
        """
        span = _frames_in_span(video, start, end)
        clips = video.sample(span, lambda decodable: self.indices(len(decodable), num_clips))
        return [self.transform_frames(frames) for frames in clips]

    def clip(self, video: Video, start: float | None = None, end: float | None = None) -> Tensor:
        """Return the only test clip of a span, (3, T, S, S); see `clips`."""
        return self.clips(video, start, end)[0]

    def read(self, source: str | Path | Span | NDArray[np.uint8] | Tensor, *, num_clips: int = 1) -> list[Tensor]:
        """Return all test clips of a file, a span of one, or decoded frames (T', H, W, 3). Raises as `clips`."""
        if isinstance(source, Span):
            with borrow(source.path, short_side=self.short_side, fps=source.fps) as video:
                return self.clips(video, source.start, source.end, num_clips=num_clips)
        if isinstance(source, str | Path):
            with borrow(source, short_side=self.short_side) as video:
                return self.clips(video, num_clips=num_clips)
        return self.clips_of_frames(source, num_clips)

    def clips_of_frames(self, frames: NDArray[np.uint8] | Tensor, num_clips: int = 1) -> list[Tensor]:
        """Return all test clips of decoded frames (T', H, W, 3) uint8, T' >= 1. Raises VideoError for other arrays."""
        array: NDArray[Any] = frames.cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size:
            found = f"an array of {array.dtype} {array.shape}"
            raise VideoError("frames", found, "uint8 (T, H, W, 3) with at least one frame")
        return [self.transform_frames(array[indices]) for indices in self.indices(len(array), num_clips)]

    def from_frames(self, frames: NDArray[np.uint8] | Tensor) -> Tensor:
        """Return the only test clip of decoded frames (T', H, W, 3): uint8 (3, T, S, S)."""
        return self.clips_of_frames(frames)[0]

    def transform_frames(self, frames: NDArray[np.uint8]) -> Tensor:
        """Resize and crop frames (T, H, W, 3) uint8 to (3, T, S, S), frame by frame."""
        return self.transform().crop_clip(torch.from_numpy(np.ascontiguousarray(frames)))[0]

    def to_json(self) -> dict[str, Any]:
        """Return all settings as JSON values, under the names of saved files (`SAVED_NAMES`)."""
        values = {SAVED_NAMES.get(name, name): value for name, value in asdict(self).items()}
        return values | {"squash": not values.pop("keep_aspect")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: object = "preprocessing") -> Preprocessing:
        """Build from the values of `to_json`. Raises RecipeError for an unknown, missing or invalid setting."""
        names = {SAVED_NAMES.get(field.name, field.name): field.name for field in fields(cls)}
        names["squash"] = names.pop("keep_aspect")
        known = set(names)
        unknown = sorted(set(values) - known)
        if unknown or not {"frames", "size"} <= set(values):
            found = f"unknown setting '{unknown[0]}'" if unknown else "frames or size missing"
            raise RecipeError(where, found, ", ".join(sorted(known)))
        for name in ("frames", "size", "step", "sampled"):
            if type(values.get(name, 0)) is not int:
                raise RecipeError(f"{where}: {name}", repr(values[name]), "a whole number")
        arguments = {names[name]: value for name, value in values.items()}
        return cls(**arguments | ({"keep_aspect": not values["squash"]} if "squash" in values else {}))

    def with_settings(self, **settings: Any) -> Preprocessing:
        """Return a copy with some settings changed. Raises RecipeError as the constructor."""
        return replace(self, **settings)


def _frames_in_span(video: Video, start: float | None, end: float | None) -> Indices:
    """Return the indices of the frames with start <= time < end.

    For a span between two frames return the frame that is displayed then.
    """
    info, times = video.info, video.info.times
    first, last = -np.inf if start is None else start, np.inf if end is None else end
    in_span = np.flatnonzero((times >= first - SLACK) & (times < last - SLACK)).astype(np.int64)
    if len(in_span):
        return in_span
    current = int(np.searchsorted(times, first + SLACK, side="right")) - 1
    if first < -SLACK or first >= last or first > info.duration:
        raise VideoError(info.path, f"no frame from {first:g} s to {last:g} s", f"0.000 s to {info.duration:.3f} s")
    video.check_time(first)
    return np.asarray([max(current, 0)], dtype=np.int64)


VideoSource = str | Path | Span | NDArray[np.uint8] | Tensor
"""Video input of a model: a file, a span of one, or decoded uint8 frames (T, H, W, 3)."""


def as_list(videos: VideoSource | Sequence[VideoSource]) -> list[VideoSource]:
    """Return one or several videos as a list.

    Raises:
        VideoError: an item of another type.
    """
    if isinstance(videos, str | Path | Span):
        return [videos]
    if isinstance(videos, np.ndarray | Tensor):
        return [videos] if videos.ndim == 4 else list(videos)
    items = list(videos)
    for video in items:
        if not isinstance(video, str | Path | Span | np.ndarray | Tensor):
            raise VideoError("videos", f"a {type(video).__name__}", "a path, a Span or uint8 frames (T, H, W, 3)")
    return items
