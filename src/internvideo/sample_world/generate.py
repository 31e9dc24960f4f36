"""Generate the sample world: H.264 clips of moving objects with exact annotations for every task.

`generate` writes `FOLDER/clips/...mp4`, `classes.txt`, `world.json` and these manifests:

- `train.jsonl`, `validation.jsonl`: combinations of shape, color and place that are not held out;
- `test.jsonl`: other seeds, held-out combinations;
- `zero_shot.jsonl`: held-out classes (names in `zero_shot.classes.txt`), held-out combinations;
- `open_set.jsonl`: test clips, and clips of unknown classes without a label (attribute `known`: yes or no); attribute
  `novelty` is "near" for the zero-shot classes (two known actions at once) and "far" for other kinds of motion;
- `long.jsonl`: untrimmed videos with segments, and boxes of all actors once per second (`split`: train or test);
- `queries.jsonl`: language queries about these, with one correct segment each (sample_world/queries.py).

`templates.txt` has the prompts for class names. Rows have captions, questions with answers and a five-way choice; half
of the captions of a training row describe only the action or only the object. Attributes are action, shape, colour,
texture, size, place and speed. The same seed gives the same files on CPUs of one instruction set; on others a few of
them differ by floating-point rounding. A script that calls `generate` needs `if __name__ == "__main__":`, because it
starts processes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from internvideo import untrusted
from internvideo.data.manifest import QA, Box, Choice, Sample, Segment, write_manifest
from internvideo.errors import RunError
from internvideo.sample_world.actions import ACTIONS, HELD_OUT_CLASSES, REVERSE_OF, TIME_DIRECTED, reverse_class
from internvideo.sample_world.clips import (
    Clip,
    SeenActor,
    WorldSettings,
    classes_of,
    clip_path,
    held_out,
    in_processes,
    plan,
    write_clips,
)
from internvideo.sample_world.language import (
    TEMPLATES,
    captions,
    choices,
    long_captions,
    questions,
    training_captions,
)
from internvideo.sample_world.queries import make_language_queries
from internvideo.sample_world.scene import render
from internvideo.storage import folder_lock, write_text
from internvideo.terminal import bars_disabled

__all__ = [
    "ACTIONS", "HELD_OUT_CLASSES", "REVERSE_OF", "TIME_DIRECTED", "WorldSettings", "fingerprint", "generate",
    "held_out", "plan", "render", "reverse_class",
]  # fmt: skip

CARD, FORMAT = "world.json", "internvideo sample world"
VERSION = 5  # increased when the drawing changes: then the same settings give another world
_CHUNK = 8
Job = tuple[str, int]


def fingerprint(settings: WorldSettings) -> str:
    """Hash the settings and the version of the drawing to 16 hex digits that identify the world."""
    return hashlib.sha256(json.dumps([VERSION, asdict(settings)]).encode()).hexdigest()[:16]


def is_sample_world(folder: Path) -> bool:
    """Return whether a folder has the `world.json` of a sample world."""
    try:
        content = untrusted.read_json(folder / CARD)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def generate(
    folder: str | os.PathLike[str], settings: WorldSettings, *, workers: int | None = None, progress: bool = True
) -> dict[str, Path]:
    """Write a sample world; files that exist are kept, so a second call resumes an interrupted one.

    Args:
        folder: a new or empty folder, or one with the same world.
        settings: the settings of the world.
        workers: number of processes; None for one per CPU core. The files do not depend on it.
        progress: show a progress bar on stderr if that is a terminal.

    Returns:
        paths of the manifests: train, validation, test, zero_shot, open_set; with long videos also long and queries.

    Raises:
        RunError: the folder contains another world or other files, or cannot be written. VideoError: a video cannot be
            written.
    """
    root = Path(folder)
    with folder_lock(root):
        _init_folder(root, settings)
        jobs = [(split, number) for split, count in settings.counts.items() for number in range(count)]
        boxes = _write_all(root, settings, jobs, workers, progress)
        rows: dict[str, list[Sample]] = {split: [] for split, count in settings.counts.items() if count}
        for split, number in jobs:
            clip = plan(settings, split, number)
            row = _long_row(settings, clip, boxes) if split == "long" else _short_row(settings, split, clip)
            rows[split].append(row)
        rows["open_set"] = [_open_set_row(row, "known") for row in rows["test"]]
        rows["open_set"] += [_open_set_row(row, "near") for row in rows["zero_shot"]]
        rows["open_set"] += [_open_set_row(row, "far") for row in rows.pop("far")]
        if "long" in rows:
            rows["queries"] = [
                query
                for number, row in enumerate(rows["long"])
                for query in make_language_queries(plan(settings, "long", number), settings.fps, row.split or "")
            ]
        manifests = {split: root / f"{split}.jsonl" for split in rows}
        classes = {"zero_shot": HELD_OUT_CLASSES, "queries": ("answer",)}
        write_text(root / "templates.txt", "".join(f"{line}\n" for line in TEMPLATES))
        for split, path in manifests.items():
            write_manifest(path, rows[split], classes.get(split, settings.actions))
        return manifests


def _init_folder(root: Path, settings: WorldSettings) -> None:
    """Write `world.json`, or check that the existing one has the same fingerprint."""
    card, expected = root / CARD, fingerprint(settings)
    try:
        if card.exists():
            actual = untrusted.read_json(card).get("fingerprint")
            if actual != expected:
                reason = f"contains another sample world ({actual})"
                raise RunError(root, reason, expected, "choose another folder or its settings")
            for unfinished in root.glob("clips/*/.*.mp4"):  # left by a killed process
                unfinished.unlink(missing_ok=True)
            return
        if root.exists() and (not root.is_dir() or any(not found.name.startswith(".") for found in root.iterdir())):
            raise RunError(root, "is not an empty folder", "a new or empty folder", "choose another one")
    except (OSError, ValueError, AttributeError) as error:
        accepted = "the world.json of a sample world"
        raise RunError(card, f"cannot be read: {error}", accepted, "choose another folder") from error
    content = {"format": FORMAT, "version": VERSION, "fingerprint": expected, "settings": asdict(settings)}
    write_text(card, json.dumps(content, indent=1) + "\n")


def _write_all(
    root: Path, settings: WorldSettings, jobs: Sequence[Job], workers: int | None, progress: bool
) -> dict[str, tuple[SeenActor, ...]]:
    """Write missing clips; return the boxes of the long videos by name."""
    todo = [job for job in jobs if job[0] == "long" or not (root / clip_path(plan(settings, *job))).exists()]
    single = [[job] for job in todo if job[0] == "long"]
    rest = [job for job in todo if job[0] != "long"]
    chunks = [*single, *(rest[start : start + _CHUNK] for start in range(0, len(rest), _CHUNK))]
    frames = sum(plan(settings, *job).scene.frames for job in todo)  # videos differ in length: progress counts frames
    long_boxes: dict[str, tuple[SeenActor, ...]] = {}
    hidden = bars_disabled(None if progress else False)
    with tqdm(total=frames, desc="sample world", unit="frame", disable=hidden) as bar:
        work, alone = partial(write_clips, root, settings), len(todo) < 4 * _CHUNK
        for chunk, found in in_processes(work, chunks, workers, alone=alone, where=root):
            long_boxes.update(zip((f"{split}_{number}" for split, number in chunk), found, strict=True))
            bar.update(sum(plan(settings, *job).scene.frames for job in chunk))
    return long_boxes


def _short_row(settings: WorldSettings, split: str, clip: Clip) -> Sample:
    facts = clip.facts
    rng = np.random.default_rng((*clip.scene.seed, 2000))
    trained = split == "train"
    sentences = training_captions(facts, rng) if trained else captions(facts, rng)
    options, answer, kinds = choices(facts, rng, held_out, test=not trained)
    classes = classes_of(settings, split)
    return Sample(
        id=clip.name,
        path=clip_path(clip),
        label=classes.index(facts.action),
        captions=sentences,
        qa=tuple(QA(question=question, answer=reply, type=kind) for question, reply, kind in questions(facts)),
        choices=Choice(options=options, answer=answer, kinds=kinds),
        group=f"{facts.colour} {facts.shape}, {facts.place}",
        split=split if split in ("train", "validation") else "test",
        attributes=asdict(facts),
    )


def _open_set_row(row: Sample, novelty: str) -> Sample:
    known = novelty == "known"
    attributes = {**row.attributes, "known": "yes" if known else "no", **({} if known else {"novelty": novelty})}
    return row.model_copy(update={"label": row.label if known else None, "attributes": attributes})


def _long_row(settings: WorldSettings, clip: Clip, boxes: dict[str, tuple[SeenActor, ...]]) -> Sample:
    number, fps, classes = clip.scene.seed[-1], settings.fps, settings.actions
    segments = sorted(
        (part.start / fps, (part.stop + 1) / fps, classes.index(name))
        for actor in clip.scene.actors
        for part in actor.parts
        for name in part.actions
    )
    return Sample(
        id=clip.name,
        path=clip_path(clip),
        captions=long_captions(clip.scene),
        segments=tuple(
            Segment(start=round(start, 4), end=round(end, 4), label=label) for start, end, label in segments
        ),
        boxes=tuple(_box(one, classes) for one in boxes[f"long_{number}"]),
        split="test" if number % 3 == 2 else "train",
        attributes={"place": clip.scene.place, "actors": str(len(clip.scene.actors))},
    )


def _box(visible: SeenActor, classes: Sequence[str]) -> Box:
    x1, y1, x2, y2 = visible.corners
    labels = tuple(classes.index(name) for name in visible.actions if name in classes)
    return Box(time=round(visible.time, 4), actor=visible.actor, x1=x1, y1=y1, x2=x2, y2=y2, labels=labels)
