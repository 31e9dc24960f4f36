"""Read a packed video: copy the verified bytes of a tar shard's member to a temporary file for the decoder.

The path of a packed row is SHARD.tar#KEY.mp4, where SHARD is a file beside the manifest or a URL for fsspec; its
attribute "packed" is OFFSET+SIZE:DIGEST, the byte range and its hash.
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
_PATH = re.compile(r"(?P<shard>.+\.tar)#(?P<name>[^#]+\.(?P<suffix>\w{1,8}))", re.DOTALL)
_BYTE_RANGE = re.compile(r"(\d{1,18})\+(\d{1,18}):([0-9a-f]{32})")


class Member(NamedTuple):
    """A video inside a shard: path or URL of the shard, byte offset, number of bytes, digest, suffix of its name."""

    shard: str
    offset: int
    num_bytes: int
    digest: str
    suffix: str


def hash_content(content: bytes) -> str:
    """Hash the content of a member to 32 hex digits (BLAKE2b)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def locate_member(sample: Sample, root: Path) -> Member | None:
    """Locate a packed row's video; None for a video file. Raises VideoError: malformed path or attribute."""
    if ATTRIBUTE not in sample.attributes:
        return None
    path, byte_range = _PATH.fullmatch(sample.path), _BYTE_RANGE.fullmatch(sample.attributes[ATTRIBUTE])
    if path is None or byte_range is None:
        found = f"the attribute {ATTRIBUTE} '{sample.attributes[ATTRIBUTE]}'"
        raise VideoError(sample.path, found, "SHARD.tar#NAME with OFFSET+SIZE:DIGEST", "pack the manifest again")
    shard = path["shard"] if "://" in path["shard"] else str(root / path["shard"])
    return Member(shard, int(byte_range[1]), int(byte_range[2]), byte_range[3], path["suffix"])


@contextmanager
def extract_member(member: Member, contents: ShardContents, name: str) -> Iterator[str]:
    """Verify the digest of a member, copy it to a temporary file and yield the path of that.

    Raises VideoError, with `name` as location: the shard is unreadable or truncated, or the digest differs.
    """
    try:
        content = contents.read(member.shard, (member.suffix, member.offset, member.num_bytes))
    except ManifestError as error:
        raise VideoError(name, error.found, error.expected, error.hint) from error
    if hash_content(content) != member.digest:
        raise VideoError(name, "is damaged: its digest differs", "", "fetch or pack its shard again")
    with as_video_file(content, member.suffix, name) as path:
        yield path
