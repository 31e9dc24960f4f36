"""Write vectors of windows: one part per video while a run is going on, then one table.

.parquet: columns path, start, end, embedding (list of E float32), the protocol in the file's metadata.
.lance: a Lance data set of the same columns; a later run adds a version.
.npy: float32 (N, E), with path, start and end of its rows in NAME.jsonl and the protocol in NAME.protocol.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvideo import untrusted, untrusted_arrays
from internvideo.errors import RecipeError, RunError, shown
from internvideo.extras import require
from internvideo.storage import atomic_path, write_text

KEY = b"internvideo"
"""Key of the protocol in the metadata of a parquet file."""


@dataclass(frozen=True)
class VideoVectors:
    """The vectors of a video.

    Attributes:
        path: as in the table (parquet holds text only: see `errors.shown`).
        spans: (n, 2) float64, start and end of each window in seconds. values: (n, E) float32.
        reason: why the video was not read to its end, "" if it was.
    """

    path: str
    spans: NDArray[np.float64]
    values: NDArray[np.float32]
    reason: str = ""


def check_output(output: Path) -> None:
    """Check that a table can be written.

    Raises:
        RecipeError: another suffix, or its index would replace another file. ExtraError: a package is missing.
    """
    if output.suffix not in WRITERS:
        raise RecipeError("output", f"'{output.name}'", "a name that ends in .parquet, .lance or .npy")
    if output.suffix in (".parquet", ".lance"):
        require(output.suffix[1:], output)
    index = output.with_suffix(".jsonl")
    if output.suffix == ".npy" and index.exists() and not _is_index(index):
        found = "would be replaced by the index of the table, and is something else (a manifest?)"
        raise RecipeError(index, found, "", "choose another name for the table")


def _is_index(path: Path) -> bool:
    """Return whether a file is an index as `_write_npy` writes it, or empty."""
    try:
        with untrusted.open_text(path) as lines:
            first = lines.readline(1 << 20)
        return not first or set(untrusted.parse_json(first)) == {"row", "path", "start", "end"}
    except (OSError, ValueError, TypeError):
        return False


def write_table(output: Path, parts: Iterable[VideoVectors], count: int, dim: int, protocol: Mapping[str, Any]) -> None:
    """Write the table of `count` vectors of dimension `dim`, part by part. Raises RunError, RecipeError."""
    check_output(output)
    WRITERS[output.suffix](output, parts, count, dim, protocol)


def _write_parquet(
    output: Path, parts: Iterable[VideoVectors], count: int, dim: int, protocol: Mapping[str, Any]
) -> None:
    import pyarrow.parquet as pq

    batches = _record_batches(parts, dim, protocol)
    with atomic_path(output) as temporary, pq.ParquetWriter(temporary, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_lance(
    output: Path, parts: Iterable[VideoVectors], count: int, dim: int, protocol: Mapping[str, Any]
) -> None:
    os.environ.setdefault("LANCE_LOG", "error")  # it warns of every new data set
    import lance

    try:
        lance.write_dataset(_record_batches(parts, dim, protocol), str(output), mode="overwrite")
    except OSError as error:
        raise RunError(output, f"cannot be written: {' '.join(str(error).split())[:160]}") from error


def _record_batches(parts: Iterable[VideoVectors], dim: int, protocol: Mapping[str, Any]) -> Any:
    """Return a `pyarrow.RecordBatchReader` of the rows, a batch for each video."""
    import pyarrow as pa

    columns = [("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
    schema = pa.schema([*columns, ("embedding", pa.list_(pa.float32(), dim))], metadata={KEY: json.dumps(protocol)})

    def batch(part: VideoVectors) -> Any:
        paths = pa.array([shown(part.path)] * len(part.values))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.values.reshape(-1)), dim)
        spans = pa.array(part.spans[:, 0]), pa.array(part.spans[:, 1])
        return pa.RecordBatch.from_arrays([paths, *spans, vectors], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, map(batch, parts))


def _write_npy(output: Path, parts: Iterable[VideoVectors], count: int, dim: int, protocol: Mapping[str, Any]) -> None:
    write_text(output.with_suffix(".protocol.json"), json.dumps(protocol, indent=1) + "\n")
    with atomic_path(output) as temporary, atomic_path(output.with_suffix(".jsonl")) as index:
        table = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(count, dim))
        row = 0
        with index.open("w", encoding="utf-8", errors="backslashreplace") as lines:
            for part in parts:
                table[row : row + len(part.values)] = part.values
                for start, end in part.spans.tolist():
                    entry = {"row": row, "path": part.path, "start": start, "end": end}
                    lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    row += 1
        table.flush()


WRITERS: dict[str, Callable[[Path, Iterable[VideoVectors], int, int, Mapping[str, Any]], None]] = {
    ".parquet": _write_parquet,
    ".lance": _write_lance,
    ".npy": _write_npy,
}


class Parts:
    """The folder OUTPUT.parts of finished videos beside a table, all computed with the same settings."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".parts")
        self._settings = self.folder / "settings.json"

    def begin(self, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Create the folder, or resume it; `overwrite` discards its parts.

        Raises:
            RunError: it was created with other settings, or there is a table without parts; not with `overwrite`.
        """
        previous = untrusted.read_json_object(self._settings)
        plain = untrusted.parse_json(json.dumps(settings))
        if not overwrite and previous is None and self.output.exists():
            raise RunError(self.output, "exists already, its parts do not", "", "add --overwrite to replace it")
        if overwrite or previous is None:
            for part in self.folder.glob("*.npz"):
                part.unlink(missing_ok=True)
        else:
            check_same_settings(self.folder, previous, plain)
        write_text(self._settings, json.dumps(plain, indent=1) + "\n")

    def has(self, identity: str) -> bool:
        """Return whether a video is done."""
        return (self.folder / f"{identity}.npz").is_file()

    def write(self, identity: str, vectors: VideoVectors) -> None:
        """Store a finished video. Raises RunError."""
        with atomic_path(self.folder / f"{identity}.npz") as temporary:
            np.savez(temporary, spans=vectors.spans, values=vectors.values, trouble=np.array(vectors.reason))

    def read(self, identity: str, path: str) -> VideoVectors | None:
        """Read a finished video; None if there is none or the file is damaged."""
        try:
            arrays = untrusted_arrays.read_npz(self.folder / f"{identity}.npz")
            return VideoVectors(path, arrays["spans"], arrays["values"], str(arrays["trouble"]))
        except (OSError, ValueError, KeyError):
            return None


def check_same_settings(
    folder: Path, previous: Mapping[str, Any], settings: Mapping[str, Any], ignored: Collection[str] = ()
) -> None:
    """Raise RunError if a folder was created with other settings than these, apart from the ignored ones."""
    for name in {**previous, **settings}:
        if name not in ignored and previous.get(name) != settings.get(name):
            texts = (json.dumps(values.get(name)) for values in (previous, settings))
            was, now = (text if len(text) <= 60 else text[:57] + "..." for text in texts)
            found = f"was begun with another {name}: {was}, now {now}"
            raise RunError(folder, found, "", "choose another output, or add --overwrite to start again")
