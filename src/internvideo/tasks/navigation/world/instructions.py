"""Generate instructions of the embedded world from routes, and parse them back to the same routes.

Grammar:
text   = piece (joint piece)* "."
piece  = turn | door | pass | stop
turn   = "turn left" | "turn right" | "turn around"                         (only at the beginning)
door   = ("go through" | "walk through" | "leave by" | "take") "the" COLOR ("door" | "doorway")
pass   = ("pass" | "walk past" | "go by") "the" thing
stop   = ("stop at" | "stop beside" | "wait next to" | "end at") "the" thing
thing  = [MOTION | "still"] COLOR shape
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from internvideo.tasks.navigation.world.scene import COLORS, MOTIONS, Motion, Shape

Side = Literal["", "left", "right", "around"]
SHAPE_WORDS: dict[Shape, tuple[str, ...]] = {
    "pillar": ("pillar", "column"),
    "box": ("box", "crate"),
    "barrel": ("barrel", "drum"),
    "screen": ("screen", "panel"),
}
DOOR_WORDS = ("door", "doorway")
VERBS: dict[str, tuple[str, ...]] = {
    "door": ("go through", "walk through", "leave by", "take"),
    "pass": ("pass", "walk past", "go by"),
    "stop": ("stop at", "stop beside", "wait next to", "end at"),
}
JOINTS = (", ", ", then ", " and then ", ". Then ", ". ")
LAST_JOINTS = (" and ", ", then ", " and then ", ". Finally ")
_SPLIT = re.compile(r", then |, | and then | and |\. then |\. finally |\. ")
_KINDS = {verb: kind for kind, verbs in VERBS.items() for verb in verbs}
_SHAPES = {word: shape for shape, words in SHAPE_WORDS.items() for word in words}
_MOTION_WORDS = (*MOTIONS, "still")
_PIECE = re.compile(
    rf"(?P<verb>{'|'.join(_KINDS)}) the (?:(?P<motion>{'|'.join(_MOTION_WORDS)}) )?(?P<color>{'|'.join(COLORS)}) "
    rf"(?P<noun>{'|'.join((*_SHAPES, *DOOR_WORDS))})"
)
_TURN = re.compile("turn (left|right|around)")


@dataclass(frozen=True)
class LandmarkPhrase:
    """Description of a landmark; `motion` (or "still") is given only for a landmark with a twin, else ""."""

    shape: Shape
    color: str
    motion: Motion | Literal["still", ""] = ""


@dataclass(frozen=True)
class Through:
    """Go through the door of a color, after a turn."""

    color: str
    turn: Side = ""


@dataclass(frozen=True)
class Pass:
    """Pass a landmark, after a turn."""

    thing: LandmarkPhrase
    turn: Side = ""


@dataclass(frozen=True)
class Stop:
    """Stop at a landmark, after a turn."""

    thing: LandmarkPhrase
    turn: Side = ""


Leg = Through | Pass | Stop
Route = tuple[Leg, ...]
"""Legs of a route. Only the first leg can have a turn. The last leg is a Stop, all others are not."""


def generate_instruction(route: Route, rng: np.random.Generator) -> str:
    """Generate a random sentence for a route."""

    def sample(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    pieces: list[str] = []
    for leg in route:
        pieces += [f"turn {leg.turn}"] if leg.turn else []
        if isinstance(leg, Through):
            pieces.append(f"{sample(VERBS['door'])} the {leg.color} {sample(DOOR_WORDS)}")
        else:
            landmark = leg.thing
            name = f"{landmark.motion} {landmark.color} {sample(SHAPE_WORDS[landmark.shape])}".strip()
            pieces.append(f"{sample(VERBS['pass' if isinstance(leg, Pass) else 'stop'])} the {name}")
    text = pieces[0]
    for index, piece in enumerate(pieces[1:], start=2):
        joint = sample(LAST_JOINTS if index == len(pieces) else JOINTS)
        text += joint + (piece.capitalize() if joint == ". " else piece)
    return text[0].upper() + text[1:] + "."


def parse_instruction(text: str) -> Route:
    """Parse an instruction to its route. Raises ValueError: the text does not follow the grammar."""
    legs: list[Leg] = []
    turn: Side = ""
    for piece in _SPLIT.split(text.strip().removesuffix(".").lower()):
        if match := _TURN.fullmatch(piece):
            if legs or turn:
                raise ValueError(f"'{piece}' is only allowed at the beginning")
            turn = next(side for side in get_args(Side) if side == match[1])
            continue
        legs.append(_parse_leg(piece, turn))
        turn = ""
    if not legs or any(isinstance(leg, Stop) != (index == len(legs) - 1) for index, leg in enumerate(legs)):
        raise ValueError(f"'{text}' must have exactly one stop, at the end")
    return tuple(legs)


def _parse_leg(piece: str, turn: Side) -> Leg:
    match = _PIECE.fullmatch(piece)
    if not match:
        raise ValueError(f"'{piece}' does not follow the grammar")
    kind, noun, motion = _KINDS[match["verb"]], match["noun"], match["motion"] or ""
    if (kind == "door") != (noun in DOOR_WORDS) or (kind == "door" and motion):
        raise ValueError(f"'{piece}' does not follow the grammar")
    if kind == "door":
        return Through(match["color"], turn)
    spoken: Motion | Literal["still", ""] = next(
        (word for word in get_args(Motion) if word == motion), "still" if motion == "still" else ""
    )
    thing = LandmarkPhrase(_SHAPES[noun], match["color"], spoken)
    return Pass(thing, turn) if kind == "pass" else Stop(thing, turn)


def goal_named_by_motion(text: str) -> bool:
    """Return whether an instruction names the motion of its goal, which differs from its twin only in motion."""
    try:
        last = parse_instruction(text)[-1]
    except ValueError:
        return False
    return isinstance(last, Stop) and bool(last.thing.motion)


def vocabulary() -> tuple[str, ...]:
    """Return all words of the instructions in lower case, sorted."""
    phrases = [*_KINDS, *_SHAPES, *DOOR_WORDS, *_MOTION_WORDS, *COLORS, *JOINTS, *LAST_JOINTS]
    phrases += ["the", "turn left right around"]
    return tuple(sorted({word.strip(",.").lower() for phrase in phrases for word in phrase.split()} - {""}))
