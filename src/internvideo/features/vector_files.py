"""Write vectors of windows: one part file per video during a run, then one table of all.

.parquet: columns path, start, end, embedding (list of E float32); the provenance is in the metadata of the file.
.lance: a Lance data set of the same columns; a later run adds a version.
.npy: float32 (N, E), with path, start and end of each row in NAME.jsonl and the provenance in NAME.protocol.json.
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

METADATA_KEY = b"internvideo"
"""Key of the provenance in the metadata of a parquet file."""


@dataclass(frozen=True)
class VideoVectors:
    """The vectors of a video.

    Attributes:
        path: of the video; parquet, which stores valid UTF-8 only, gets `errors.shown` of it.
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
        RecipeError: unknown suffix, or NAME.jsonl is another program's file. ExtraError: a package is missing.
    """
    if output.suffix not in WRITERS:
        raise RecipeError("output", f"'{output.name}'", "a name that ends in .parquet, .lance or .npy")
    if output.suffix in (".parquet", ".lance"):
        require(output.suffix[1:], output)
    index = output.with_suffix(".jsonl")
    if output.suffix == ".npy" and index.exists() and not _is_index(index):
        found = "is no index of a table (a manifest?), and would be overwritten by one"
        raise RecipeError(index, found, "", "choose another name for the table")


def _is_index(path: Path) -> bool:
    """Return whether a file is an index of `_write_npy`, or empty."""
    try:
        with untrusted.open_text(path) as lines:
            first = lines.readline(1 << 20)
        return not first or set(untrusted.parse_json(first)) == {"row", "path", "start", "end"}
    except (OSError, ValueError, TypeError):
        return False


def write_table(
    output: Path, parts: Iterable[VideoVectors], num_vectors: int, dim: int, provenance: Mapping[str, Any]
) -> None:
    """Write the table of `num_vectors` vectors of dimension `dim`, video by video. Raises RunError, RecipeError."""
    check_output(output)
    WRITERS[output.suffix](output, parts, num_vectors, dim, provenance)


def _write_parquet(
    output: Path, parts: Iterable[VideoVectors], num_vectors: int, dim: int, provenance: Mapping[str, Any]
) -> None:
    import pyarrow.parquet as pq

    batches = _record_batches(parts, dim, provenance)
    with atomic_path(output) as temporary, pq.ParquetWriter(temporary, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_lance(
    output: Path, parts: Iterable[VideoVectors], num_vectors: int, dim: int, provenance: Mapping[str, Any]
) -> None:
    os.environ.setdefault("LANCE_LOG", "error")  # it warns of every new data set
    import lance

    try:
        lance.write_dataset(_record_batches(parts, dim, provenance), str(output), mode="overwrite")
    except OSError as error:
        raise RunError(output, f"cannot be written: {' '.join(str(error).split())[:160]}") from error


def _record_batches(parts: Iterable[VideoVectors], dim: int, provenance: Mapping[str, Any]) -> Any:
    """Return a `pyarrow.RecordBatchReader` of the rows, a batch for each video."""
    import pyarrow as pa

    columns = [("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
    schema = pa.schema(
        [*columns, ("embedding", pa.list_(pa.float32(), dim))], metadata={METADATA_KEY: json.dumps(provenance)}
    )

    def batch(part: VideoVectors) -> Any:
        paths = pa.array([shown(part.path)] * len(part.values))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.values.reshape(-1)), dim)
        spans = pa.array(part.spans[:, 0]), pa.array(part.spans[:, 1])
        return pa.RecordBatch.from_arrays([paths, *spans, vectors], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, map(batch, parts))


def _write_npy(
    output: Path, parts: Iterable[VideoVectors], num_vectors: int, dim: int, provenance: Mapping[str, Any]
) -> None:
    write_text(output.with_suffix(".protocol.json"), json.dumps(provenance, indent=1) + "\n")
    with atomic_path(output) as temporary, atomic_path(output.with_suffix(".jsonl")) as index:
        table = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(num_vectors, dim))
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


class PartsFolder:
    """The folder OUTPUT.parts beside a table: one file of vectors per finished video, all with the same settings."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".parts")
        self._settings = self.folder / "settings.json"

    def create_or_resume(self, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Create the folder, or resume it; `overwrite` discards its part files.

        Raises:
            RunError: without `overwrite`: it was created with other settings, or there is a table but no such folder.
        """
        previous = untrusted.read_json_object(self._settings)
        plain = untrusted.parse_json(json.dumps(settings))
        if not overwrite and previous is None and self.output.exists():
            found = f"exists already, but not {self.folder.name}, from which a run resumes"
            raise RunError(self.output, found, "", "add --overwrite to replace it")
        if overwrite or previous is None:
            for part in self.folder.glob("*.npz"):
                part.unlink(missing_ok=True)
        else:
            check_same_settings(self.folder, previous, plain)
        write_text(self._settings, json.dumps(plain, indent=1) + "\n")

    def contains(self, identity: str) -> bool:
        """Return whether a video is finished."""
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
    """Raise RunError if a folder was created with other settings, apart from the `ignored` names."""
    for name in {**previous, **settings}:
        if name not in ignored and previous.get(name) != settings.get(name):
            texts = (json.dumps(values.get(name)) for values in (previous, settings))
            before, now = (text if len(text) <= 60 else text[:57] + "..." for text in texts)
            found = f"was begun with another {name}: {before}, now {now}"
            raise RunError(folder, found, "", "choose another output, or add --overwrite to start again")
