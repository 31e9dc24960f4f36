"""Decode frames of an indexed file by seeking to the preceding key frame, or by decoding all and counting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from itertools import chain
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.video.damage import DamageError
from internvideo.video.frame_folder import FrameFolder
from internvideo.video.index import Index, decode
from internvideo.video.opening import Deadline, fail, packets
from internvideo.video.scan import decode_in_order


class FrameSource(ABC):
    """Decode frames of an open, indexed file. `Video` sets the attributes and reads frames through it."""

    path: str
    _container: Any
    _stream: Any
    _index: Index
    _packets: Iterator[Any]
    _cached_packets: list[Any]  # all packets of the stream in decoding order, or none
    _folder: FrameFolder | None = None  # where frames are the files of a folder
    _position: int  # decoding index of the next packet; -1: unknown

    @abstractmethod
    def _open(self) -> None:
        """Open or reopen the file."""

    def _decode(self, wanted: list[int], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """Yield (frame index, decoded frame) of `wanted` (increasing); a repeated one replaces the earlier.

        Raises DamageError: one of them is damaged; `index.corrupt` then marks it and the frames that depend on it.
        """
        if self._folder is not None:
            return self._folder.decoded_frames(wanted, self._index, deadline)
        return (self._decode_by_seeking if self._index.seekable else self._decode_in_order)(wanted, deadline)

    def _damage_error(self, frame_index: int) -> DamageError:
        at = float(self._index.times[frame_index]) - self._index.zero
        return DamageError(self.path, f"frame {frame_index} is damaged at {at:.3f} s")

    def _decode_by_seeking(self, wanted: list[int], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """Decode `wanted` (increasing) by seeking to their key frames; each GOP is decoded at most once."""
        index = self._index
        keys = np.flatnonzero(index.key)
        groups: dict[int, list[int]] = {}
        for frame_index in wanted:
            decode_index = int(index.order[frame_index])
            at = int(np.searchsorted(keys, decode_index, side="right")) - 1
            # Frames displayed before their key frame (open GOP) reference the previous GOP.
            while at > 0 and index.pts[keys[at]] > index.pts[decode_index]:
                at -= 1
            groups.setdefault(at, []).append(frame_index)
        for at, group in groups.items():
            by_decode_index = {int(index.order[frame_index]): frame_index for frame_index in group}
            first_damaged = -1
            # A stream may need an earlier start than its key frames indicate: then decode again from the beginning.
            for start in dict.fromkeys((at, 0)):
                missing = dict(by_decode_index)
                damage = yield from self._read_group(int(keys[start]), missing, deadline)
                if not missing and damage > max(by_decode_index):
                    break
                first_damaged = max(first_damaged, min([damage, *missing]))
            else:
                raise self._damage_error(self._mark_damaged(by_decode_index, first_damaged, keys))

    def _mark_damaged(self, by_decode_index: dict[int, int], first_damaged: int, keys: NDArray[np.int64]) -> int:
        """Mark the frames from decoding index `first_damaged` to the next key frame as corrupt, and those of
        `by_decode_index` (decoding index -> frame index) after it. Return the smallest of the latter."""
        index = self._index
        after = int(np.searchsorted(keys, first_damaged, side="right"))
        next_key = keys[after] if after < len(keys) else len(index.pts)
        dependent = (index.order >= first_damaged) & (index.order < next_key)
        affected = [frame for position, frame in by_decode_index.items() if position >= first_damaged]
        index.corrupt[dependent] = True
        index.corrupt[affected] = True
        return min(affected)

    def _read_group(
        self, start: int, missing: dict[int, int], deadline: Deadline
    ) -> Generator[tuple[int, Any], None, int]:
        """Decode from the key frame at decoding index `start` to the last of `missing`, then drain; pop what is found.

        Returns: the decoding index of the first damaged frame, on which all later ones may depend; the number of
        packets when none is damaged.
        """
        context, index = self._stream.codec_context, self._index
        if self._position != start:
            self._seek(start)
        # H.264 marks non-reference frames; for AV1 and others this skipping returned neighboring frames.
        skips = context.codec.canonical_name == "h264"
        last = max(missing)
        damage = len(index.pts)  # decoding index of the first damaged frame
        decodes_all: bool | None = None
        while self._position <= last:
            deadline.check()
            packet = self._next_packet()
            here = self._position - 1
            # Frames displayed before the key frame lack their references; reading them starts at an earlier key frame.
            if here < start or (index.pts[here] < index.pts[start] and here not in missing):
                continue
            if skips and (here in missing) != decodes_all:
                decodes_all = here in missing
                context.skip_frame = "DEFAULT" if decodes_all else "NONREF"
            try:
                frames = decode(context, packet)
            except av.error.FFmpegError:
                damage = min(damage, here)
                break
            damage = min(damage, (yield from self._wanted(frames, missing, start)))
        return min(damage, (yield from self._wanted(self._drain(), missing, start)))

    def _wanted(self, frames: list[Any], missing: dict[int, int], start: int) -> Generator[tuple[int, Any], None, int]:
        """Yield those of `missing` among decoded frames; return the decoding index of the first damaged frame."""
        damage = len(self._index.pts)
        for frame in frames:
            position = self._index.decode_index(frame.pts)
            if frame.is_corrupt:
                damage = min(damage, start if position < 0 else position)
            if position in missing:
                yield missing.pop(position), frame
        return damage

    def _drain(self) -> list[Any]:
        """Return the frames still in the decoder and flush it for the next key frame."""
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
        """Seek so that the next packet is the one at decoding index `start`, or an earlier one."""
        if self._cached_packets:
            self._packets, self._position = iter(self._cached_packets[start:]), start
            return
        index, stream = self._index, self._stream
        keys = np.flatnonzero(index.key[: start + 1])
        # Matroska's seek table holds presentation times, MP4's decoding times.
        stamps = index.pts if self._container.format.name.startswith("matroska") else index.dts
        for key in (start, int(keys[max(len(keys) - 2, 0)]), 0):
            self._container.seek(int(stamps[key]), stream=stream)
            source = packets(self._container, stream)
            packet = next(source, None)
            landed = -1 if packet is None else index.decode_index(packet.pts)
            if 0 <= landed <= start:
                self._packets, self._position = chain((packet,), source), landed
                return
        at = float(index.pts[start] * stream.time_base) - index.zero
        raise fail(self.path, "cannot seek to a key frame", at)

    def _decode_in_order(self, wanted: list[int], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """Decode `wanted` (increasing) of a file that is not seekable: decode from its start and count frames."""
        if self._index.frame_cache is not None:
            for frame_index in wanted:
                yield frame_index, self._index.frame_cache[frame_index]
            return
        if not wanted:
            return
        self._open()
        pending = list(reversed(wanted))
        for count, frame in enumerate(decode_in_order(self._container, self._stream, deadline)):
            if count == pending[-1]:
                yield pending.pop(), frame
                if not pending:
                    return
        self._index.corrupt[pending] = True  # the file gave more when it was opened
        raise self._damage_error(pending[-1])
