"""Damage to bytes and to plain values, each drawn from a random stream."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

_TEXTS = (
    '"', "{", "}", "[", "]", ",", ":", "-1", "null", "true", "1e999", "NaN", "\0", "\n", "\t", ";", "'", "#", "&a ",
    "*a", "!!", "? ", "- ", "|", "0x", "1:1", "\ufeff", "\x1b[2J", "\ud800", "\\u0000", "\\ud800", "\r", " ",
    "9" * 20, "9" * 5000, "[" * 3000, '{"a":' * 3000, "../" * 50,
)  # fmt: skip
PIECES = (*(text.encode("utf-8", "surrogatepass") for text in _TEXTS),
          b"\xff", b"\x1f\x8b", b"\x80\x04", b"PK\x03\x04", b"\x93NUMPY")  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**10, -(10**10), 0.5, -0.0, 1e308, 5e-324, "", "\0", "nan",
    " ", "x" * 3000, "\x1b[31m", "é\u202e", "7", "../..", "/dev/zero", [], {}, [[]], [None], {"": None}, [1, "a", None],
    [0] * 3000, {"a": {"b": {"c": []}}},
)  # fmt: skip
EDGE = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A copy with some bytes put in, taken out, moved, changed or cut off."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        # Half of the time where headers are.
        at, kind = rng.randrange((len(made) if rng.random() < 0.5 else min(len(made), 300)) + 1), rng.random()
        if kind < 0.4:
            made[at : at + rng.choice((0, 1, 1, 3))] = rng.choice(PIECES)
        elif kind < 0.55:
            del made[at : at + rng.choice((1, 2, 10, 200))]
        elif kind < 0.7 and made:
            start = rng.randrange(len(made))
            made[at:at] = made[start : start + rng.randrange(1, 30)]
        elif kind < 0.85:
            form = rng.choice(("<I", ">I", "<H", "B", "<Q"))
            value = rng.choice(EDGE) % (1 << 8 * struct.calcsize(form))
            made[at : at + struct.calcsize(form)] = struct.pack(form, value)
        elif kind < 0.95 and made:
            made[min(at, len(made) - 1)] ^= 1 << rng.randrange(8)
        else:
            made = made[:at]
    return bytes(made)


def changed(tree: Any, rng: random.Random) -> Any:
    """A copy of plain values with some of them exchanged, renamed, taken out or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = [(None, None), *_places(tree)] if rng.random() < 0.02 else list(_places(tree))
        if not places:
            break
        holder, key = rng.choice(places)
        if holder is None:
            return rng.choice(VALUES)
        kind = rng.random()
        if kind < 0.7:
            alike = [value for value in VALUES if type(value) is type(holder[key])] if kind < 0.4 else VALUES
            holder[key] = copy.deepcopy(rng.choice(alike or VALUES))
        elif kind < 0.8:
            del holder[key]
        elif kind < 0.9:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place]) if other is not None else []
        elif isinstance(holder, dict):
            holder[rng.choice(("", "label", "x\x1b", "9", "path", "__class__"))] = holder.pop(key)
        else:
            holder += holder[:3]
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (dict or list, key or index) inside of a tree."""
    found: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo:
        holder = todo.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        found += [(holder, key) for key in keys]
        todo += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return found


def json_text(tree: Any) -> str:
    """JSON, at times with what Python alone writes (NaN), and texts as they are."""
    return json.dumps(tree, ensure_ascii=False, default=str).encode("utf-8", "replace").decode()
