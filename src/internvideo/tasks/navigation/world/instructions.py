"""Generate and parse instructions of the embedded world: routes to sentences and exactly back.

text   = piece (joint piece)* "."
piece  = turn | door | pass | stop
turn   = "turn left" | "turn right" | "turn around"                         (before the first of the others)
door   = ("go through" | "walk through" | "leave by" | "take") "the" COLOUR ("door" | "doorway")
pass   = ("pass" | "walk past" | "go by") "the" thing
stop   = ("stop at" | "stop beside" | "wait next to" | "end at") "the" thing
thing  = [MOTION | "still"] COLOUR shape
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from internvideo.tasks.navigation.world.scene import COLOURS, MOTIONS, Motion, Shape

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
    rf"(?P<verb>{'|'.join(_KINDS)}) the (?:(?P<motion>{'|'.join(_MOTION_WORDS)}) )?(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<noun>{'|'.join((*_SHAPES, *DOOR_WORDS))})"
)
_TURN = re.compile("turn (left|right|around)")


@dataclass(frozen=True)
class Thing:
    """Description of a landmark; motion, or "still", is mentioned only if it has a twin."""

    shape: Shape
    colour: str
    motion: Motion | Literal["still", ""] = ""


@dataclass(frozen=True)
class Through:
    """Go through the door of a color, after a turn."""

    colour: str
    turn: Side = ""


@dataclass(frozen=True)
class Pass:
    """Pass a landmark, after a turn."""

    thing: Thing
    turn: Side = ""


@dataclass(frozen=True)
class Stop:
    """Stop at a landmark, after a turn."""

    thing: Thing
    turn: Side = ""


Leg = Through | Pass | Stop
Route = tuple[Leg, ...]
"""Legs of a route: only the first has a turn; the last, and only the last, is a Stop."""


def say(route: Route, rng: np.random.Generator) -> str:
    """Generate a random sentence for a route."""

    def one(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    pieces: list[str] = []
    for leg in route:
        pieces += [f"turn {leg.turn}"] if leg.turn else []
        if isinstance(leg, Through):
            pieces.append(f"{one(VERBS['door'])} the {leg.colour} {one(DOOR_WORDS)}")
        else:
            thing = leg.thing
            name = f"{thing.motion} {thing.colour} {one(SHAPE_WORDS[thing.shape])}".strip()
            pieces.append(f"{one(VERBS['pass' if isinstance(leg, Pass) else 'stop'])} the {name}")
    text = pieces[0]
    for number, piece in enumerate(pieces[1:], start=2):
        joint = one(LAST_JOINTS if number == len(pieces) else JOINTS)
        text += joint + (piece.capitalize() if joint == ". " else piece)
    return text[0].upper() + text[1:] + "."


def understand(text: str) -> Route:
    """Parse a sentence to its route. Raises ValueError: not a sentence of this language."""
    legs: list[Leg] = []
    turn: Side = ""
    for piece in _SPLIT.split(text.strip().removesuffix(".").lower()):
        if found := _TURN.fullmatch(piece):
            if legs or turn:
                raise ValueError(f"'{piece}' which is no beginning")
            turn = next(side for side in get_args(Side) if side == found[1])
            continue
        legs.append(_leg(piece, turn))
        turn = ""
    if not legs or any(isinstance(leg, Stop) != (number == len(legs) - 1) for number, leg in enumerate(legs)):
        raise ValueError(f"'{text}' does not end, and only end, with a stop")
    return tuple(legs)


def _leg(piece: str, turn: Side) -> Leg:
    found = _PIECE.fullmatch(piece)
    if not found:
        raise ValueError(f"'{piece}' is not a piece of this language")
    kind, noun, motion = _KINDS[found["verb"]], found["noun"], found["motion"] or ""
    if (kind == "door") != (noun in DOOR_WORDS) or (kind == "door" and motion):
        raise ValueError(f"'{piece}' is not a piece of this language")
    if kind == "door":
        return Through(found["colour"], turn)
    spoken: Motion | Literal["still", ""] = next(
        (word for word in get_args(Motion) if word == motion), "still" if motion == "still" else ""
    )
    thing = Thing(_SHAPES[noun], found["colour"], spoken)
    return Pass(thing, turn) if kind == "pass" else Stop(thing, turn)


def told_by_motion(text: str) -> bool:
    """Return whether the goal differs from its twin only in motion."""
    try:
        last = understand(text)[-1]
    except ValueError:
        return False
    return isinstance(last, Stop) and bool(last.thing.motion)


def vocabulary() -> tuple[str, ...]:
    """List all words in lower case, sorted."""
    phrases = [*_KINDS, *_SHAPES, *DOOR_WORDS, *_MOTION_WORDS, *COLOURS, *JOINTS, *LAST_JOINTS]
    phrases += ["the", "turn left right around"]
    return tuple(sorted({word.strip(",.").lower() for phrase in phrases for word in phrase.split()} - {""}))
