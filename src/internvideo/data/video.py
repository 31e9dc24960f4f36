"""Video files in, RGB frames out: the only decoder of the package.

`probe` tells what a file holds, `Video` reads frames by index or by time. A frame is what the file says is shown at
that moment, or a VideoError; never a neighbour, never a damaged picture.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from itertools import chain
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.data.video_cache import recall, remember, stamp_of
from internvideo.data.video_index import (
    Index,
    VideoInfo,
    decode,
    describe,
    index_from_packets,
    make_strict,
)
from internvideo.data.video_open import Deadline, cannot_be_read, fail, open_file, packets
from internvideo.data.video_picture import Converter, scaled, upright
from internvideo.data.video_scan import index_from_frames, pictures_in_order
from internvideo.data.video_torchcodec import SecondDecoder, chosen, may_serve
from internvideo.errors import VideoError

__all__ = ["BUDGET", "MAX_SECONDS", "Video", "VideoInfo", "probe", "read_frames"]

MAX_SECONDS = 6 * 3600.0
"""Longest video, in seconds of play, that is indexed."""

BUDGET = 120.0
"""Seconds of work that one call may take."""


def probe(path: str | os.PathLike[str], *, protocols: bool = False) -> VideoInfo:
    """Find out what a file holds. Raises VideoError when it is not a video that can be read."""
    with Video(path, protocols=protocols) as video:
        return video.info


def read_frames(
    path: str | os.PathLike[str], indices: Sequence[int] | NDArray[np.integer[Any]], *, short_side: int | None = None
) -> NDArray[np.uint8]:
    """(len(indices), H, W, 3) uint8 RGB frames of a file, in the order asked. Raises VideoError."""
    with Video(path, short_side=short_side) as video:
        return video.frames(indices)


class Video:
    """An open video file. Use it as a context manager; it is not meant to be shared by threads.

    Args:
        path: a local file.
        threads: decoder threads; one is right inside loader workers.
        max_seconds: longest video (s of play) that is accepted.
        short_side: frames are scaled down, in the decoder, so that their shorter side has this many pixels;
            smaller ones stay as they are.
        protocols: also accept addresses (`video_open.PROTOCOLS`); by default only regular files of this machine are
            opened.
        budget: seconds of work that opening, or one call of `frames`, may take.
        backend: what decodes `frames`: "pyav"; "torchcodec" (wherever it gives the same frames; but it patches damaged
            pictures of most codecs up without a word); "auto" (where it is also no slower and refuses damage); None:
            what the environment's INTERNVIDEO_DECODER says, else "auto".

    Attributes:
        info: what the file holds.
        decoder: which decoder gave the latest frames, "pyav" or "torchcodec".
        stamp: of the file before it was opened (`video_cache.stamp_of`).

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
    ) -> None:
        if short_side is not None and short_side < 1:
            raise ValueError(f"short_side is {short_side}, must be at least 1")
        self.path = os.fspath(path)
        backend = chosen(backend, self.path)
        self.decoder = "pyav"
        self._threads, self._protocols, self._budget = threads, protocols, budget
        self._container: Any = None
        self._packets: Iterator[Any] = iter(())
        self._second: SecondDecoder | None = None
        self.stamp = None if protocols else stamp_of(self.path)
        try:
            self._index = self._build_index(Deadline(self.path, budget), max_seconds)
            self.info = describe(self.path, self._index, self._stream)
        except BaseException as error:
            self.close()
            if isinstance(error, VideoError) or not isinstance(error, Exception):
                raise
            # Whatever the library makes of the bytes of one file, it must not end a run over many.
            raise cannot_be_read(self.path, error) from error
        self._size = scaled(self._index.first.width, self._index.first.height, short_side)
        self._converter = Converter()
        self._position = -1  # decoding index of the packet that comes next; -1: unknown
        if may_serve(backend, self._index, self._stream) and not protocols and short_side is None:
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

    def _open(self) -> None:
        """Open the file, anew where it was open."""
        self.close()
        self._container, self._stream = open_file(
            self.path, protocols=self._protocols, threads=self._threads, seconds=self._budget
        )

    def _build_index(self, deadline: Deadline, max_seconds: float) -> Index:
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
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        self._check(wanted)
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
            source = self._by_seeking if self._index.exact else self._in_order
            for index, picture in source(sorted(places), deadline):
                first, *more = places[index]
                self._converter.write(picture, out[first])
                for place in more:
                    out[place] = out[first]
        except VideoError:
            raise
        except Exception as error:
            raise cannot_be_read(self.path, error) from error
        return upright(out, self.info.rotation, self.info.mirrored)

    def pictures(self, wanted: NDArray[np.int64], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """(index, decoded picture) of rising indices for `walk`; one that comes anew replaces the one before."""
        bad = self._index.bad[np.clip(wanted, 0, self.info.frames - 1)]
        sound = wanted[: int(np.argmax(np.append(bad, True)))]
        self._check(sound)
        yield from (self._by_seeking if self._index.exact else self._in_order)(sound.tolist(), deadline)
        self._check(wanted)

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
        return self.frames(np.clip(np.searchsorted(info.times, asked + slack, side="right") - 1, 0, info.frames - 1))

    def _check(self, wanted: NDArray[np.int64]) -> None:
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

    def _damaged(self, index: int) -> Exception:
        return fail(self.path, f"frame {index} is damaged", float(self.info.times[index]))

    def _by_seeking(self, wanted: list[int], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """Pictures of `wanted` (rising), each group of pictures decoded at most once, others not at all."""
        index = self._index
        keys = np.flatnonzero(index.key)
        groups: dict[int, list[int]] = {}
        for frame in wanted:
            place = int(index.order[frame])
            at = int(np.searchsorted(keys, place, side="right")) - 1
            # Pictures shown before their key frame (open GOP) lean on the group before it.
            while at > 0 and index.pts[keys[at]] > index.pts[place]:
                at -= 1
            groups.setdefault(at, []).append(frame)
        for at, group in groups.items():
            missing = {int(index.order[frame]): frame for frame in group}
            # A stream may need more run-up than its key frames promise: then once more from the start.
            for start in dict.fromkeys((at, 0)):
                spoilt = yield from self._read_group(int(keys[start]), missing, deadline)
                if not missing and spoilt is None:
                    break
                missing = {int(index.order[frame]): frame for frame in group}
            else:
                raise self._damaged(min(group) if spoilt is None else spoilt)

    def _read_group(
        self, start: int, missing: dict[int, int], deadline: Deadline
    ) -> Generator[tuple[int, Any], None, int | None]:
        """Decode from the key frame at decoding index `start` to the last of `missing` (which shrinks), then drain.

        Returns: the first frame asked for that is damaged or built on a damaged picture, None when all are well.
        """
        context, index = self._stream.codec_context, self._index
        if self._position != start:
            self._seek(start)
        # H.264 marks the pictures that nothing depends on; for AV1 and others this skipping gave neighbours.
        skips = context.codec.canonical_name == "h264"
        asked, last = dict(missing), max(missing)
        damage = len(index.pts)  # decoding index of the first damaged picture
        while self._position <= last:
            deadline.check()
            packet = self._next_packet()
            here = self._position - 1
            # Pictures shown before the key frame lack what they lean on; whoever wants them starts earlier.
            if here < start or (index.pts[here] < index.pts[start] and here not in missing):
                continue
            if skips:
                context.skip_frame = "DEFAULT" if here in missing else "NONREF"
            try:
                pictures = decode(context, packet)
            except av.error.FFmpegError:
                damage = min(damage, here)
                break
            for picture in pictures:
                damage = min(damage, self._place_if_damaged(picture, start))
                if (place := self._index.place(picture.pts)) in missing:
                    yield missing.pop(place), picture
        for picture in self._drain():
            damage = min(damage, self._place_if_damaged(picture, start))
            if (place := self._index.place(picture.pts)) in missing:
                yield missing.pop(place), picture
        # Whatever was decoded from the damaged picture on may be built on it.
        return min((frame for place, frame in asked.items() if place >= damage), default=None)

    def _place_if_damaged(self, picture: Any, start: int) -> int:
        """Decoding index of a damaged picture, and behind everything for a good one."""
        if not picture.is_corrupt:
            return len(self._index.pts)
        place = self._index.place(picture.pts)
        return start if place < 0 else place

    def _drain(self) -> list[Any]:
        """The pictures still inside the decoder, which is ready for a key frame afterwards."""
        context = self._stream.codec_context
        try:
            return decode(context, None)
        except av.error.FFmpegError:
            return []
        finally:
            context.flush_buffers()

    def _next_packet(self) -> Any:
        packet = next(self._packets, None)
        index = self._index
        while packet is not None and not packet.size:
            packet = next(self._packets, None)
        if packet is None or self._position >= len(index.pts) or packet.pts != index.pts[self._position]:
            self._position = -1
            raise fail(self.path, "its packets are not those seen when it was opened; is it being written?")
        self._position += 1
        return packet

    def _seek(self, start: int) -> None:
        """Let the next packet be the one at decoding index `start`, or one before it."""
        index, stream = self._index, self._stream
        keys = np.flatnonzero(index.key[: start + 1])
        # Matroska's table of places holds presentation times, MP4's decoding times.
        stamps = index.pts if self._container.format.name.startswith("matroska") else index.dts
        for key in (start, int(keys[max(len(keys) - 2, 0)]), 0):
            self._container.seek(int(stamps[key]), stream=stream)
            source = packets(self._container, stream)
            packet = next(source, None)
            landed = -1 if packet is None else index.place(packet.pts)
            if 0 <= landed <= start:
                self._packets, self._position = chain((packet,), source), landed
                return
        raise fail(
            self.path,
            "cannot be wound back to a key frame",
            float(index.pts[start] * stream.time_base) - self.info.start,
        )

    def _in_order(self, wanted: list[int], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """Pictures of `wanted` (rising) of a file whose packets tell too little: decode from its start and count."""
        if self._index.kept is not None:
            for frame in wanted:
                yield frame, self._index.kept[frame]
            return
        if not wanted:
            return
        self._open()
        waiting = list(reversed(wanted))
        for count, picture in enumerate(pictures_in_order(self._container, self._stream, deadline)):
            if count == waiting[-1]:
                yield waiting.pop(), picture
                if not waiting:
                    return
        raise self._damaged(waiting[-1])
