"""Read R2R in continuous environments (VLN-CE): one row per episode (Visual-Language-Navigation)."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from internvideo.data.sample import Sample, Sentence
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.reading import AnnotationSource, JsonLocation, Name, Record, read_json
from internvideo.errors import ManifestError

Point = tuple[float, float, float]
SPLITS = ("train", "val_seen", "val_unseen", "test")


class _Goal(Record):
    position: Point
    radius: PositiveFloat = 3.0


class _Info(Record):
    geodesic_distance: NonNegativeFloat


class _Instruction(Record):
    text: Annotated[Sentence, Field(alias="instruction_text")]


class _Episode(Record):
    number: Annotated[int, Field(alias="episode_id", ge=0)]
    trajectory: Annotated[int, Field(alias="trajectory_id", ge=0)]
    scene: Annotated[Name, Field(alias="scene_id")]
    position: Annotated[Point, Field(alias="start_position")]
    rotation: Annotated[tuple[float, float, float, float], Field(alias="start_rotation")]
    instruction: _Instruction
    info: _Info | None = None
    goals: tuple[_Goal, ...] = ()
    reference_path: tuple[Point, ...] = ()


class _File(Record):
    episodes: tuple[_Episode, ...]


class _Truth(Record):
    locations: tuple[Point, ...] = Field(min_length=1)
    actions: tuple[Annotated[int, Field(ge=0, le=3)], ...]


def read_r2r(source: AnnotationSource) -> Annotations:
    """Read R2R-CE: `train.json.gz`, `val_seen.json.gz`, `val_unseen.json.gz`, `test.json.gz` and `SPLIT_gt.json.gz`.

    A row is an episode; its path is the scene, its caption the instruction. The attributes "start_position",
    "start_rotation" (x, y, z, w), "goal", "radius" (m), "distance" (geodesic, m), "reference_path", "locations" and
    "actions" (0 stop, 1 forward 0.25 m, 2 left, 3 right 15 degrees) are JSON. Test episodes have no goal.
    Raises ManifestError: no such file, a malformed or duplicate episode, an episode that the _gt file lacks.
    """
    annotations = Annotations()
    for split in SPLITS:
        path = source.find_optional(rf"/{split}\.json(\.gz)?$")
        if path is None:
            continue
        truth_path = source.find_optional(rf"/{split}_gt\.json(\.gz)?$")
        truth = read_json(truth_path, dict[str, _Truth]) if truth_path else {}
        for number, episode in enumerate(read_json(path, _File).episodes):
            where = JsonLocation(path, ("episodes", number, "episode_id"))
            ground_truth = truth.get(str(episode.number))
            if truth and ground_truth is None:
                raise ManifestError(where, f"no entry for {episode.number} in {split}_gt", "one for each episode")
            attributes: dict[str, object] = {"start_position": episode.position, "start_rotation": episode.rotation}
            if episode.goals:
                attributes |= {"goal": episode.goals[0].position, "radius": episode.goals[0].radius}
            if episode.info:
                attributes["distance"] = episode.info.geodesic_distance
            if episode.reference_path:
                attributes["reference_path"] = episode.reference_path
            if ground_truth:
                attributes |= {"locations": ground_truth.locations, "actions": ground_truth.actions}
            sample = Sample(
                id=str(episode.number), path=episode.scene, captions=(episode.instruction.text.strip(),),
                group=str(episode.trajectory), split=split,
                attributes={name: json.dumps(value) for name, value in attributes.items()},
            )  # fmt: skip
            annotations.add(split, sample, where)
    return annotations.ensure_rows(source.path, "no annotation file of R2R-CE", "val_unseen.json.gz and so on")
