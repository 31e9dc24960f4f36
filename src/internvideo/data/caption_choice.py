"""Which of a video's captions stand beside it in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

from internvideo.data.manifest import Manifest
from internvideo.data.sample import Sample

CaptionChoice = Literal["random", "each", "first", "joined", "answer"]


def with_captions(manifest: Manifest, choice: CaptionChoice) -> Manifest:
    """The rows with the captions that shall be learned.

    Args:
        manifest: rows with captions.
        choice: "random" leaves them: a new one is drawn whenever a video is read. "each" makes a row of every (video,
            caption) pair, so that an epoch sees all of them, as the published retrieval recipes count
            (main_task_retrieval.py). "first" keeps one, "joined" makes one paragraph of them. "answer" takes what a row
            of another task answers: the right one of its choices, or its class name.

    Raises:
        ManifestError: a row without captions or answers, where they are chosen.
    """
    if choice not in get_args(CaptionChoice):
        raise ValueError(f"{choice}: {', '.join(get_args(CaptionChoice))}")
    if choice == "random":
        return manifest
    if choice == "answer":
        rows = (row.model_copy(update={"captions": _answer(row, manifest.classes)}) for row in manifest.rows)
        return with_captions(replace(manifest, rows=tuple(rows)), "first")
    manifest.require("captions")

    def made(row: Sample) -> Iterator[Sample]:
        if choice == "each":
            for number, caption in enumerate(row.captions):
                yield row.model_copy(update={"id": f"{row.id}#{number}", "captions": (caption,)})
        else:
            only = row.captions[0] if choice == "first" else " ".join(row.captions)
            yield row.model_copy(update={"captions": (only,)})

    return replace(manifest, rows=tuple(part for row in manifest.rows for part in made(row)))


def _answer(row: Sample, classes: tuple[str, ...]) -> tuple[str, ...]:
    if row.choices is not None:
        return (row.choices.options[row.choices.answer],)
    return () if row.label is None else (classes[row.label],)
