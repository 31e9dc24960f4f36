"""Described moments of the sample world's untrimmed videos: queries with one right answer each (Ego4D's NLQ).

A query is about an action that its actor does once, or that happens once in the video, whoever does it; actors of one
video have different colours. Everything follows from the video's seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from internvideo.data.sample import Sample, Segment
from internvideo.sample_world.clips import Clip, clip_path
from internvideo.sample_world.language import VERBS

OF_ACTOR = ("when is the {actor} {action}?", "when does the {actor} start {action}?", "show the {actor} as it {verb}")
OF_ACTION = ("when is something {action}?", "when does something start {action}?", "find where something {verb}")
ANYONE = 0.5
"""Share of the actions that happen once in the video that are asked for without the actor."""


def described_moments(clip: Clip, fps: int, split: str) -> tuple[Sample, ...]:
    """A row for every query about an untrimmed video; its path is the video, its one segment the answer.

    The attributes are those of Ego4D's queries; "template" is "actor" or "action", "asks" the action.
    """
    rng = np.random.default_rng((*clip.scene.seed, 3000))
    often = Counter(name for actor in clip.scene.actors for part in actor.parts for name in part.actions)
    rows: list[Sample] = []
    for actor in clip.scene.actors:
        own = Counter(name for part in actor.parts for name in part.actions)
        look = f"{actor.look.colour} {actor.look.shape}"
        for part in actor.parts:
            for name in part.actions:
                anyone, form = rng.random() < ANYONE, int(rng.integers(len(OF_ACTOR)))
                if own[name] > 1:
                    continue
                anyone = anyone and often[name] == 1
                text = _sentence(OF_ACTION if anyone else OF_ACTOR, form, look, name, rng)
                start, end = round(part.start / fps, 4), round((part.stop + 1) / fps, 4)
                told = {"clip_uid": clip.name, "annotation_uid": clip.name, "query_idx": str(len(rows))}
                told |= {"template": "action" if anyone else "actor", "asks": name}
                rows.append(
                    Sample(
                        id=f"{clip.name}_0_{len(rows)}",
                        path=clip_path(clip),
                        captions=(text,),
                        segments=(Segment(start=start, end=end, label=0),),
                        split=split,
                        group=clip.name,
                        attributes=told,
                    )
                )
    return tuple(rows)


def _sentence(forms: Sequence[str], form: int, look: str, action: str, rng: np.random.Generator) -> str:
    verb = VERBS[action][int(rng.integers(len(VERBS[action])))]
    return forms[form].format(actor=look, action=action, verb=verb)
