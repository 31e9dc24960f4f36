"""Read annotations of videos: lines of `internvideo localize --json`, or segments and captions of a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from internvideo import untrusted
from internvideo.data.manifest import read_manifest
from internvideo.errors import ManifestError, RecipeError
from internvideo.features.remote_files import url_or_path
from internvideo.features.video_files import video_of_row
from internvideo.search.records import Annotation, AnnotationKind, VideoRecord

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Action(BaseModel):
    model_config = ConfigDict(extra="forbid")
    start: Seconds
    end: Seconds
    label: Annotated[str, Field(min_length=1, max_length=1000)]
    score: Annotated[float, Field(allow_inf_nan=False)]


class _Localization(BaseModel):
    """A line of `internvideo localize --json`."""

    model_config = ConfigDict(extra="forbid")
    path: Annotated[str, Field(min_length=1)]
    duration: Seconds
    actions: list[_Action]


class _Row(NamedTuple):
    """An annotation of a video file; `end` is infinite for its end."""

    path: str
    kind: AnnotationKind
    annotation: Annotation


def read_annotations(
    file: Path, videos: Sequence[VideoRecord]
) -> tuple[list[tuple[int, AnnotationKind, Annotation]], int]:
    """Read what a file says of the videos of a collection.

    Returns:
        (video id, kind, annotation), cut to the duration, or piece, of the video; and the number of videos of the file
        that the collection lacks.

    Raises:
        ManifestError: a file that cannot be read. RecipeError: no video of it is in the collection.
    """
    known: dict[str, list[VideoRecord]] = {}
    for video in videos:
        known.setdefault(video.path, []).append(video)
    made, lacking, count = list[tuple[int, AnnotationKind, Annotation]](), set[str](), 0
    for path, kind, one in _localizations(file) if _is_localization(file) else _manifest(file):
        count += 1
        if path not in known:
            lacking.add(path)
        for video in known.get(path, ()):
            start = max(one.start, video.start or 0.0)
            end = min(one.end, video.duration if video.stop is None else min(video.stop, video.duration))
            if start < end:
                made.append((video.id, kind, Annotation(start, end, one.label, one.score)))
    if not made:
        found = (
            f"{file}: no segment, caption or action" if not count else f"{file}: no video of it is in the collection"
        )
        raise RecipeError(
            "annotations", found, "paths of indexed videos", "as `internvideo localize --json` writes them"
        )
    return made, len(lacking)


def _is_localization(file: Path) -> bool:
    """Return whether the first line is one of `internvideo localize --json`."""
    if file.suffix not in (".json", ".jsonl"):
        return False
    try:
        with untrusted.open_text(file) as stream:
            row = untrusted.parse_json(next(filter(str.strip, untrusted.read_lines(stream)), ""))
    except (OSError, ValueError):  # told by the manifest's reader
        return False
    return isinstance(row, Mapping) and "actions" in row


def _localizations(file: Path) -> Iterator[_Row]:
    seen = set[str]()
    with untrusted.open_text(file) as stream:
        for number, line in enumerate(untrusted.read_lines(stream), 1):
            if not line.strip():
                continue
            try:
                row = _Localization.model_validate(untrusted.parse_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise ManifestError(
                    f"{file}:{number}", f"{where}: {first['msg']}", "a line of `localize --json`"
                ) from error
            except ValueError as error:
                raise ManifestError(
                    f"{file}:{number}", f"is not JSON: {error}", "a line of `localize --json`"
                ) from error
            path = url_or_path(row.path)
            if path in seen:  # their times are from the start of each piece, which the line does not tell
                found = f"{row.path} a second time"
                raise ManifestError(f"{file}:{number}", found, "a line per file", "localize whole files, not pieces")
            seen.add(path)
            for action in row.actions:
                yield _Row(path, "action", Annotation(**action.model_dump()))


def _manifest(file: Path) -> Iterator[_Row]:
    manifest = read_manifest(file).with_notes_logged()
    for row in manifest.rows:
        path = url_or_path(video_of_row(manifest, row).path)
        start, end = row.span or (0.0, float("inf"))
        segments = (Annotation(part.start, part.end, manifest.classes[part.label]) for part in row.segments)
        captions = (Annotation(start, end, caption) for caption in row.captions)
        yield from chain(
            (_Row(path, "action", one) for one in segments), (_Row(path, "caption", one) for one in captions)
        )
