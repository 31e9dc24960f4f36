"""Write reaching clips of the sample world with manifests for Ego4D's tracks (arXiv 2211.09529), exactly annotated.

`generate_reaches` writes below FOLDER/ego: `clips/...mp4` and

- `hands.jsonl`: future positions of both hands, in the format of Ego4D's future hands; attribute "seen" has their
  positions in the last observed frame and a third of a second before, for baselines;
- `contact.jsonl`: the object of the next contact, verb and time to contact, two key frames per clip (classes: nouns;
  `verbs.txt`);
- `change.jsonl`: the object that changes its state, at a frame before, during and after the change;
- `actions.jsonl`: the attributes "verb" and "noun" of every clip;
- `contact.detections.json`, `change.detections.json`: simulated detections: jittered boxes of objects and hands, and
  false positives, with scores that say nothing about what will happen.

`split` is train for seven of ten clips, else test.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from internvideo.data.manifest import Box, Sample, write_manifest
from internvideo.errors import RunError
from internvideo.sample_world.clips import WorldSettings, in_processes
from internvideo.sample_world.reaching import HANDS, NOUNS, VERBS, Reach, plan_reach
from internvideo.sample_world.scene import actor_boxes, render
from internvideo.storage import folder_lock, write_text
from internvideo.terminal import bars_disabled
from internvideo.video.writer import write_video

Floats = NDArray[np.float64]
Detections = dict[str, list[dict[str, Any]]]

MOMENTS = {"pre_45": 1.5, "pre_30": 1.0, "pre_15": 0.5, "pre_frame": 1 / 6, "contact_frame": 0.0}
"""Key frame -> seconds before the contact."""
CHANGE = "object_of_change"
_CHUNK = 8


def generate_reaches(
    folder: str | os.PathLike[str],
    settings: WorldSettings,
    count: int,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Path]:
    """Write `count` reaching clips of a world (its seed, size, fps and difficulty); clips that exist are kept.

    Returns: paths of the manifests: hands, contact, change, actions.

    Raises RunError: the folder contains clips of another world, or cannot be written.
    """
    root = Path(folder) / "ego"
    with folder_lock(root):
        _init_folder(root, settings)
        boxes = _write_all(root, settings, count, workers, progress)
        rows: dict[str, list[Sample]] = {name: [] for name in ("hands", "contact", "change", "actions")}
        detections: dict[str, Detections] = {"contact": {}, "change": {}}
        for number in range(count):
            reach = _plan(settings, number)
            rows["hands"].append(_hands_row(reach, boxes[number], settings.fps))
            rows["actions"].append(_action_row(reach, settings.fps))
            # Of a change: a frame before it, one in its middle (the point of no return) and one after it.
            change = [reach.contact + round(seconds * settings.fps) for seconds in (-0.25, 0.35, 1.0)]
            key_frames = {"contact": _contact_frames(reach, settings), "change": change}
            for name, frames in key_frames.items():
                for frame in frames:
                    row = _frame_row(name, reach, frame, boxes[number], settings)
                    rows[name].append(row)
                    detections[name][row.id] = _detections(reach, frame, boxes[number][frame], settings)
        manifests = {name: root / f"{name}.jsonl" for name in rows}
        classes: dict[str, tuple[str, ...]] = {"contact": NOUNS, "change": (CHANGE,)}
        for name, path in manifests.items():
            write_manifest(path, rows[name], classes.get(name, ()))
        write_text(root / "verbs.txt", "".join(f"{verb}\n" for verb in VERBS))
        for name, results in detections.items():
            write_text(root / f"{name}.detections.json", json.dumps({"results": results}) + "\n")
        return manifests


def _plan(settings: WorldSettings, number: int) -> Reach:
    return plan_reach(settings.seed, number, side=settings.size, fps=settings.fps, difficulty=settings.difficulty)


def _init_folder(root: Path, settings: WorldSettings) -> None:
    card = root / "world.json"
    values = {"seed": settings.seed, "size": settings.size, "fps": settings.fps, "difficulty": settings.difficulty}
    text = json.dumps({"format": "internvideo reaching clips", "version": 1, **values}) + "\n"
    try:
        present = card.read_text(encoding="utf-8") if card.exists() else text
    except (OSError, ValueError) as error:
        raise RunError(card, f"cannot be read: {error}", "", "choose another folder") from error
    if present != text:
        raise RunError(root, "contains reaching clips of another world", text.strip(), "choose another folder")
    write_text(card, text)


def _path(reach: Reach) -> str:
    return f"clips/{reach.name[-2:]}/{reach.name}.mp4"


def _write(root: Path, settings: WorldSettings, numbers: Sequence[int]) -> list[Floats]:
    """Draw and encode missing clips; return the boxes (T, A, 4) of every clip as fractions of the frame."""
    clip_boxes = []
    for number in numbers:
        reach = _plan(settings, number)
        path = root / _path(reach)
        if path.exists():
            clip_boxes.append(actor_boxes(reach.scene))
            continue
        frames, boxes = render(reach.scene)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames, settings.fps, crf=20, options={"preset": "veryfast"})
        clip_boxes.append(boxes)
    return clip_boxes


def _write_all(root: Path, settings: WorldSettings, count: int, workers: int | None, progress: bool) -> list[Floats]:
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    boxes: dict[int, list[Floats]] = {}
    hidden = bars_disabled(None if progress else False)
    with tqdm(total=count, desc="reaching clips", unit="clip", disable=hidden) as bar:
        work, alone = partial(_write, root, settings), len(chunks) < 4
        for chunk, found in in_processes(work, chunks, workers, alone=alone, where=root):
            boxes[chunk.start] = found
            bar.update(len(chunk))
    return [clip_boxes for start in sorted(boxes) for clip_boxes in boxes[start]]


def _row(reach: Reach, name: str, **fields: Any) -> Sample:
    split = "train" if reach.scene.seed[-1] % 10 < 7 else "test"
    return Sample(id=name, path=_path(reach), group=reach.name, split=split, **fields)


def _centers(reach: Reach, boxes: Floats, frame: int) -> dict[str, list[float]]:
    """Return the centers of the boxes of the visible hands, in pixels."""
    centers = {}
    for name, box in zip(HANDS, boxes[frame, reach.objects :], strict=True):
        if not np.isnan(box).any():
            centers[name] = [round(float(value) * reach.scene.side, 2) for value in (box[:2] + box[2:]) / 2]
    return centers


def _hands_row(reach: Reach, boxes: Floats, fps: int) -> Sample:
    moments = {name: reach.contact - round(seconds * fps) for name, seconds in MOMENTS.items()}
    hands = {name: {"frame": frame, **_centers(reach, boxes, frame)} for name, frame in moments.items()}
    # Frame pre_45 is not observed any more.
    last = moments["pre_45"] - 1
    # Centers are multiples of half a pixel, so the speed is measured over a third of a second.
    observed = [{"frame": frame, **_centers(reach, boxes, frame)} for frame in (last - round(fps / 3), last)]
    side = reach.scene.side
    attributes = {"hands": json.dumps(hands), "seen": json.dumps(observed), "fps": str(fps), "size": f"{side}x{side}"}
    return _row(reach, reach.name, attributes=attributes)


def _action_row(reach: Reach, fps: int) -> Sample:
    noun = reach.scene.actors[reach.target].look.shape
    span = (max(reach.contact / fps - 1.5, 0.0), reach.contact / fps + 1.0)
    return _row(reach, reach.name, span=span, attributes={"verb": reach.verb, "noun": noun, "change": reach.change})


def _contact_frames(reach: Reach, settings: WorldSettings) -> list[int]:
    """Sample two key frames before the contact, while the hand moves towards the object."""
    rng = np.random.default_rng((*reach.scene.seed, 2000))
    ahead = (rng.uniform(0.8, 1.5), rng.uniform(0.25, 0.8))
    return [reach.contact - round(seconds * settings.fps) for seconds in ahead]


def _frame_row(track: str, reach: Reach, frame: int, boxes: Floats, settings: WorldSettings) -> Sample:
    time, side = frame / settings.fps, reach.scene.side
    noun = NOUNS.index(reach.scene.actors[reach.target].look.shape)
    x1, y1, x2, y2 = (round(float(value), 4) for value in boxes[frame, reach.target])
    box = Box(time=round(time, 4), x1=x1, y1=y1, x2=x2, y2=y2, labels=(noun if track == "contact" else 0,))
    attributes = {"frame": str(frame), "time": f"{time:.4f}", "size": f"{side}x{side}"}
    name = f"{reach.name}_{frame:03d}"
    if track == "contact":
        seconds = (reach.contact - frame) / settings.fps
        attributes |= {"uid": name, "verbs": str(VERBS.index(reach.verb)), "times_to_contact": f"{seconds:.4f}"}
    return _row(reach, name, boxes=(box,), attributes=attributes)


def _detections(reach: Reach, frame: int, boxes: Floats, settings: WorldSettings) -> list[dict[str, Any]]:
    """Simulate the detections (boxes in pixels) of an object detector."""
    rng = np.random.default_rng((*reach.scene.seed, 3000 + frame))
    detections = []
    for index, box in enumerate(boxes):
        noise, score, noun, missed = rng.normal(0, 0.07, 4), rng.uniform(0.5, 1.0), rng.random(), rng.random()
        other = int(rng.integers(len(NOUNS)))
        if np.isnan(box).any() or missed < 0.03:
            continue
        wide = np.tile(box[2:] - box[:2], 2)
        known = index < reach.objects and noun < 0.9
        number = NOUNS.index(reach.scene.actors[index].look.shape) if known else other
        detections.append((box + noise * wide, number, score))
    for _ in range(2):
        corner, size = rng.uniform(0, 0.75, 2), rng.uniform(0.12, 0.25, 2)
        box = np.concatenate([corner, corner + size])
        detections.append((box, int(rng.integers(len(NOUNS))), rng.uniform(0.3, 0.8)))
    return [
        {
            "box": [round(float(value) * settings.size, 2) for value in np.clip(box, 0, 1)],
            "noun_category_id": noun,
            "score": round(float(score), 4),
        }
        for box, noun, score in detections
    ]
