"""UnlabeledHybrid (paper table 1): about a million unlabelled clips of five sources, for masked pretraining.

Kinetics-710 training clips, Something-Something V2 training clips, the 15 minutes of every AVA training film cut into
clips of 300 frames, 250,000 clips drawn from WebVid2M and 250,000 from somebody's own collection.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from internvideo.data.manifest import read_manifest
from internvideo.data.sample import Sample
from internvideo.datasets import ava, kinetics, something
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError

CLIP_FRAMES = 300
FILM_SECONDS = (900.0, 1800.0)
"""The quarter of an hour of every film that AVA annotates."""
FILM_RATE = 30.0
"""Frames a second of a film that cannot be opened: 235 films then give 21,150 clips, the paper's 21k."""
DRAWN = 250_000
STRIDES = {"kinetics710": 4, "something_v2": 2, "ava": 4, "webvid2m": 4, "own": 4}
"""Source -> frames from one chosen frame to the next; a row's attribute "stride"."""


def read_hybrid(source: AnnotationSource, *, drawn: int = DRAWN, seed: int = 0) -> Annotations:
    """The mixture, of folders kinetics710 (or kinetics400, 600 and 700 in a folder of that name), something_v2, ava,
    webvid2m and own; the last two hold a manifest or list each. A source that is absent is noted.

    Every row has the attributes "source" and "stride" and no label; the draws are the same for one seed.

    Raises:
        ManifestError: none of the folders, or a malformed file in one.
    """
    made = Annotations()
    parts = {
        "kinetics710": source.below(r"(kinetics|k)[-_]?710"),
        "something_v2": source.below(r"something[-_]?(something[-_]?)?v2|ssv2"),
        "ava": source.below(r"ava([-_]?v?2[._]?[12])?"),
        "webvid2m": source.below(r"webvid.*"),
        "own": source.below(r"own|self.*"),
    }
    for name, part in parts.items():
        if part is None:
            made.notes.append(f"no folder {name}: the mixture lacks it")
        elif name == "kinetics710":
            _take(made, name, kinetics.read_710(part))
        elif name == "something_v2":
            _take(made, name, something.read_v2(part))
        elif name == "ava":
            _films(made, part)
        else:
            _draw(made, name, part, drawn, seed)
    if not made.splits:
        raise ManifestError(source.path, "none of the sources", f"folders {', '.join(parts)}")
    return made


def _take(made: Annotations, name: str, part: Annotations) -> None:
    made.notes += [f"{name}: {note}" for note in part.notes]
    made.lists |= part.lists
    for row in part.splits.get("train", ()):
        _add(made, name, row, *part.names.get(row.path, (row.path,)))


def _add(made: Annotations, name: str, row: Sample, *names: str) -> None:
    path = f"{name}/{row.path}"
    told = {"source": name, "stride": str(STRIDES[name])}
    kept = Sample(id=f"{name}/{row.id}", path=path, span=row.span, group=row.group, split="train", attributes=told)
    made.add("train", kept, name, path, *names)


def _films(made: Annotations, source: AnnotationSource) -> None:
    rows = ava.read_ava(source).splits.get("train", ())
    assumed = 0
    for film in sorted({row.group or row.path for row in rows}):
        rate = source.frame_rate(film) if source.frame_rate else None
        assumed += rate is None
        for number, span in enumerate(cut_film(rate or FILM_RATE)):
            _add(made, "ava", Sample(id=f"{film}/{number:03d}", path=f"{film}.mp4", span=span, group=film), film)
    made.note(assumed, f"films of AVA could not be opened; cut as if they had {FILM_RATE:g} frames/s")
    if not rows:
        made.notes.append("no training films in the annotations of AVA")


def cut_film(rate: float, frames: int = CLIP_FRAMES) -> Iterator[tuple[float, float]]:
    """(start, end) in seconds of the clips of so many frames inside the annotated part; a rest is left out.

    Args:
        rate: frames a second of the film. frames: of a clip.
    """
    first, last = FILM_SECONDS
    count = int((last - first) * rate / frames + 1e-6)
    for number in range(count):
        yield first + number * frames / rate, first + (number + 1) * frames / rate


def _draw(made: Annotations, name: str, source: AnnotationSource, drawn: int, seed: int) -> None:
    path = source.one(r"\.(jsonl|csv|tsv|txt|list)$", "one manifest or list of the clips")
    rows = read_manifest(path).rows
    size = min(drawn, len(rows))
    chosen = np.sort(np.random.RandomState(seed).choice(len(rows), size=size, replace=False))
    if size < drawn:
        made.notes.append(f"{name}: all {len(rows):,} clips are taken, there are no {drawn:,} to draw")
    for index in chosen:
        _add(made, name, rows[index], rows[index].path)
