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
MOVIE_SECONDS = (900.0, 1800.0)
"""Start and end of the annotated span of every AVA movie."""
MOVIE_FPS = 30.0
"""Frames per second of a movie that cannot be opened: 235 movies then give 21,150 clips, the paper's 21k."""
NUM_SAMPLED = 250_000
STRIDES = {"kinetics710": 4, "something_v2": 2, "ava": 4, "webvid2m": 4, "own": 4}
"""Source -> sampling stride in frames; the attribute "stride" of a row."""


def read_hybrid(source: AnnotationSource, *, num_sampled: int = NUM_SAMPLED, seed: int = 0) -> Annotations:
    """Read the folders kinetics710, something_v2, ava, webvid2m and own as one training set.

    kinetics710 may contain the folders kinetics400, 600 and 700; webvid2m and own contain a manifest or list, of which
    `num_sampled` rows are sampled with the seed. A missing folder is noted. Every row has the attributes "source" and
    "stride" and no label.
    Raises ManifestError: none of the folders, or a malformed file in one.
    """
    annotations = Annotations()
    subsets = {
        "kinetics710": source.subfolder(r"(kinetics|k)[-_]?710"),
        "something_v2": source.subfolder(r"something[-_]?(something[-_]?)?v2|ssv2"),
        "ava": source.subfolder(r"ava([-_]?v?2[._]?[12])?"),
        "webvid2m": source.subfolder(r"webvid.*"),
        "own": source.subfolder(r"own|self.*"),
    }
    for name, subset in subsets.items():
        if subset is None:
            annotations.notes.append(f"no folder {name}: its clips are missing from the training set")
        elif name == "kinetics710":
            _add_training_set(annotations, name, kinetics.read_710(subset))
        elif name == "something_v2":
            _add_training_set(annotations, name, something.read_v2(subset))
        elif name == "ava":
            _add_movies(annotations, subset)
        else:
            _add_sampled(annotations, name, subset, num_sampled, seed)
    return annotations.ensure_rows(source.path, "none of the sources", f"folders {', '.join(subsets)}")


def _add_training_set(annotations: Annotations, name: str, subset: Annotations) -> None:
    annotations.notes += [f"{name}: {note}" for note in subset.notes]
    annotations.lists |= subset.lists
    for row in subset.splits.get("train", ()):
        _add_clip(annotations, name, row, *subset.names.get(row.path, (row.path,)))


def _add_clip(annotations: Annotations, name: str, row: Sample, *names: str) -> None:
    path = f"{name}/{row.path}"
    attributes = {"source": name, "stride": str(STRIDES[name])}
    clip = Sample(
        id=f"{name}/{row.id}", path=path, span=row.span, group=row.group, split="train", attributes=attributes
    )
    annotations.add("train", clip, name, path, *names)


def _add_movies(annotations: Annotations, source: AnnotationSource) -> None:
    rows = ava.read_ava(source).splits.get("train", ())
    num_assumed = 0
    for movie in sorted({row.group or row.path for row in rows}):
        rate = source.frame_rate(movie) if source.frame_rate else None
        num_assumed += rate is None
        for index, span in enumerate(movie_spans(rate or MOVIE_FPS)):
            _add_clip(
                annotations,
                "ava",
                Sample(id=f"{movie}/{index:03d}", path=f"{movie}.mp4", span=span, group=movie),
                movie,
            )
    annotations.note(num_assumed, f"movies of AVA could not be opened; {MOVIE_FPS:g} frames/s are assumed")
    if not rows:
        annotations.notes.append("no training movies in the annotations of AVA")


def movie_spans(rate: float) -> Iterator[tuple[float, float]]:
    """Yield (start, end) in seconds of consecutive clips of CLIP_FRAMES in the annotated span; the rest is omitted.

    Args:
        rate: frames per second of the movie.
    """
    first, last = MOVIE_SECONDS
    for index in range(int((last - first) * rate / CLIP_FRAMES + 1e-6)):
        yield first + index * CLIP_FRAMES / rate, first + (index + 1) * CLIP_FRAMES / rate


def _add_sampled(annotations: Annotations, name: str, source: AnnotationSource, num_sampled: int, seed: int) -> None:
    path = source.find_one(r"\.(jsonl|csv|tsv|txt|list)$", "one manifest or list of the clips")
    rows = read_manifest(path).rows
    size = min(num_sampled, len(rows))
    indices = np.sort(np.random.RandomState(seed).choice(len(rows), size=size, replace=False))
    if size < num_sampled:
        annotations.notes.append(f"{name}: all {len(rows):,} clips are used; {num_sampled:,} were to be sampled")
    for index in indices:
        _add_clip(annotations, name, rows[index], rows[index].path)
