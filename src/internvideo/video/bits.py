"""Inspect packets without decoding: whether one is well-formed, displays a frame, or is a key frame."""

from __future__ import annotations

from typing import Any

_VOP = b"\x00\x00\x01\xb6"  # start code of a picture of MPEG-4 part 2


def is_key(packet: Any, codec: str) -> bool:
    """Return whether decoding can start at a valid packet.

    For MPEG-4 part 2 and H.263 the container's flag is not used: their decoders start anywhere and output frames. The
    parsers of the other codecs read the stream, and their decoders report a wrong start.
    """
    if codec == "mpeg4":
        data = bytes(packet)
        return data[data.index(_VOP) + 4] >> 6 == 0  # vop_coding_type: intra
    if codec == "h263":
        return not memoryview(packet)[4] >> 1 & 1  # PTYPE bit 9: inter
    return bool(packet.is_keyframe)


def _h263_is_plain(data: memoryview) -> bool:
    """Return whether a packet begins with the start code and a header without extensions (PLUSPTYPE)."""
    return len(data) > 5 and not data[0] and not data[1] and data[2] >> 2 == 0b100000 and data[4] >> 2 & 7 != 7


def packet_validator(context: Any) -> Any:
    """Return a quick check of packets without decoding: is the packet well-formed and does it display a frame?"""
    codec, extra = context.codec.canonical_name, context.extradata or b""
    width = 0
    if codec == "h264" and len(extra) > 4 and extra[0] == 1:
        width = (extra[4] & 3) + 1
    elif codec in ("hevc",) and len(extra) > 21 and extra[0] == 1:
        width = (extra[21] & 3) + 1
    if width:
        return lambda packet: _units_fit(memoryview(packet), width)
    if codec == "mpeg4":
        return lambda packet: bytes(packet).count(_VOP) == 1
    if codec == "h263":
        return lambda packet: _h263_is_plain(memoryview(packet))
    if codec == "vp8":
        return lambda packet: bool(memoryview(packet)[0] & 0x10)
    if codec == "vp9":
        return lambda packet: _vp9_shows(memoryview(packet))
    return lambda packet: True


def _units_fit(data: memoryview, width: int) -> bool:
    """Return whether the length-prefixed units of an H.264 or HEVC sample fill it exactly."""
    position, size = 0, len(data)
    while position < size:
        unit = int.from_bytes(data[position : position + width], "big")
        position += width + unit
        if unit == 0:
            return False
    return position == size


def _vp9_shows(data: memoryview) -> bool:
    """Whether a VP9 packet displays a frame: a superframe does, else the show_frame bit of its header decides."""
    if data[-1] & 0xE0 == 0xC0:
        return True
    first = data[0]
    profile = (first >> 5 & 1) | (first >> 4 & 1) << 1
    shift = 3 if profile < 3 else 2  # position of show_existing_frame
    if first >> shift & 1:
        return True
    return bool(first >> (shift - 2) & 1)
