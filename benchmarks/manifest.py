"""Time to open a Parquet manifest of many rows: the first time, when it is validated, and after that.

    python benchmarks/manifest.py [--rows 10000000]

Rows have id, path, label, one caption and split. Each opening is a process of its own; its memory is the largest
resident one, shared pages of the memory map included.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from internvideo.data.manifest import read_manifest


def write(path: Path, rows: int) -> None:
    """Write a table of `rows` rows, a million at a time."""
    writer = None
    for first in range(0, rows, 10**6):
        numbers = range(first, min(first + 10**6, rows))
        table = pa.table(
            {
                "id": [f"video{number:08d}" for number in numbers],
                "path": [f"folder{number % 1000:04d}/video{number:08d}.mp4" for number in numbers],
                "label": np.arange(numbers.start, numbers.stop) % 700,
                "captions": [[f"a person does thing {number % 977}"] for number in numbers],
                "split": ["train"] * len(numbers),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def measure(path: Path) -> None:
    """Open a manifest and print what it costs."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = len(read_manifest(path).rows)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} rows: {wall:.2f} s, CPU {cpu:.2f} s, at most {memory:.0f} MiB of memory")


def main() -> None:
    """Write a table, then open it twice, each time in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10**7)
    parser.add_argument("--open", type=Path, help="only open this table")
    options = parser.parse_args()
    if options.open is not None:
        measure(options.open)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        write(path, options.rows)
        for _ in range(2):
            command = [sys.executable, __file__, "--open", str(path)]
            subprocess.run(command, check=True, env={**os.environ, "XDG_CACHE_HOME": folder})


if __name__ == "__main__":
    main()
