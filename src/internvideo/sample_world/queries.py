"""Generate language queries about untrimmed videos of the sample world, with one correct segment each (Ego4D's NLQ).

A query is about an action that its actor performs once, or that occurs once in the video; the actors of a video have
different colors. The queries depend only on the video's seed.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from internvideo.data.sample import Sample, Segment
from internvideo.sample_world.clips import Clip, clip_path
from internvideo.sample_world.language import VERBS

ACTOR_TEMPLATES = (
    "when is the {actor} {action}?",
    "when does the {actor} start {action}?",
    "show the {actor} as it {verb}",
)
ACTION_TEMPLATES = ("when is something {action}?", "when does something start {action}?", "find where something {verb}")
NO_ACTOR_PROBABILITY = 0.5
"""Probability that a query does not name the actor, if its action occurs only once in the video."""


def make_language_queries(clip: Clip, fps: int, split: str) -> tuple[Sample, ...]:
    """Make a row for every query about an untrimmed video; the single segment of a row is the answer.

    The attributes are those of Ego4D's queries; "template" is "actor" or "action", "asks" is the action.

    Args:
        clip: planned untrimmed video. fps: frame rate of the video. split: of the rows.
    """
    rng = np.random.default_rng((*clip.scene.seed, 3000))
    counts = Counter(name for actor in clip.scene.actors for part in actor.parts for name in part.actions)
    rows: list[Sample] = []
    for actor in clip.scene.actors:
        actor_counts = Counter(name for part in actor.parts for name in part.actions)
        appearance = f"{actor.look.colour} {actor.look.shape}"
        for part in actor.parts:
            for name in part.actions:
                without_actor, template_index = (
                    rng.random() < NO_ACTOR_PROBABILITY,
                    int(rng.integers(len(ACTOR_TEMPLATES))),
                )
                if actor_counts[name] > 1:
                    continue
                without_actor &= counts[name] == 1
                verb = VERBS[name][int(rng.integers(len(VERBS[name])))]
                text = (ACTION_TEMPLATES if without_actor else ACTOR_TEMPLATES)[template_index].format(
                    actor=appearance, action=name, verb=verb
                )
                attributes = {"clip_uid": clip.name, "annotation_uid": clip.name, "query_idx": str(len(rows))}
                attributes |= {"template": "action" if without_actor else "actor", "asks": name}
                segment = Segment(start=round(part.start / fps, 4), end=round((part.stop + 1) / fps, 4), label=0)
                rows.append(Sample(
                    id=f"{clip.name}_0_{len(rows)}", path=clip_path(clip), captions=(text,), segments=(segment,),
                    split=split, group=clip.name, attributes=attributes,
                ))  # fmt: skip
    return tuple(rows)
