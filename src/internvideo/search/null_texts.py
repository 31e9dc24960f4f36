"""Generic sentences used as queries without a match, to calibrate the threshold of false matches."""

from __future__ import annotations

import random

NUM_TEXTS = 500
SUBJECTS = (
    "a woman", "a man", "two children", "a dog", "a black cat", "a group of tourists", "an old farmer", "a chef",
    "a brass band", "three surgeons", "a referee", "a bride", "a white horse", "a flock of geese", "a robot arm",
    "a welder", "a baby", "a police officer", "a penguin", "an elephant", "a cyclist", "a street musician", "a judge",
    "a school class", "a diver", "a potter", "a goalkeeper", "a drone", "a taxi driver", "a beekeeper",
)  # fmt: skip
ACTIONS = (
    "pours coffee into a cup", "climbs a ladder", "plays the violin", "opens a red umbrella", "throws a ball",
    "repairs a bicycle", "cuts vegetables", "falls into the water", "reads a newspaper", "dances in a circle",
    "lights a candle", "paints a wall blue", "carries a heavy box", "waves at the camera", "runs away", "eats a cake",
    "ties a knot", "jumps over a fence", "types on a keyboard", "sweeps the floor", "takes off a hat", "claps slowly",
    "rides a scooter", "plants a tree", "shakes hands", "folds a letter", "crosses the road", "builds a snowman",
    "washes a car", "sings into a microphone", "breaks a plate", "counts money", "looks through a telescope",
    "drinks from a bottle", "lies down and sleeps", "blows out a flame", "kicks a door open", "points at a map",
    "hangs up laundry", "peels an orange",
)  # fmt: skip
PLACES = (
    "in a kitchen", "on a beach", "in heavy rain", "at a railway station", "in front of a castle", "on a stage",
    "in a swimming pool", "at night", "in a supermarket", "on a mountain", "in a classroom", "under a bridge",
    "in a hospital", "on a boat", "in a desert", "in an office", "at a wedding", "in a snowy forest", "in a stadium",
    "on a rooftop", "in a garage", "at the airport", "in a library", "in a greenhouse", "beside a fire", "in a tunnel",
    "in a courtroom", "on a farm", "in a theater", "through a window",
)  # fmt: skip


def generic_texts(count: int = NUM_TEXTS) -> list[str]:
    """Return different sentences about people, animals, actions and places, always the same ones."""
    draw = random.Random(2026)
    made: dict[str, None] = {}
    while len(made) < count:
        made[" ".join((draw.choice(SUBJECTS), draw.choice(ACTIONS), draw.choice(PLACES)))] = None
    return list(made)
