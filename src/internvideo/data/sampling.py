"""Frame samplers: the rules of the published loaders that select the frame indices of a clip.

The rules are functions of a frame count `n`; the samplers wrap them in one protocol for the loader. All indices are
int64 in [0, n). The published rounding (truncation, banker's rounding, float32 spacing) is part of each rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@runtime_checkable
class FrameSampler(Protocol):
    """Sample T = `frames` indices of a video with n frames."""

    @property
    def frames(self) -> int:
        """T, the number of indices in a clip (the maximum, for `OnePerSecond`)."""

    def train(self, n: int, rng: np.random.RandomState) -> Indices:
        """Sample a random clip: (T,) int64 in [0, n)."""

    def test(self, n: int) -> list[Indices]:
        """Return the test clips at fixed times, each (T,) int64 in [0, n)."""


def dense_span(n: int, frames: int, stride: int, end: int | None) -> Indices:
    """Select T of the `frames * stride` frames before `end`; of the whole video if it is not longer (kinetics.py).

    The spacing is that of `linspace` over the closed interval, so steps are `stride` or `stride + 1`. A short video
    gives n // stride evenly spread frames, then its last frame.
    """
    span = frames * stride
    if n <= span:
        spread = np.linspace(0, n, num=n // stride)
        positions = np.concatenate([spread, np.full(frames - len(spread), float(n))])
        return positions.clip(0, n - 1).astype(np.int64)
    last = (span + n) // 2 if end is None else end
    positions = np.linspace(last - span, last, num=frames)
    return positions.clip(last - span, last - 1).astype(np.int64)


def strided_buffer(n: int, frames: int, stride: int) -> Indices:
    """Select every `stride`-th frame, (>= T,), the last one repeated up to T (the dense test buffer)."""
    indices = np.arange(0, n, stride, dtype=np.int64)
    return np.concatenate([indices, np.full(max(frames - len(indices), 0), indices[-1])])


def dense_windows(length: int, frames: int, num_clips: int) -> list[int]:
    """Return the starts of test windows in a buffer of `length` frames: int(c * (length - T) / (num_clips - 1))."""
    if num_clips == 1:
        return [max(length - frames, 0) // 2]
    step = max((length - frames) / (num_clips - 1), 0.0)
    return [int(view * step) for view in range(num_clips)]


def strided_indices(n: int, frames: int, stride: int, start: int) -> Indices:
    """Return T indices with `stride` from `start`; the last one before the end of the video is repeated.

    The last frame is returned only if it is `start`: the released loader counts frames from 1 and steps while the next
    one is below n (OpenGVLab/InternVideo, InternVideo1/Pretrain/VideoMAE/mae.py, `get_frame_id_list`).
    """
    last = start + stride * max((n - 2 - start) // stride, 0)
    return np.minimum(start + stride * np.arange(frames, dtype=np.int64), last)


def looped_indices(n: int, frames: int, stride: int, start: int) -> Indices:
    """Return T indices with `stride` from `start`, modulo n (mmaction2, `SampleFrames`)."""
    return (start + stride * np.arange(frames, dtype=np.int64)) % n


def two_view_order(n: int, segments: int) -> Indices:
    """Return the sorted union of the starts and the middles of T equal segments, (2 T,) (kinetics.py)."""
    segment = n / segments
    middles = [int(segment / 2.0 + segment * i) for i in range(segments)]
    starts = [int(segment * i) for i in range(segments)]
    return np.sort(np.asarray(middles + starts, dtype=np.int64))


def raw_frames_middle(n: int, segments: int) -> Indices:
    """Select the middle frame of T segments of n // T frames; of a shorter video as `first_then_all`."""
    length = n // segments
    if length > 0:
        return np.arange(segments, dtype=np.int64) * length + length // 2
    return first_then_all(n, segments)


def first_then_all(n: int, frames: int) -> Indices:
    """Select T frames of a video of n <= T frames: T - n copies of the first, then all frames."""
    return np.arange(n - frames, n, dtype=np.int64).clip(min=0)


def sparse_test(n: int, frames: int, view: int, num_clips: int) -> Indices:
    """Select min(round(seg i) + int(seg (view + 1) / (num_clips + 1)), n - 1), seg = (n - 1) / T (UniFormerV2)."""
    segment = (n - 1) / frames
    shift = int(segment / (num_clips + 1) * (view + 1))
    return np.asarray([min(round(segment * i) + shift, n - 1) for i in range(frames)], dtype=np.int64)


def segment_middle(n: int, frames: int) -> Indices:
    """Select the middle frames of equal intervals, (min(T, n),) (multi-modalities-downstream)."""
    left, right = _intervals(n, frames)
    return (left + right - 1) // 2


def linspace_frames(n: int, frames: int) -> Indices:
    """Select T evenly spaced frames from the first to the last, truncated (Multi-Modalities-Pretraining)."""
    return np.linspace(0, n - 1, num=frames).astype(np.int64)


def one_per_second(
    n: int, fps: float, max_frames: int, start: float | None = None, end: float | None = None
) -> tuple[Indices, Indices]:
    """Sample one frame per second, subsampled evenly to `max_frames` (Video-Text-Retrieval).

    Args:
        n: frames in the video.
        fps: average frames per second.
        max_frames: length of the mask and maximum number of indices.
        start, end: seconds, inclusive; swapped when reversed, one second long when equal; None for the whole video.

    Returns:
        (k,) indices with k <= max_frames, and the (max_frames,) mask that is 1 for the first k. k is 0 when the span
        lies after the end of the video.
    """
    if start is not None and end is not None:
        start, end = min(start, end), max(start, end)
        end = start + 1 if end == start else end
    first = 0 if start is None else int(start * fps)
    last = n - 1 if end is None else int(min(end * fps, n - 1))
    indices = np.arange(first, last + 1, max(round(fps), 1), dtype=np.int64)
    if len(indices) > max_frames:
        indices = indices[linspace_frames(len(indices), max_frames)]
    return indices, (np.arange(max_frames) < len(indices)).astype(np.int64)


def _intervals(n: int, frames: int) -> tuple[Indices, Indices]:
    """Return the left (inclusive) and right (exclusive) ends of min(T, n) equal intervals."""
    ends = np.linspace(0, n, num=min(frames, n) + 1).astype(np.int64)
    return ends[:-1], ends[1:]


def _repeat_last(indices: Indices, frames: int) -> Indices:
    return np.concatenate([indices, np.full(frames - len(indices), indices[-1])])


@dataclass(frozen=True)
class _Sampler:
    """Base of the samplers. Raises ValueError for an integer setting, or a number of frames of a video, below 1."""

    frames: int

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.type == "int" and (not isinstance(value, int | np.integer) or value < 1):
                raise ValueError(f"{setting.name} = {value}: must be a whole number, at least 1")

    def train(self, n: int, rng: np.random.RandomState) -> Indices:
        """Sample a random clip, (T,)."""
        _check_num_frames(n)
        return self._train(n, rng)

    def test(self, n: int) -> list[Indices]:
        """Return the test clips, each (T,)."""
        _check_num_frames(n)
        return self._test(n)

    def _train(self, n: int, rng: np.random.RandomState) -> Indices:
        """Return the test clip; `rng` is not used."""
        return self._test(n)[0]

    def _test(self, n: int) -> list[Indices]:
        raise NotImplementedError  # in every subclass


def _check_num_frames(n: int) -> None:
    if n < 1:
        raise ValueError(f"a clip needs a video of at least one frame, not {n}")


@dataclass(frozen=True)
class Dense(_Sampler):
    """T frames, every `stride`-th: the masked encoder on Kinetics (run_class_finetuning.py).

    Test: windows over every `stride`-th frame of the whole video; one view is the center clip of validation.
    """

    frames: int = 16
    stride: int = 4
    num_clips: int = 5

    def _train(self, n: int, rng: np.random.RandomState) -> Indices:
        """Sample a span whose end is uniform in [T * stride, n)."""
        span = self.frames * self.stride
        return dense_span(n, self.frames, self.stride, int(rng.randint(span, n)) if n > span else None)

    def _test(self, n: int) -> list[Indices]:
        """Return `num_clips` windows from the start to the end."""
        if self.num_clips == 1:
            return [dense_span(n, self.frames, self.stride, None)]
        buffer = strided_buffer(n, self.frames, self.stride)
        starts = dense_windows(len(buffer), self.frames, self.num_clips)
        return [buffer[start : start + self.frames] for start in starts]


@dataclass(frozen=True)
class DensePretrain(_Sampler):
    """T frames with exact stride from a random start, masked pretraining (mae.py)."""

    frames: int = 16
    stride: int = 4

    def _train(self, n: int, rng: np.random.RandomState) -> Indices:
        """Start uniform in [0, n - T * stride], 0 in a shorter video."""
        start = int(rng.randint(0, max(n - self.frames * self.stride + 1, 1)))
        return strided_indices(n, self.frames, self.stride, start)

    def _test(self, n: int) -> list[Indices]:
        """Return one clip, the center."""
        return [strided_indices(n, self.frames, self.stride, max(n - self.frames * self.stride, 0) // 2)]


@dataclass(frozen=True)
class DenseLoop(_Sampler):
    """T frames with exact stride from a random start, a short video repeated: open-set recognition.

    Source: OpenGVLab/InternVideo, Open-Set-Action-Recognition/configs/recognition/mae; mmaction2's `DenseSampleFrames`.
    """

    frames: int = 32
    stride: int = 2
    num_clips: int = 10

    def _train(self, n: int, rng: np.random.RandomState) -> Indices:
        """Start uniform in [0, n - T * stride), 0 in a video that is not longer."""
        max_start = max(n - self.frames * self.stride, 0)
        return looped_indices(n, self.frames, self.stride, int(rng.randint(max_start)) if max_start else 0)

    def _test(self, n: int) -> list[Indices]:
        """Return clips at even starts from 0 to n - T * stride, truncated; a single one is the center
        (inference_mae_enn.py)."""
        max_start = max(n - self.frames * self.stride, 0)
        starts = np.linspace(0, max_start, num=self.num_clips).astype(np.int64).tolist()
        starts = starts if self.num_clips > 1 else [(max_start + 1) // 2]
        return [looped_indices(n, self.frames, self.stride, start) for start in starts]


@dataclass(frozen=True)
class Sparse(_Sampler):
    """One frame of each of T equal segments (UniFormerV2 configs)."""

    frames: int = 8
    num_clips: int = 4

    def _train(self, n: int, rng: np.random.RandomState) -> Indices:
        """Sample a uniform frame of each segment, both ends included."""
        ends = [round((n - 1) / self.frames * i) for i in range(self.frames + 1)]
        return np.asarray([rng.randint(ends[i], ends[i + 1] + 1) for i in range(self.frames)], dtype=np.int64)

    def _test(self, n: int) -> list[Indices]:
        """Return `num_clips` clips that are shifted inside the segments."""
        return [sparse_test(n, self.frames, view, self.num_clips) for view in range(self.num_clips)]


@dataclass(frozen=True)
class SparseTwoView(_Sampler):
    """Sparse sampling of the masked encoder on Something-Something (kinetics.py).

    Attributes:
        frames: T segments.
        num_clips: 1 or 2 test clips; clip v takes every `num_clips`-th of the 2 T sorted starts and middles, a single
            one the middles (validation).
        short: training clips of a video of fewer than T frames: "first", as released (copies of the first frame, then
            all frames), "zeros" (T times the first frame) or "spread" (evenly spread frames, some repeated).
    """

    frames: int = 16
    num_clips: int = 2
    short: Literal["first", "zeros", "spread"] = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_clips > 2:
            raise ValueError(f"num_clips = {self.num_clips}: two-view sampling has 1 or 2")

    def _train(self, n: int, rng: np.random.RandomState) -> Indices:
        """Sample a frame of each segment of n // T frames."""
        length = n // self.frames
        if length > 0:
            return np.arange(self.frames, dtype=np.int64) * length + rng.randint(length, size=self.frames)
        if self.short == "first":
            return first_then_all(n, self.frames)
        if self.short == "zeros":
            return np.zeros(self.frames, dtype=np.int64)
        return linspace_frames(n, self.frames)

    def _test(self, n: int) -> list[Indices]:
        """Return the even and odd positions of the sorted order, or the middles."""
        if self.num_clips == 1:
            return [raw_frames_middle(n, self.frames)]
        order = two_view_order(n, self.frames)
        return [order[view :: self.num_clips] for view in range(self.num_clips)]


@dataclass(frozen=True)
class SegmentMiddle(_Sampler):
    """One frame of each of T equal intervals: the language tasks (multi-modalities-downstream).

    A video of fewer than T frames gives all of them, then its last one again.
    """

    frames: int = 8

    def _train(self, n: int, rng: np.random.RandomState) -> Indices:
        """Sample a frame of each interval but its last one, which the released loader never draws."""
        left, right = _intervals(n, self.frames)
        return _repeat_last(rng.randint(left, np.maximum(right - 1, left + 1)).astype(np.int64), self.frames)

    def _test(self, n: int) -> list[Indices]:
        """Return one clip, the middles."""
        return [_repeat_last(segment_middle(n, self.frames), self.frames)]


@dataclass(frozen=True)
class Linspace(_Sampler):
    """T frames from the first to the last, the same in training and test (Multi-Modalities-Pretraining)."""

    frames: int = 8

    def _test(self, n: int) -> list[Indices]:
        """Return one clip."""
        return [linspace_frames(n, self.frames)]


@dataclass(frozen=True)
class OnePerSecond(_Sampler):
    """One frame per second of the whole video, subsampled evenly to at most T (Video-Text-Retrieval).

    The only sampler that returns fewer than T indices, for a video shorter than T seconds. The loader pads such a clip
    with black frames and marks the real ones in `Batch.frame_mask`.

    Attributes:
        frames: T, the maximum number of frames of a clip.
        rate: frames per second of the video; the loader sets it for each one.
    """

    frames: int = 12
    rate: float = field(default=1.0, repr=False)

    def _test(self, n: int) -> list[Indices]:
        """Return one clip."""
        return [one_per_second(n, self.rate, self.frames)[0]]


SAMPLERS: dict[str, type[FrameSampler]] = {
    "dense": Dense,
    "dense_pretrain": DensePretrain,
    "dense_loop": DenseLoop,
    "sparse": Sparse,
    "sparse_two_view": SparseTwoView,
    "segment_middle": SegmentMiddle,
    "linspace": Linspace,
    "one_per_second": OnePerSecond,
}
"""Name in recipes -> sampler."""
