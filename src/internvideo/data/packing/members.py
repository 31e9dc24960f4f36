"""Read a packed video: copy the verified bytes of a tar shard's member to a temporary file for the decoder.

The path of a packed row is SHARD.tar#KEY.mp4, where SHARD is a file beside the manifest or an address for fsspec; its
attribute "packed" is FIRST+COUNT:DIGEST, the byte range and its hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from internvideo.data.sample import Sample
from internvideo.data.shard_files import ShardContents, as_video_file
from internvideo.errors import ManifestError, VideoError

ATTRIBUTE = "packed"
_PATH = re.compile(r"(?P<shard>.+\.tar)#(?P<name>[^#]+\.(?P<ending>\w{1,8}))", re.DOTALL)
_PLACE = re.compile(r"(\d{1,18})\+(\d{1,18}):([0-9a-f]{32})")


class Member(NamedTuple):
    """A video inside a shard: address of the shard, first byte, number of bytes, digest, suffix of its name."""

    shard: str
    first: int
    size: int
    digest: str
    ending: str


def digest_of(content: bytes) -> str:
    """Hash the content of a member to 32 hex digits (BLAKE2b)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def member_of(sample: Sample, root: Path) -> Member | None:
    """Locate a packed row's video; None for a video file. Raises VideoError: malformed path or attribute."""
    if ATTRIBUTE not in sample.attributes:
        return None
    path, place = _PATH.fullmatch(sample.path), _PLACE.fullmatch(sample.attributes[ATTRIBUTE])
    if path is None or place is None:
        found = f"the attribute {ATTRIBUTE} '{sample.attributes[ATTRIBUTE]}'"
        raise VideoError(sample.path, found, "SHARD.tar#NAME with FIRST+COUNT:DIGEST", "pack the manifest again")
    shard = path["shard"] if "://" in path["shard"] else str(root / path["shard"])
    return Member(shard, int(place[1]), int(place[2]), place[3], path["ending"])


@contextmanager
def unpacked(member: Member, contents: ShardContents, name: str) -> Iterator[str]:
    """Copy a member to a temporary file and yield its name, after verifying the digest.

    Raises VideoError: the shard is unreadable or truncated, or the digest differs.
    """
    try:
        content = contents.read(member.shard, (member.ending, member.first, member.size))
    except ManifestError as error:
        raise VideoError(name, error.found, error.expected, error.hint) from error
    if digest_of(content) != member.digest:
        raise VideoError(name, "is damaged: its digest differs", "", "fetch or pack its shard again")
    with as_video_file(content, member.ending, name) as path:
        yield path
