"""Read RGB frames of video files by index or by time; the only decoder of the package.

`read_video_info` returns the properties of a file. Reads are frame-exact: a frame is the one displayed at that time, or
a VideoError is raised; never a neighboring or a damaged frame.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import VideoError
from internvideo.video.cache import Stamp, lookup, stamp_of, store
from internvideo.video.conversion import Converter, resolve_conversion, scaled_size, upright
from internvideo.video.damage import DamageError, damage_report, gaps_of, replacement_indices, resolve_policy
from internvideo.video.frame_folder import FrameFolder
from internvideo.video.index import Index, VideoInfo, describe, index_from_packets, make_strict
from internvideo.video.opening import Deadline, as_video_error, fail, open_file
from internvideo.video.scan import index_from_frames
from internvideo.video.seek import FrameSource
from internvideo.video.torchcodec_backend import TorchcodecDecoder, is_supported, resolve_backend

__all__ = ["BUDGET", "MAX_SECONDS", "Video", "VideoInfo", "read_frames", "read_video_info"]

MAX_SECONDS = 6 * 3600.0
"""Maximum duration of a video, seconds."""

Indices = NDArray[np.int64]

BUDGET = 120.0
"""Maximum seconds per call."""


def read_video_info(path: str | os.PathLike[str], *, allow_urls: bool = False, fps: float | None = None) -> VideoInfo:
    """Read the properties of a video file; arguments as for `Video`. Raises VideoError when it cannot be read."""
    with Video(path, allow_urls=allow_urls, fps=fps) as video:
        return video.info


def read_frames(
    path: str | os.PathLike[str],
    indices: Sequence[int] | NDArray[np.integer[Any]],
    *,
    short_side: int | None = None,
    fps: float | None = None,
) -> NDArray[np.uint8]:
    """Read frames of a file as (len(indices), H, W, 3) uint8 RGB, in the order of `indices`. Raises VideoError."""
    with Video(path, short_side=short_side, fps=fps) as video:
        return video.frames(indices)


class Video(FrameSource):
    """An open video file. Use it as a context manager; not thread-safe.

    Args:
        path: a local file, or a folder of frames (`frame_folder`).
        threads: decoder threads; use 1 inside loader workers.
        max_seconds: maximum duration of the video (s).
        short_side: scale frames down, in the decoder, so that their shorter side has this many pixels; smaller frames
            keep their size.
        allow_urls: also accept URLs (`video.opening.PROTOCOLS`); by default only regular local files are opened.
        budget: maximum seconds of opening and of each call of `frames`.
        damage: handling of damaged frames. "skip": reading one raises and the video continues at the next key frame;
            `without_damaged` and `sample` leave them out. "stop": the video ends at the first one. "repeat": the last
            intact frame replaces them. None: the environment's INTERNVIDEO_DAMAGE, else "skip".
        backend: decoder of `frames`: "pyav"; "torchcodec" (wherever it gives the same frames; but it silently conceals
            damaged frames of most codecs); "auto" (torchcodec where it is also no slower and raises on damage); None:
            the environment's INTERNVIDEO_DECODER, else "auto".
        deinterlace: interpolate the first field of interlaced frames (`video.conversion`); times and indices do not
            change. None: the environment's INTERNVIDEO_DEINTERLACE (0, 1), else True.
        tone_map: convert frames of high dynamic range (`VideoInfo.hdr`) to BT.709 (`video.tone_map`); otherwise their
            code values are returned unchanged. None: the environment's INTERNVIDEO_TONE_MAP (0, 1), else False.
        fps: frames per second of a folder of frames, by default INTERNVIDEO_FRAME_RATE; not used for files.
        stamp: `stamp_of(path)`, of a caller that has it already.

    Attributes:
        info: properties of the file.
        decoder: decoder of the latest frames, "pyav" or "torchcodec".
        stamp: stamp of the file before it was opened (`video.cache.stamp_of`).

    Raises VideoError: the file cannot be read; gives the reason and, if known, the time in the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 1,
        max_seconds: float = MAX_SECONDS,
        short_side: int | None = None,
        allow_urls: bool = False,
        budget: float = BUDGET,
        backend: str | None = None,
        damage: str | None = None,
        deinterlace: bool | None = None,
        tone_map: bool | None = None,
        fps: float | None = None,
        stamp: Stamp | None = None,
    ) -> None:
        if short_side is not None and short_side < 1:
            raise ValueError(f"short_side is {short_side}, must be at least 1")
        self.path = os.fspath(path)
        backend, self.damage = resolve_backend(backend, self.path), resolve_policy(damage)
        conversion = resolve_conversion(deinterlace, tone_map)
        self.decoder = "pyav"
        self._threads, self._allow_urls, self._budget, self._fps = threads, allow_urls, budget, fps
        self._container: Any = None
        self._packets: Iterator[Any] = iter(())
        self._cached_packets: list[Any] = []
        self._torchcodec: TorchcodecDecoder | None = None
        self.stamp = None if allow_urls else stamp or stamp_of(self.path)
        try:
            self._index = self._build_index(Deadline(self.path, budget), max_seconds)
            if self.damage == "stop":
                self._index = self._index.truncated_at_damage()
            self.info = describe(self.path, self._index, self._stream)
        except BaseException as error:
            self.close()
            if isinstance(error, VideoError) or not isinstance(error, Exception):
                raise
            # No exception of the library over the bytes of one file may end a run over many.
            raise as_video_error(self.path, error) from error
        self._size = scaled_size(self._index.first.width, self._index.first.height, short_side)
        self._conversion = conversion
        self._converter = Converter(self.info.codec, conversion)
        self._position = -1
        if is_supported(backend, self._index, self._stream, conversion) and not allow_urls and short_side is None:
            always = backend == "torchcodec"
            self._torchcodec = TorchcodecDecoder(self.path, self._index, self._stream, threads=threads, always=always)

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; may be called repeatedly."""
        self._packets = iter(())
        if self._container is not None:
            self._container.close()
        if self._torchcodec is not None:
            self._torchcodec.close()

    def clear_cache(self) -> None:
        """Free the memory of cached packets and decoded frames; they are read again when needed."""
        self._index.frame_cache, self._cached_packets = None, []

    def again(self) -> Video:
        """Open the file again for another thread, with the same settings and the current index; damage that one of them
        detects is not marked in the other. Raises VideoError."""
        other = copy(self)
        other._container, other._torchcodec, other._packets, other._position = None, None, iter(()), -1
        other._cached_packets = []
        other._index = replace(self._index, corrupt=self._index.corrupt.copy())
        other._converter = Converter(self.info.codec, self._conversion)
        if self._folder is None:
            other._open()
            make_strict(other._stream.codec_context, other._index)
        return other

    @property
    def key_frames(self) -> Indices:
        """Indices (K,) of the frames where decoding can start; empty for a file that is not seekable."""
        if self._folder is not None:
            return np.arange(self.info.frames)
        return np.flatnonzero(self._index.key[self._index.order]) if self._index.seekable else np.zeros(0, np.int64)

    def _open(self) -> None:
        """Open or reopen the file."""
        self.close()
        self._container, self._stream = open_file(
            self.path, allow_urls=self._allow_urls, threads=self._threads, seconds=self._budget
        )

    def _build_index(self, deadline: Deadline, max_seconds: float) -> Index:
        if os.path.isdir(self.path):
            self._folder = self._stream = FrameFolder(self.path, self._fps)
            return self._folder.index(deadline, max_seconds)
        self._open()
        index = lookup(self.stamp)
        if index is not None and index.times[-1] - index.times[0] <= max_seconds:
            make_strict(self._stream.codec_context, index)
            return index
        indexed = index_from_packets(self._container, self._stream, self.path, deadline, max_seconds)
        if indexed is not None:
            index, self._cached_packets = indexed
        else:
            self._open()
            index = index_from_frames(self._container, self._stream, self.path, deadline, max_seconds)
        store(self.stamp, index)
        return index

    def frames(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Read frames by their index in presentation order.

        Args:
            indices: any order, repeats allowed, each in [0, info.frames).

        Returns: (len(indices), H, W, 3) uint8 RGB, rotated upright, in the order of `indices`.

        Raises DamageError: one of them is damaged and not replaced. VideoError: anything else.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        while True:
            try:
                return self._frames(self.replace_damaged(wanted))
            except DamageError:
                if self.damage != "repeat" or self._index.corrupt.all():
                    raise

    def _frames(self, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.check_indices(wanted)
        torchcodec, deadline = self._torchcodec, Deadline(self.path, self._budget)
        if torchcodec is None or not torchcodec.can_decode(wanted):
            self.decoder = "pyav"
            return self._decode_with_pyav(wanted, deadline)
        from_torchcodec = torchcodec.frames(wanted)
        deadline.check()
        if from_torchcodec is not None and torchcodec.is_verified:
            self.decoder = "torchcodec"
            return from_torchcodec
        self.decoder = "pyav"
        from_pyav = self._decode_with_pyav(wanted, deadline)
        if from_torchcodec is not None:
            torchcodec.compare(from_torchcodec, from_pyav)
        return from_pyav

    def _decode_with_pyav(self, wanted: NDArray[np.int64], deadline: Deadline) -> NDArray[np.uint8]:
        """Decode the frames of checked indices with PyAV."""
        width, height = self._size
        out = np.empty((len(wanted), height, width, 3), np.uint8)
        positions: dict[int, list[int]] = {}
        for position, index in enumerate(wanted.tolist()):
            positions.setdefault(index, []).append(position)
        try:
            for index, frame in self._decode(sorted(positions), deadline):
                first, *more = positions[index]
                self._converter.write(frame, out[first])
                for position in more:
                    out[position] = out[first]
        except VideoError:
            raise
        except Exception as error:  # the libraries raise more types than they document
            raise as_video_error(self.path, error) from error
        return upright(out, self.info.rotation, self.info.mirrored)

    def decoded_frames(self, wanted: NDArray[np.int64], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """Yield (index, decoded frame) of increasing, intact indices for `iter_frames`; a repeated one replaces the
        earlier."""
        yield from self._decode(wanted.tolist(), deadline)

    def sample(self, inside: Indices, sample_fn: Callable[[Indices], Sequence[Indices]]) -> list[NDArray[np.uint8]]:
        """Sample frames: call `sample_fn` with the intact indices of `inside` and decode those at its positions.

        `sample_fn` is called again when decoding reveals damage.

        Returns: the frames (N, H, W, 3) of each of its arrays of positions; no frame is decoded twice.

        Raises: VideoError.
        """
        while True:
            intact = self.without_damaged(inside)
            samples = sample_fn(intact)
            try:
                decoded = self.frames(intact[np.concatenate(samples)])
                return np.split(decoded, np.cumsum([len(sample) for sample in samples])[:-1])
            except DamageError:
                if self.damage != "skip":
                    raise

    def without_damaged(self, indices: Indices) -> Indices:
        """Drop the indices of known damaged frames, under policy "skip". Raises DamageError when none remains."""
        if self.damage != "skip" or not self._index.corrupt.any():
            return indices
        remaining = indices[~self._index.corrupt[indices]]
        if len(indices) and not len(remaining):
            raise self._damage_error(int(indices[0]))
        return remaining

    def replace_damaged(self, indices: Indices, *, skipped: bool = False) -> Indices:
        """Replace known damaged frames by the last intact one, under policy "repeat" and, with `skipped`, "skip"."""
        wanted = self.damage == "repeat" or (skipped and self.damage == "skip")
        # Indices out of range are reported by `check_indices`.
        inside = len(indices) and indices.min() >= 0 and indices.max() < self.info.frames
        corrupt = self._index.corrupt
        return replacement_indices(corrupt, indices) if wanted and inside and corrupt.any() else indices

    def is_missing(self, indices: Indices) -> NDArray[np.bool_]:
        """Return which of `indices` are known to be damaged or are out of range."""
        outside = (indices < 0) | (indices >= self.info.frames)
        missing: NDArray[np.bool_] = outside | self._index.corrupt[np.where(outside, 0, indices)]
        return missing

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Known (start, end) intervals without an intact frame, in seconds of `info.times`."""
        return gaps_of(self._index)

    @property
    def damage_report(self) -> str:
        """Description of the known damage; "" without any."""
        return damage_report(self.gaps, self.info.truncation_reason)

    def to_rgb(self, frame: Any) -> NDArray[np.uint8]:
        """Convert a decoded frame to upright (H, W, 3) uint8 RGB."""
        out = np.empty((1, self._size[1], self._size[0], 3), np.uint8)
        self._converter.write(frame, out[0])
        rgb: NDArray[np.uint8] = upright(out, self.info.rotation, self.info.mirrored)[0]
        return rgb

    def frames_at(self, times: Sequence[float] | NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """Read the frames displayed at `times` (s, as `info.times`).

        A frame is displayed until the next one, the last one for its own duration; the first one also from 0 on.

        Returns: (len(times), H, W, 3) uint8 RGB in the order of `times`.
        """
        requested = np.asarray(times, dtype=np.float64).reshape(-1)
        info = self.info
        # Times computed as k / fps must not select the previous frame through rounding of the last digit.
        slack = 1e-6
        outside = ~((requested >= -slack) & (requested <= info.duration + slack))
        if outside.any():
            at = float(requested[np.argmax(outside)])
            raise fail(self.path, f"nothing is shown, the video runs from 0 to {info.duration:.3f} s, asked", at)
        shown = np.clip(np.searchsorted(info.times, requested + slack, side="right") - 1, 0, info.frames - 1)
        for time in requested.tolist():
            self.check_time(time)
        return self.frames(shown)

    def check_time(self, time: float) -> None:
        """Raise DamageError where the frame displayed at a time (s) is lost and not replaced."""
        for begin, stop in () if self.damage == "repeat" else self._index.holes - self._index.zero:
            if begin - 1e-6 <= time < stop - 1e-6:
                raise DamageError(self.path, f"what is shown at {time:.3f} s is damaged")

    def check_indices(self, wanted: NDArray[np.int64]) -> None:
        """Raise VideoError for indices out of range, DamageError for known damaged frames."""
        info = self.info
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= info.frames):
            index = int(wanted.min()) if wanted.min() < 0 else int(wanted.max())
            why = f" ({info.truncation_reason})" if info.truncation_reason else ""
            found = f"frame {index} asked, readable are 0 to {info.frames - 1}{why}, the video ends"
            raise fail(self.path, found, info.duration)
        corrupt = self._index.corrupt[wanted]
        if corrupt.any():
            raise self._damage_error(int(wanted[np.argmax(corrupt)]))
