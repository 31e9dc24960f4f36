"""Record and count the unreadable clips of a training set in skipped.jsonl.

All processes and sessions of a run append to one file, so that they are counted together without synchronization.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from internvideo import untrusted
from internvideo.data.dataset import SampleSource, Unreadable
from internvideo.errors import RunError, VideoError


class SkippedClips:
    """Count the unreadable clips of a manifest.

    Args:
        manifest: the training set.
        max_fraction: fraction of its samples that may be unreadable.
        file: JSONL, one line per clip; None keeps the count of this process in memory.

    Attributes:
        unreadable: id -> clip; entries of other processes are read from `file` whenever this process adds one.
    """

    def __init__(self, manifest: SampleSource, max_fraction: float, file: Path | None) -> None:
        self.manifest, self.max_fraction, self.file = manifest, max_fraction, file
        self.unreadable: dict[str, Unreadable] = {}
        self._counted = 0  # bytes of the file that were read
        if file is not None:
            self._read(file)

    def count(self, clips: Iterable[Unreadable], epoch: int) -> None:
        """Record and count clips that could not be read in this epoch.

        Raises VideoError: too many by now. RunError: the file cannot be written.
        """
        new = {clip.id: clip for clip in clips if clip.id not in self.unreadable}
        if new and self.file is not None:
            self._read(self.file)
            common = {"epoch": epoch, "manifest": self.manifest.fingerprint}
            added = [clip for name, clip in new.items() if name not in self.unreadable]
            lines = [json.dumps({**asdict(clip), **common}, ensure_ascii=False) + "\n" for clip in added]
            _append(self.file, "".join(lines))
            self._read(self.file)
        self.unreadable |= new
        if len(self.unreadable) > self.max_fraction * len(self.manifest):
            reason = next(iter(self.unreadable.values())).reason
            found = f"{len(self.unreadable)} of {len(self.manifest)} clips cannot be read, for instance: {reason}"
            hint = "repair or remove them" + (f", then delete {self.file}, which lists them" if self.file else "")
            expected = f"max_unreadable = {self.max_fraction:g} of the manifest"
            raise VideoError(self.manifest.source, found, expected, hint)

    def _read(self, file: Path) -> None:
        """Read the entries for this manifest that were added since the last call."""
        if not file.is_file():
            return
        with file.open("rb") as stream:
            stream.seek(self._counted)
            lines = stream.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):  # being written by another process
                break
            self._counted += len(line)
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut off when the run was killed
                record = untrusted.parse_json(line)
                if record["manifest"] == self.manifest.fingerprint:  # not that of the images
                    self.unreadable.setdefault(record["id"], Unreadable(record["id"], record["path"], record["reason"]))


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(end - 1, 0))
            incomplete = end > 0 and stream.read(1) != b"\n"  # a run was killed here
            stream.write(("\n" * incomplete + text).encode())
    except OSError as error:
        raise RunError(path, f"cannot be written: {error.strerror or error}", "", "free space, then resume") from error
