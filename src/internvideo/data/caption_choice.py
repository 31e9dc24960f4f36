"""Choose which of a video's captions are used in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

from internvideo.data.manifest import Manifest
from internvideo.data.sample import Sample

CaptionChoice = Literal["random", "each", "first", "joined", "answer"]


def with_captions(manifest: Manifest, choice: CaptionChoice) -> Manifest:
    """Return the rows with the captions for training.

    Args:
        manifest: rows with captions.
        choice: "random" keeps all: one is sampled whenever a video is read. "each" makes one row per (video, caption)
            pair, so that an epoch has all of them, as in the published retrieval recipes (main_task_retrieval.py).
            "first" keeps the first, "joined" joins them to one paragraph. "answer" uses the correct option of a row's
            choices, or its class name.

    Raises ManifestError: a row without captions or answer (not with "random").
    """
    if choice not in get_args(CaptionChoice):
        raise ValueError(f"{choice}: {', '.join(get_args(CaptionChoice))}")
    if choice == "random":
        return manifest
    if choice == "answer":
        rows = (row.model_copy(update={"captions": _answer_caption(row, manifest.classes)}) for row in manifest.rows)
        return with_captions(replace(manifest, rows=tuple(rows)), "first")
    manifest.require("captions")

    def rows_of(row: Sample) -> Iterator[Sample]:
        if choice == "each":
            for index, caption in enumerate(row.captions):
                yield row.model_copy(update={"id": f"{row.id}#{index}", "captions": (caption,)})
        else:
            caption = row.captions[0] if choice == "first" else " ".join(row.captions)
            yield row.model_copy(update={"captions": (caption,)})

    return replace(manifest, rows=tuple(new_row for row in manifest.rows for new_row in rows_of(row)))


def _answer_caption(row: Sample, classes: tuple[str, ...]) -> tuple[str, ...]:
    if row.choices is not None:
        return (row.choices.options[row.choices.answer],)
    return () if row.label is None else (classes[row.label],)
