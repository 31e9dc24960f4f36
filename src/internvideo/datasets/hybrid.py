"""Build UnlabeledHybrid (paper table 1): about a million unlabeled clips of five sources, for masked pretraining.

Kinetics-710 training clips, Something-Something V2 training clips, the annotated 15 minutes of every AVA training movie
cut into clips of 300 frames, 250,000 clips sampled from WebVid2M and 250,000 from a collection of the user.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from internvideo.data.manifest import read_manifest
from internvideo.data.sample import Sample
from internvideo.datasets import ava, kinetics, something
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.reading import AnnotationSource

CLIP_FRAMES = 300
FILM_SECONDS = (900.0, 1800.0)
"""Start and end of the part of every movie that AVA annotates."""
FILM_RATE = 30.0
"""Frames per second of a movie that cannot be opened: 235 movies then give 21,150 clips, the paper's 21k."""
NUM_SAMPLED = 250_000
STRIDES = {"kinetics710": 4, "something_v2": 2, "ava": 4, "webvid2m": 4, "own": 4}
"""Source -> frames from one sampled frame to the next; a row's attribute "stride"."""


def read_hybrid(source: AnnotationSource, *, num_sampled: int = NUM_SAMPLED, seed: int = 0) -> Annotations:
    """Read the folders kinetics710, something_v2, ava, webvid2m and own as one training set.

    kinetics710 may hold the folders kinetics400, 600 and 700; webvid2m and own hold a manifest or list, of which
    `num_sampled` rows are sampled with the seed. A missing folder is noted. Every row has the attributes "source" and
    "stride" and no label.
    Raises ManifestError: none of the folders, or a malformed file in one.
    """
    annotations = Annotations()
    parts = {
        "kinetics710": source.below(r"(kinetics|k)[-_]?710"),
        "something_v2": source.below(r"something[-_]?(something[-_]?)?v2|ssv2"),
        "ava": source.below(r"ava([-_]?v?2[._]?[12])?"),
        "webvid2m": source.below(r"webvid.*"),
        "own": source.below(r"own|self.*"),
    }
    for name, part in parts.items():
        if part is None:
            annotations.notes.append(f"no folder {name}: its clips are missing from the training set")
        elif name == "kinetics710":
            _take(annotations, name, kinetics.read_710(part))
        elif name == "something_v2":
            _take(annotations, name, something.read_v2(part))
        elif name == "ava":
            _films(annotations, part)
        else:
            _draw(annotations, name, part, num_sampled, seed)
    return annotations.ensure_rows(source.path, "none of the sources", f"folders {', '.join(parts)}")


def _take(annotations: Annotations, name: str, part: Annotations) -> None:
    annotations.notes += [f"{name}: {note}" for note in part.notes]
    annotations.lists |= part.lists
    for row in part.splits.get("train", ()):
        _add(annotations, name, row, *part.names.get(row.path, (row.path,)))


def _add(annotations: Annotations, name: str, row: Sample, *names: str) -> None:
    path = f"{name}/{row.path}"
    attributes = {"source": name, "stride": str(STRIDES[name])}
    clip = Sample(
        id=f"{name}/{row.id}", path=path, span=row.span, group=row.group, split="train", attributes=attributes
    )
    annotations.add("train", clip, name, path, *names)


def _films(annotations: Annotations, source: AnnotationSource) -> None:
    rows = ava.read_ava(source).splits.get("train", ())
    assumed = 0
    for film in sorted({row.group or row.path for row in rows}):
        rate = source.frame_rate(film) if source.frame_rate else None
        assumed += rate is None
        for number, span in enumerate(cut_film(rate or FILM_RATE)):
            _add(annotations, "ava", Sample(id=f"{film}/{number:03d}", path=f"{film}.mp4", span=span, group=film), film)
    annotations.note(assumed, f"movies of AVA could not be opened; {FILM_RATE:g} frames/s are assumed")
    if not rows:
        annotations.notes.append("no training movies in the annotations of AVA")


def cut_film(rate: float) -> Iterator[tuple[float, float]]:
    """Yield (start, end) in seconds of the consecutive clips inside the annotated part; a shorter last one is left out.

    Args:
        rate: frames per second of the movie.
    """
    first, last = FILM_SECONDS
    for number in range(int((last - first) * rate / CLIP_FRAMES + 1e-6)):
        yield first + number * CLIP_FRAMES / rate, first + (number + 1) * CLIP_FRAMES / rate


def _draw(annotations: Annotations, name: str, source: AnnotationSource, num_sampled: int, seed: int) -> None:
    path = source.one(r"\.(jsonl|csv|tsv|txt|list)$", "one manifest or list of the clips")
    rows = read_manifest(path).rows
    size = min(num_sampled, len(rows))
    indices = np.sort(np.random.RandomState(seed).choice(len(rows), size=size, replace=False))
    if size < num_sampled:
        annotations.notes.append(f"{name}: all {len(rows):,} clips are used; {num_sampled:,} were to be sampled")
    for index in indices:
        _add(annotations, name, rows[index], rows[index].path)
