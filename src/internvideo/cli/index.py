"""`internvideo index`: make a collection of videos searchable, and keep it up to date."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from internvideo.cli import options
from internvideo.errors import RecipeError
from internvideo.terminal import tell


def index(
    inputs: options.Inputs,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the collection; made when absent.")],
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            help="The model: a folder or .safetensors file, hf://ORGANISATION/REPOSITORY, or a name of "
            "`internvideo list models` with --weights; by default that of the collection.",
        ),
    ] = None,
    weights: options.Weights = None,
    recursive: Annotated[bool, typer.Option("--recursive/--no-recursive", "-r", help="Search subfolders too.")] = True,
    scales: Annotated[
        str, typer.Option(help="Of a new collection: lengths of its windows in seconds, comma-separated.")
    ] = "2,8,30",
    storage: Annotated[
        str, typer.Option(help="Of a new collection: float32, or float16 for half the space.")
    ] = "float32",
    database: Annotated[
        str | None,
        typer.Option(
            help="Of a new collection: postgresql://USER@HOST/DATABASE with pgvector, which keeps and compares its "
            "vectors; by default files do. A password is taken from PGPASSWORD or ~/.pgpass."
        ),
    ] = None,
    kind_of_index: Annotated[
        Literal["exact", "ivf", "hnsw"] | None,
        typer.Option(
            "--index",
            help="exact: every window is compared with every query. ivf: an approximate index, for millions of windows "
            "(internvideo[ann]); hnsw: that of a --database. The recall is measured and printed. By default as it is.",
            show_default=False,
        ),
    ] = None,
    classifier: Annotated[
        list[Path] | None,
        typer.Option(help="A linear classifier written by `internvideo fit` on this encoder: labels for --where."),
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            help="Actions or captions to show and filter by: output of `localize --json`, or a manifest with segments."
        ),
    ] = None,
    null_texts: Annotated[
        Path | None,
        typer.Option(help="Text file: 100 or more texts like your queries that fit no video, to calibrate thresholds."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per batch.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes; 0 decodes in a thread.")] = 0,
    ray: options.Ray = None,
    device: options.Device = "auto",
    damage: options.Damage = None,
    frame_rate: options.FrameRate = None,
    precision: options.Precision = "float32",
    as_json: options.Json = False,
) -> None:
    """Index videos by windows of 2, 8 and 30 seconds (--scales), for `internvideo search` and `internvideo serve`.

    After an interruption the same command resumes. Later commands read what is new or changed and forget what was
    deleted from the given folders; unreadable files are listed.
    """
    from internvideo.search.collection import Collection
    from internvideo.search.indexing import IndexSettings
    from internvideo.search.records import FILE

    settings = IndexSettings(batch_size, workers, recursive, ray=ray)
    texts = None if null_texts is None else options.text_lines(null_texts)
    if encoder is None:
        collection = Collection.open(output, device=device)
    else:
        model = options.open_model(encoder, weights, device, precision)
        found = (output / FILE).is_file()
        wanted = options.parse_numbers("--scales", scales, "comma-separated seconds, such as 2,8,30")
        lengths = wanted if not found else Collection.open(output).store.scales
        kind = storage if not found else Collection.open(output).store.storage
        place = database if not found else Collection.open(output).database
        collection = Collection.create(output, model, scales=lengths, storage=kind, database=place)  # type: ignore[arg-type]  # checked there
        source = {"source": _absolute(encoder), **({} if weights is None else {"weights": _absolute(weights)})}
        collection.store.records.set_fact("encoder", source)
    if (kind_of_index, collection.database is None) in (("ivf", False), ("hnsw", True)):
        expected = "ivf" if collection.database is None else "hnsw"
        raise RecipeError("--index", str(kind_of_index), f"{expected} or exact, for a collection like this one")
    report = collection.add(options.named_files(inputs), settings, null_texts=texts)
    labeled = [(path, collection.label(path)) for path in classifier or ()]
    annotated = [(path, collection.annotate(path)) for path in annotations or ()]
    if kind_of_index in ("ivf", "hnsw"):
        collection.build_index()
    elif kind_of_index == "exact":
        collection.remove_index()
    facts = collection.facts()
    done, videos = report.requested - len(report.unreadable), len(collection.videos)
    counts = {"new": report.read - len(report.changed), "changed": len(report.changed), "as before": report.resumed}
    counts |= {"removed": len(report.removed), "read in part": len(report.truncated)}
    changes = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    options.say_failures(report)
    query = (
        '"what you look for"' if "text" in collection.model.capabilities else "--like FILE, as the model reads no texts"
    )
    record = {
        "collection": output, "windows": report.vectors, "videos": videos, "requested": report.requested, "read": done,
        "new": counts["new"], "changed": len(report.changed), "resumed": report.resumed, "removed": report.removed,
        "in_part": len(report.truncated), "labeled": {str(path): count for path, count in labeled},
        "index": facts["index"],
        "annotated": {str(path): counted._asdict() for path, counted in annotated},
    }  # fmt: skip
    tell(
        record,
        f"{output}: {report.vectors} windows of {videos} videos",
        f"read: {done} of {report.requested} videos" + (f" ({changes})" if changes else ""),
        *(f"removed: {gone}" for gone in report.removed),
        *(f"labels: {path}: {count} videos" for path, count in labeled),
        *(f"annotations: {path}: {counted}" for path, counted in annotated),
        *([f"index: {facts['index']}"] if facts["index"] != "exact" else ()),
        *([f"speed: {report.throughput}"] if report.throughput else ()),
        f"use it: internvideo search {output} {query}",
    )
    collection.close()


def _absolute(source: str) -> str:
    return os.path.abspath(source) if os.path.exists(source) else source
