"""Decode the sampled frames of manifest rows, from their files or from the cache of decoded videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.data.decoding.clip_cache import ClipCache
from internvideo.data.key_frame_indices import SLACK
from internvideo.data.manifest import Manifest, Sample
from internvideo.data.packing.members import Member, extract_member, locate_member
from internvideo.data.shard_files import ShardContents
from internvideo.errors import VideoError
from internvideo.video.cache import stamp_of
from internvideo.video.conversion import resolve_conversion
from internvideo.video.damage import resolve_policy
from internvideo.video.pool import borrow
from internvideo.video.reader import Video, VideoInfo

Indices = NDArray[np.int64]


class ManifestClipDecoder:
    """Decode clips of a manifest, with an optional bounded cache of the decoded frames of whole samples (spans).

    Args:
        manifest: the samples.
        short_side: scale in the decoder so that the shorter side has this many pixels; None keeps the size.
        cache_bytes: maximum size of the cache, which all workers share (`clip_cache`).
    """

    def __init__(self, manifest: Manifest, *, short_side: int | None = None, cache_bytes: int = 0) -> None:
        self.manifest, self.short_side = manifest, short_side
        self._cache = ClipCache(cache_bytes)
        self._shards = ShardContents()
        self._damaged: set[str] = set()
        self._truncated_spans: dict[str, str | None] = {}  # sample id -> message, None after it was returned
        self.labeled = manifest.labeled

    @property
    def cached_bytes(self) -> int:
        """Size of the cached frames."""
        return self._cache.used_bytes

    def clips(self, sample: Sample, select_frames: Callable[[NDArray[np.float64]], Sequence[Indices]]) -> list[Tensor]:
        """Decode the frames that `select_frames` selects, given the times (n,) in seconds of the frames in the span.

        Returns: the frames (T, H, W, 3) uint8 for each index array (T,) in [0, n) of `select_frames`.

        Raises VideoError: the video cannot be read, or has no frame inside the span.
        """
        member = locate_member(sample, self.manifest.root)
        key = self._cache_key(sample, member) if self._cache.max_bytes else None
        cached = self._cache.read(key) if key else None
        if cached is None:
            with self._open_video(sample, member) as video:
                frame_indices = _frames_in_span(video.info, sample)
                if sample.span is not None and sample.span[1] > (end := video.info.duration) + SLACK:
                    self._truncated_spans.setdefault(sample.id, f"'{sample.id}' to {sample.span[1]:g} s of {end:.3f} s")
                cached = self._decode_for_cache(key, sample, video, frame_indices) if key else None
                if cached is None:
                    all_times = video.info.times
                    decoded_clips = video.sample(frame_indices, lambda decodable: select_frames(all_times[decodable]))
                    return [torch.from_numpy(clip) for clip in decoded_clips]
        return [torch.from_numpy(_take_frames(cached[0], indices)) for indices in select_frames(cached[1])]

    def take_truncated_spans(self) -> tuple[str, ...]:
        """Return, once per sample, a message about spans that end after their video."""
        messages = tuple(line for line in self._truncated_spans.values() if line)
        self._truncated_spans = dict.fromkeys(self._truncated_spans)
        return messages

    @contextmanager
    def _open_video(self, sample: Sample, member: Member | None) -> Iterator[Video]:
        if member is None:
            path = self.manifest.video_path(sample)
            with borrow(path, short_side=self.short_side, fps=sample.frame_rate) as video:
                yield video
            return
        with (
            extract_member(member, self._shards, sample.path) as name,
            Video(name, short_side=self.short_side) as video,
        ):
            yield video

    def _cache_key(self, sample: Sample, member: Member | None) -> tuple[object, ...] | None:
        """Return everything that the decoded span depends on; None for a remote or special file, which has no stamp."""
        stamp = stamp_of(str(self.manifest.video_path(sample))) if member is None else member
        decoder_settings = resolve_conversion(), resolve_policy(None), sample.frame_rate
        return stamp and (stamp, self.short_side, sample.span, *decoder_settings)

    def _decode_for_cache(
        self, key: tuple[object, ...], sample: Sample, video: Video, frame_indices: Indices
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]] | None:
        """Decode the span and add it to the cache; return frames and times, None if it does not fit."""
        info = video.info
        scale = min(1.0, (self.short_side or info.width) / min(info.width, info.height))
        # One pixel more per side than the decoder could round to.
        size = len(frame_indices) * 3 * (int(info.width * scale) + 2) * (int(info.height * scale) + 2)
        if sample.id in self._damaged or not self._cache.reserve(size):
            return None
        try:
            frames, times = video.frames(frame_indices), info.times[frame_indices]
        except VideoError:  # a damaged frame that the sampler may never select
            self._damaged.add(sample.id)
            self._cache.release(size)
            return None
        unchanged = self._cache_key(sample, locate_member(sample, self.manifest.root)) == key
        written = unchanged and self._cache.write(key, frames, times)
        self._cache.release(size - frames.nbytes * written)
        return frames, times


def _take_frames(frames: NDArray[np.uint8], indices: Indices) -> NDArray[np.uint8]:
    """Return frames[indices], without a copy where the frames are equally far apart."""
    steps = np.diff(indices)
    if len(steps) and steps[0] > 0 and (steps == steps[0]).all():
        return frames[indices[0] : indices[-1] + 1 : steps[0]]
    return frames[indices]


def _frames_in_span(info: VideoInfo, sample: Sample) -> Indices:
    """Return the indices of the frames in the sample's span, which may end after the video."""
    if sample.span is None:
        return np.arange(info.frames, dtype=np.int64)
    start, end = sample.span
    frame_indices = info.within(start, end)
    if not len(frame_indices):
        message = f"no frame from {start:g} s to {end:g} s (sample '{sample.id}')"
        raise VideoError(info.path, message, f"0 to {info.duration:.3f} s")
    return frame_indices
