"""Pictures of an indexed file: wind to the key frame before them and decode from there, or decode all and count."""

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
from internvideo.video.scan import pictures_in_order


class PictureSource(ABC):
    """An open file with its index. `Video` fills the attributes in, and gives frames."""

    path: str
    _container: Any
    _stream: Any
    _index: Index
    _packets: Iterator[Any]
    _folder: FrameFolder | None = None  # where frames are the files of a folder
    _position: int  # decoding index of the packet that comes next; -1: unknown

    @abstractmethod
    def _open(self) -> None:
        """Open the file, anew where it was open."""

    def _source(self, wanted: list[int], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """(frame, decoded picture) of `wanted` (rising); one that comes anew replaces the one before.

        Raises:
            DamageError: one of them is damaged; `index.bad` tells of it, and of what is built on it, from now on.
        """
        if self._folder is not None:
            return self._folder.pictures(wanted, self._index, deadline)
        return (self._by_seeking if self._index.exact else self._in_order)(wanted, deadline)

    def _damaged(self, frame: int) -> DamageError:
        at = float(self._index.times[frame]) - self._index.zero
        return DamageError(self.path, f"frame {frame} is damaged at {at:.3f} s")

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
            places = {int(index.order[frame]): frame for frame in group}
            fault = -1
            # A stream may need more run-up than its key frames promise: then once more from the start.
            for start in dict.fromkeys((at, 0)):
                missing = dict(places)
                damage = yield from self._read_group(int(keys[start]), missing, deadline)
                if not missing and damage > max(places):
                    break
                fault = max(fault, min([damage, *missing]))
            else:
                raise self._damaged(self._learn(places, fault, keys))

    def _learn(self, places: dict[int, int], fault: int, keys: NDArray[np.int64]) -> int:
        """Note as bad what is decoded from the place `fault` on up to the next key frame, and what of `places` (place
        -> frame) comes after it. Returns the first of these frames."""
        index = self._index
        after = int(np.searchsorted(keys, fault, side="right"))
        built = (index.order >= fault) & (index.order < (keys[after] if after < len(keys) else len(index.pts)))
        lost = [frame for place, frame in places.items() if place >= fault]
        index.bad[built] = True
        index.bad[lost] = True
        return min(lost)

    def _read_group(
        self, start: int, missing: dict[int, int], deadline: Deadline
    ) -> Generator[tuple[int, Any], None, int]:
        """Decode from the key frame at decoding index `start` to the last of `missing` (which shrinks), then drain.

        Returns: the decoding index of the first damaged picture, on which all later ones may be built; behind
        everything when all are well.
        """
        context, index = self._stream.codec_context, self._index
        if self._position != start:
            self._seek(start)
        # H.264 marks the pictures that nothing depends on; for AV1 and others this skipping gave neighbours.
        skips = context.codec.canonical_name == "h264"
        last = max(missing)
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
        return damage

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
            float(index.pts[start] * stream.time_base) - index.zero,
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
        self._index.bad[waiting] = True  # the file gave more when it was opened
        raise self._damaged(waiting[-1])
