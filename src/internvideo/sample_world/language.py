"""Generate the texts of the sample world: captions, questions with answers, and multiple choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from internvideo.sample_world.actions import ACTIONS, HELD_OUT_CLASSES, REVERSE_OF
from internvideo.sample_world.backgrounds import PLACES
from internvideo.sample_world.scene import COLORS, SHAPES, Scene

VERBS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "moving left to right": (
            "moves from left to right", "slides to the right", "travels from the left to the right",
        ),
        "moving right to left": (
            "moves from right to left", "slides to the left", "travels from the right to the left",
        ),
        "moving up": ("moves up", "rises", "floats upwards"),
        "moving down": ("moves down", "sinks", "floats downwards"),
        "growing": ("grows", "becomes larger", "comes closer"),
        "shrinking": ("shrinks", "becomes smaller", "goes away from us"),
        "turning clockwise": ("turns clockwise", "rotates clockwise", "spins to the right like a clock"),
        "turning anticlockwise": (
            "turns anticlockwise", "rotates anticlockwise", "spins to the left against the clock",
        ),
        "opening": ("opens", "opens its mouth", "gapes wider and wider"),
        "closing": ("closes", "shuts its mouth", "gapes less and less"),
        "appearing": ("appears", "fades in", "becomes visible"),
        "vanishing": ("vanishes", "fades out", "becomes invisible"),
        "filling up": ("fills up", "is filled with paint", "becomes full"),
        "draining": ("drains", "is emptied of paint", "becomes empty"),
        "splitting in two": ("splits in two", "breaks into two halves", "falls apart into two pieces"),
        "merging into one": ("merges into one", "is put together from two halves", "comes together from two pieces"),
        "hitting the ball": ("hits the ball", "runs into the ball and kicks it away", "strikes the white ball"),
        "being hit by the ball": ("is hit by the ball", "is pushed away by the ball", "gets struck by the white ball"),
        "gaining colour": ("gains colour", "turns from grey to its colour", "becomes colourful"),
        "losing colour": ("loses colour", "turns from its colour to grey", "becomes grey"),
        "circling clockwise": ("circles clockwise", "goes round clockwise", "runs round a ring clockwise"),
        "circling anticlockwise": (
            "circles anticlockwise", "goes round anticlockwise", "runs round a ring anticlockwise",
        ),
        "bouncing once": ("bounces once", "drops and bounces one time", "hops up from the floor once"),
        "bouncing twice": ("bounces twice", "drops and bounces two times", "hops up from the floor twice"),
        "shaking": ("shakes", "trembles from side to side", "jitters"),
        "blinking": ("blinks", "flashes on and off", "flickers"),
        "standing still": ("stands still", "does not move", "stays where it is"),
        "zigzagging": ("zigzags", "runs in a zigzag", "goes up and down along its way"),
        "moving up and to the right": (
            "moves up and to the right", "rises to the right", "floats upwards and to the right",
        ),
        "moving down and to the left": (
            "moves down and to the left", "sinks to the left", "floats downwards and to the left",
        ),
        "growing and turning clockwise": (
            "grows and turns clockwise", "becomes larger and rotates clockwise", "comes closer and turns clockwise",
        ),
        "shrinking and turning anticlockwise": (
            "shrinks and turns anticlockwise", "becomes smaller and rotates anticlockwise",
            "goes away from us and turns anticlockwise",
        ),
        "opening and moving up": ("opens and moves up", "rises and opens its mouth", "opens and floats upwards"),
        "closing and moving down": (
            "closes and moves down", "sinks and shuts its mouth", "closes and floats downwards",
        ),
        "gaining colour and moving left to right": (
            "gains colour and moves from left to right", "becomes colourful and slides to the right",
            "turns from grey to its colour and travels from the left to the right",
        ),
        "losing colour and moving right to left": (
            "loses colour and moves from right to left", "becomes grey and slides to the left",
            "turns from its colour to grey and travels from the right to the left",
        ),
        "stretching": ("stretches", "becomes tall and thin", "is pulled upwards"),
        "flattening": ("flattens", "becomes flat and wide", "is pressed down"),
        "swinging": ("swings", "swings to and fro", "turns to and fro"),
        "pulsing": ("pulses", "grows and shrinks in turn", "beats like a heart"),
    }
)  # fmt: skip
"""Action -> three phrases in the third person; the first is an inflected class name."""

PLACE_PHRASES: Mapping[str, str] = MappingProxyType(
    {
        "meadow": "in the meadow",
        "desert": "in the desert",
        "sea": "on the sea",
        "night sky": "in the night sky",
        "brick wall": "in front of the brick wall",
        "snow": "in the snow",
        "wooden floor": "on the wooden floor",
        "tiled floor": "on the tiled floor",
    }
)


@dataclass(frozen=True)
class Facts:
    """The annotations of a clip as words; they are its attributes in the manifest."""

    action: str
    shape: str
    colour: str
    texture: str
    size: str
    place: str
    speed: str


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _class_name_caption(facts: Facts) -> str:
    """Return the sentence that contains the class name verbatim, like a zero-shot prompt."""
    return f"{_article(f'{facts.colour} {facts.shape}')} {facts.action} {PLACE_PHRASES[facts.place]}"


def captions(facts: Facts, rng: np.random.Generator) -> tuple[str, ...]:
    """Generate six distinct paraphrases with shape, color, action and place; some add texture, size or speed.

    The first one contains the class name verbatim, as the options of multiple choice and zero-shot prompts do.
    """
    verbs = [VERBS[facts.action][int(k)] for k in rng.permutation(len(VERBS[facts.action]))]
    short = f"{facts.colour} {facts.shape}"
    textured, sized = f"{facts.texture} {short}", f"{facts.size} {short}"
    where = PLACE_PHRASES[facts.place]
    speed = f" {facts.speed}" if facts.action != "standing still" else ""
    return (
        _class_name_caption(facts),
        f"{_article(textured)} {verbs[0]} {where}",
        f"{where}, {_article(sized)} {verbs[1 % len(verbs)]}{speed}",
        f"a video of {_article(f'{facts.size} {textured}')} that {verbs[2 % len(verbs)]} {where}",
        f"the {facts.shape} is {facts.colour}; {where} it {verbs[0]}{speed}",
        f"we see {_article(textured)} {facts.action}{speed}, {where}",
    )


TEMPLATES = ("{}", "something {}", "a video of something {}", "we see something {}", "an object is {}")
"""Zero-shot prompts; all their words occur in the training captions."""


def training_captions(facts: Facts, rng: np.random.Generator) -> tuple[str, ...]:
    """Generate six captions: three full ones, two of the action only and one of the object only.

    A full caption can be matched by place and color, one of the action only cannot: so the model must learn actions.
    """
    plain, *others = captions(facts, rng)
    selected = sorted(rng.permutation(len(others))[:2].tolist())
    return (plain, *(others[index] for index in selected), *partial_captions(facts, rng))


def partial_captions(facts: Facts, rng: np.random.Generator) -> tuple[str, str, str]:
    """Generate two captions of the action only and one of the object only."""
    verb = VERBS[facts.action][int(rng.integers(len(VERBS[facts.action])))]
    prompt = TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(facts.action)
    speed = f" {facts.speed}" if facts.action != "standing still" else ""
    looks = (f"{facts.colour} {facts.shape}", f"{facts.texture} {facts.colour} {facts.shape}")
    thing = _article(looks[int(rng.integers(2))])
    return prompt, f"something {verb}{speed}", f"a video of {thing}" if rng.random() < 0.5 else f"we see {thing}"


def picture_captions(facts: Facts, rng: np.random.Generator) -> tuple[str, str, str]:
    """Generate three captions of a picture: the shape alone, object and place, the object in detail.

    Where every caption names color and place too, the shape pays hardly anything and is not learned.
    """
    short, texture = f"{facts.colour} {facts.shape}", f"{facts.texture} {facts.colour} {facts.shape}"
    detailed = texture if rng.random() < 0.5 else f"{facts.size} {texture}"
    where = PLACE_PHRASES[facts.place]
    return _article(facts.shape), f"{_article(short)} {where}", f"we see {_article(detailed)}"


def questions(facts: Facts) -> tuple[tuple[str, str, str], ...]:
    """List (question, answer, type), one for each of action, colour, shape, place, texture and size."""
    return (
        (f"What is the {facts.shape} doing?", facts.action, "action"),
        (f"What colour is the {facts.shape}?", facts.colour, "colour"),
        (f"Which shape is {facts.action}?", facts.shape, "shape"),
        (f"Where is the {facts.colour} {facts.shape}?", facts.place, "place"),
        (f"How does the surface of the {facts.shape} look?", facts.texture, "texture"),
        (f"Is the {facts.colour} {facts.shape} small or large?", facts.size, "size"),
    )


def _sample_other(words: tuple[str, ...], than: tuple[str, ...], rng: np.random.Generator) -> str:
    candidates = [word for word in words if word not in than]
    return candidates[int(rng.integers(len(candidates)))]


OPTION_KINDS = ("right", "reversed action", "other action", "other shape", "other colour and place")
"""Kinds of the options of a multiple choice: the correct one and the distractors."""


def choices(
    facts: Facts, rng: np.random.Generator, held_out: Callable[[str, str, str], bool], *, test: bool
) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    """Generate a five-way choice: options in random order, index of the correct one, kind of each (OPTION_KINDS).

    Distractors: the reversed action (another one if it has no reverse), another action, another shape, another color
    and place. In tests, half of the distractors have a held-out combination of shape, color and place, so that whether
    a combination was trained gives no hint; in training all have trained combinations.

    Args:
        facts: annotations of the clip. rng: random generator. held_out: whether (shape, color, place) is held out.
        test: whether the clip is not a training clip.
    """
    classes = HELD_OUT_CLASSES if facts.action in HELD_OUT_CLASSES else ACTIONS
    reverse = REVERSE_OF.get(facts.action) or _sample_other(classes, (facts.action,), rng)
    other = _sample_other(classes, (facts.action, reverse), rng)
    looks = [(shape, facts.colour, facts.place) for shape in SHAPES if shape != facts.shape]
    scenes = [(facts.shape, c, p) for c in COLORS for p in PLACES if c != facts.colour and p != facts.place]
    wrong = [replace(facts, action=reverse), replace(facts, action=other)]
    # Only 6 of 8 held-out clips have another held-out shape, so one is sampled with probability 2/3, which gives 1/2.
    for options, probability in ((looks, 2 / 3), (scenes, 1 / 2)):
        shape, colour, place = _sample_balanced(options, probability if test else 0.0, rng, held_out)
        wrong.append(replace(facts, shape=shape, colour=colour, place=place))
    order = rng.permutation(5)
    sentences = [_class_name_caption(option) for option in (facts, *wrong)]
    return (
        tuple(sentences[int(k)] for k in order),
        int(np.flatnonzero(order == 0)[0]),
        tuple(OPTION_KINDS[int(k)] for k in order),
    )


def _sample_balanced(
    options: Sequence[tuple[str, str, str]],
    probability: float,
    rng: np.random.Generator,
    held_out: Callable[[str, str, str], bool],
) -> tuple[str, str, str]:
    """Sample an option: with the given probability a held-out one, else a trained one; any if there is none."""
    want_held_out = bool(rng.random() < probability)
    candidates = [option for option in options if held_out(*option) == want_held_out] or list(options)
    return candidates[int(rng.integers(len(candidates)))]


def long_captions(scene: Scene) -> tuple[str, ...]:
    """Generate one caption per actor of an untrimmed video, with its actions in order."""
    sentences = []
    for actor in scene.actors:
        phrases = [" and ".join(VERBS[name][0] for name in part.actions) for part in actor.parts]
        noun = _article(f"{actor.look.colour} {actor.look.shape}")
        sentences.append(f"{noun} {PLACE_PHRASES[scene.place]} {', then '.join(phrases) or 'does not move'}")
    return tuple(sentences)
