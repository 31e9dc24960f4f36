"""Video files in, RGB frames out: the only decoder of the package.

`probe` tells what a file holds, `Video` reads frames by index or by time. A frame is what the file says is shown at
that moment, or a VideoError; never a neighbour, never a damaged picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import VideoError
from internvideo.video.cache import recall, remember, stamp_of
from internvideo.video.conversion import Converter, chosen_conversion, scaled, upright
from internvideo.video.damage import DamageError, chosen_policy, gaps_of, stand_ins, told
from internvideo.video.frame_folder import FrameFolder
from internvideo.video.index import Index, VideoInfo, describe, index_from_packets, make_strict
from internvideo.video.opening import Deadline, cannot_be_read, fail, open_file
from internvideo.video.scan import index_from_frames
from internvideo.video.seek import PictureSource
from internvideo.video.torchcodec_backend import SecondDecoder, chosen, may_serve

__all__ = ["BUDGET", "MAX_SECONDS", "Video", "VideoInfo", "probe", "read_frames"]

MAX_SECONDS = 6 * 3600.0
"""Longest video, in seconds of play, that is indexed."""

Indices = NDArray[np.int64]

BUDGET = 120.0
"""Seconds of work that one call may take."""


def probe(path: str | os.PathLike[str], *, protocols: bool = False, fps: float | None = None) -> VideoInfo:
    """Find out what a file holds; arguments are those of `Video`. Raises VideoError when it cannot be read."""
    with Video(path, protocols=protocols, fps=fps) as video:
        return video.info


def read_frames(
    path: str | os.PathLike[str],
    indices: Sequence[int] | NDArray[np.integer[Any]],
    *,
    short_side: int | None = None,
    fps: float | None = None,
) -> NDArray[np.uint8]:
    """(len(indices), H, W, 3) uint8 RGB frames of a file, in the order asked. Raises VideoError."""
    with Video(path, short_side=short_side, fps=fps) as video:
        return video.frames(indices)


class Video(PictureSource):
    """An open video file. Use it as a context manager; it is not meant to be shared by threads.

    Args:
        path: a local file, or a folder of frames (`frame_folder`).
        threads: decoder threads; one is right inside loader workers.
        max_seconds: longest video (s of play) that is accepted.
        short_side: frames are scaled down, in the decoder, so that their shorter side has this many pixels;
            smaller ones stay as they are.
        protocols: also accept addresses (`video.opening.PROTOCOLS`); by default only regular files of this machine are
            opened.
        budget: seconds of work that opening, or one call of `frames`, may take.
        damage: what becomes of damaged pictures. "skip": they are refused, one by one, and the video goes on at the
            next key frame; `sound` and `picked` leave them out. "stop": the video ends at the first one. "repeat": the
            last sound picture stands for them. None: what the environment's INTERNVIDEO_DAMAGE says, else "skip".
        backend: what decodes `frames`: "pyav"; "torchcodec" (wherever it gives the same frames; but it patches damaged
            pictures of most codecs up without a word); "auto" (where it is also no slower and refuses damage); None:
            what the environment's INTERNVIDEO_DECODER says, else "auto".
        deinterlace: pictures marked as interlaced give their first field, filled in (`video.conversion`); times and
            numbers stay. None: what the environment's INTERNVIDEO_DEINTERLACE (0, 1) says, else True.
        tone_map: pictures of high dynamic range (`VideoInfo.hdr`) are brought to BT.709 (`video.tone_map`); without it
            their code values are given as they are. None: what INTERNVIDEO_TONE_MAP (0, 1) says, else False.
        fps: frames a second of a folder of frames, by default INTERNVIDEO_FRAME_RATE; files tell their own.

    Attributes:
        info: what the file holds.
        decoder: which decoder gave the latest frames, "pyav" or "torchcodec".
        stamp: of the file before it was opened (`video.cache.stamp_of`).

    Raises:
        VideoError: the file cannot be read, with the reason and, where there is one, the time in the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 1,
        max_seconds: float = MAX_SECONDS,
        short_side: int | None = None,
        protocols: bool = False,
        budget: float = BUDGET,
        backend: str | None = None,
        damage: str | None = None,
        deinterlace: bool | None = None,
        tone_map: bool | None = None,
        fps: float | None = None,
    ) -> None:
        if short_side is not None and short_side < 1:
            raise ValueError(f"short_side is {short_side}, must be at least 1")
        self.path = os.fspath(path)
        backend, self.damage = chosen(backend, self.path), chosen_policy(damage)
        conversion = chosen_conversion(deinterlace, tone_map)
        self.decoder = "pyav"
        self._threads, self._protocols, self._budget, self._fps = threads, protocols, budget, fps
        self._container: Any = None
        self._packets: Iterator[Any] = iter(())
        self._second: SecondDecoder | None = None
        self.stamp = None if protocols else stamp_of(self.path)
        try:
            self._index = self._build_index(Deadline(self.path, budget), max_seconds)
            if self.damage == "stop":
                self._index = self._index.cut()
            self.info = describe(self.path, self._index, self._stream)
        except BaseException as error:
            self.close()
            if isinstance(error, VideoError) or not isinstance(error, Exception):
                raise
            # Whatever the library makes of the bytes of one file, it must not end a run over many.
            raise cannot_be_read(self.path, error) from error
        self._size = scaled(self._index.first.width, self._index.first.height, short_side)
        self._conversion = conversion
        self._converter = Converter(self.info.codec, conversion)
        self._position = -1
        if may_serve(backend, self._index, self._stream, conversion) and not protocols and short_side is None:
            always = backend == "torchcodec"
            self._second = SecondDecoder(self.path, self._index, self._stream, threads=threads, always=always)

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back. Closing twice does no harm."""
        self._packets = iter(())
        if self._container is not None:
            self._container.close()
        if self._second is not None:
            self._second.close()

    def forget(self) -> None:
        """Give back the memory of decoded pictures; they are decoded again when they are asked for."""
        self._index.kept = None

    def again(self) -> Video:
        """Another reader of the file for another thread, with the same settings and what is known of its frames; what
        it finds out about damage is not known to this one. Raises VideoError."""
        other = copy(self)
        other._container, other._second, other._packets, other._position = None, None, iter(()), -1
        other._index = replace(self._index, bad=self._index.bad.copy())
        other._converter = Converter(self.info.codec, self._conversion)
        if self._folder is None:
            other._open()
            make_strict(other._stream.codec_context, other._index)
        return other

    @property
    def key_frames(self) -> Indices:
        """Frames (K,) at which reading can begin; none where a file can only be decoded from its start."""
        if self._folder is not None:
            return np.arange(self.info.frames)
        return np.flatnonzero(self._index.key[self._index.order]) if self._index.exact else np.zeros(0, np.int64)

    def _open(self) -> None:
        """Open the file, anew where it was open."""
        self.close()
        self._container, self._stream = open_file(
            self.path, protocols=self._protocols, threads=self._threads, seconds=self._budget
        )

    def _build_index(self, deadline: Deadline, max_seconds: float) -> Index:
        if os.path.isdir(self.path):
            self._folder = self._stream = FrameFolder(self.path, self._fps)
            return self._folder.index(deadline, max_seconds)
        self._open()
        index = recall(self.stamp)
        if index is not None and index.times[-1] - index.times[0] <= max_seconds:
            make_strict(self._stream.codec_context, index)
            return index
        index = index_from_packets(self._container, self._stream, self.path, deadline, max_seconds)
        if index is None:
            self._open()
            index = index_from_frames(self._container, self._stream, self.path, deadline, max_seconds)
        remember(self.stamp, index)
        return index

    def frames(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Read frames by their place in presentation order.

        Args:
            indices: any order, repeats allowed, each in [0, info.frames).

        Returns: (len(indices), H, W, 3) uint8 RGB, rotated upright, in the order asked.

        Raises:
            DamageError: a damaged one is among them and nothing stands for it. VideoError: anything else.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        while True:
            try:
                return self._frames(self.stand_ins(wanted))
            except DamageError:
                if self.damage != "repeat" or self._index.bad.all():
                    raise

    def _frames(self, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.check(wanted)
        second, deadline = self._second, Deadline(self.path, self._budget)
        theirs = second.frames(wanted) if second is not None and second.serves(wanted) else None
        deadline.check()
        if second is not None and theirs is not None and second.proven:
            self.decoder = "torchcodec"
            return theirs
        self.decoder = "pyav"
        ours = self._decoded(wanted, deadline)
        if second is not None and theirs is not None:
            second.judge(theirs, ours)
        return ours

    def _decoded(self, wanted: NDArray[np.int64], deadline: Deadline) -> NDArray[np.uint8]:
        """`frames` of indices that were checked."""
        width, height = self._size
        out = np.empty((len(wanted), height, width, 3), np.uint8)
        places: dict[int, list[int]] = {}
        for place, index in enumerate(wanted.tolist()):
            places.setdefault(index, []).append(place)
        try:
            for index, picture in self._source(sorted(places), deadline):
                first, *more = places[index]
                self._converter.write(picture, out[first])
                for place in more:
                    out[place] = out[first]
        except VideoError:
            raise
        except Exception as error:  # the libraries raise more kinds than they name; a file's fault ends no run
            raise cannot_be_read(self.path, error) from error
        return upright(out, self.info.rotation, self.info.mirrored)

    def pictures(self, wanted: NDArray[np.int64], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """(index, decoded picture) of rising, sound indices for `walk`; one that comes anew replaces the one before."""
        yield from self._source(wanted.tolist(), deadline)

    def picked(
        self, inside: Indices, choose: Callable[[Indices], Sequence[Indices]]
    ) -> tuple[list[Indices], NDArray[np.uint8]]:
        """What `choose` takes of the sound frames of `inside`, and these frames (N, H, W, 3), one behind the other.

        It chooses anew when damage comes to light. Raises VideoError.
        """
        while True:
            chosen = list(choose(self.sound(inside)))
            try:
                return chosen, self.frames(np.concatenate(chosen))
            except DamageError:
                if self.damage != "skip":
                    raise

    def sound(self, indices: Indices) -> Indices:
        """`indices` without those that are known to be damaged and are left out. DamageError when none is left."""
        if self.damage != "skip" or not self._index.bad.any():
            return indices
        left = indices[~self._index.bad[indices]]
        if len(indices) and not len(left):
            raise self._damaged(int(indices[0]))
        return left

    def stand_ins(self, indices: Indices, *, skipped: bool = False) -> Indices:
        """`indices` with the last sound frame in the place of each one known to be damaged, where that is wanted: when
        pictures are repeated and, with `skipped`, also when they are left out."""
        wanted = self.damage == "repeat" or (skipped and self.damage == "skip")
        # What is outside is told by `check`.
        inside = len(indices) and indices.min() >= 0 and indices.max() < self.info.frames
        return stand_ins(self._index.bad, indices) if wanted and inside and self._index.bad.any() else indices

    def lacks(self, indices: Indices) -> NDArray[np.bool_]:
        """Which are known to be damaged, or are outside the video."""
        outside = (indices < 0) | (indices >= self.info.frames)
        lacking: NDArray[np.bool_] = outside | self._index.bad[np.where(outside, 0, indices)]
        return lacking

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """From and to (s, as `info.times`) where nothing sound is shown, as far as it has come to light."""
        return gaps_of(self._index)

    @property
    def trouble(self) -> str:
        """What of the video is not to be had, in words; "" while nothing is known."""
        return told(self.gaps, self.info.stopped)

    def upright(self, picture: Any) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of a decoded picture."""
        out = np.empty((1, self._size[1], self._size[0], 3), np.uint8)
        self._converter.write(picture, out[0])
        frame: NDArray[np.uint8] = upright(out, self.info.rotation, self.info.mirrored)[0]
        return frame

    def at(self, times: Sequence[float] | NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """Read the frames that are on screen at `times` (s, as `info.times`).

        A frame stays until the next one is shown, the last one for its own duration; the first one stands from 0 on.

        Returns: (len(times), H, W, 3) uint8 RGB in the order asked.
        """
        asked = np.asarray(times, dtype=np.float64).reshape(-1)
        info = self.info
        # Times computed as k / fps must not fall on the frame before by a rounding of the last digit.
        slack = 1e-6
        outside = ~((asked >= -slack) & (asked <= info.duration + slack))
        if outside.any():
            at = float(asked[np.argmax(outside)])
            raise fail(self.path, f"nothing is shown, the video runs from 0 to {info.duration:.3f} s, asked", at)
        shown = np.clip(np.searchsorted(info.times, asked + slack, side="right") - 1, 0, info.frames - 1)
        for time in asked.tolist():
            self.check_moment(time)
        return self.frames(shown)

    def check_moment(self, time: float) -> None:
        """Raise DamageError where the picture shown at a time (s) is lost, and no other one stands for it."""
        for begin, stop in () if self.damage == "repeat" else self._index.holes - self._index.zero:
            if begin - 1e-6 <= time < stop - 1e-6:
                raise DamageError(self.path, f"what is shown at {time:.3f} s is damaged")

    def check(self, wanted: NDArray[np.int64]) -> None:
        """Raise VideoError for indices outside the video, DamageError for frames known to be damaged."""
        info = self.info
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= info.frames):
            index = int(wanted.min()) if wanted.min() < 0 else int(wanted.max())
            why = f" ({info.stopped})" if info.stopped else ""
            found = f"frame {index} asked, readable are 0 to {info.frames - 1}{why}, the video ends"
            raise fail(self.path, found, info.duration)
        bad = self._index.bad[wanted]
        if bad.any():
            index = int(wanted[np.argmax(bad)])
            raise self._damaged(index)
