"""Filter windows by an expression such as `folder ~ "holiday" and duration > 60 and label = "waving"`.

The expression is parsed here, by a grammar of its own, into comparisons of columns with constants; nothing of it is
executed. Columns: path, name, folder (text); label (the classes that classifiers gave the window); action, caption (of
the annotations that share at least half of the window or lie in it by half); duration, fps, width, height, start, end
(numbers; seconds); modified (a date, "2026-11-30" or "2026-11-30 08:15").
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from internvideo.errors import RecipeError
from internvideo.search.records import AnnotationKind
from internvideo.search.store import Snapshot, Store

MAX_LENGTH = 2000
MAX_DEPTH = 50
NUMBERS = ("duration", "fps", "width", "height", "start", "end")
TEXTS = ("path", "name", "folder", "label", "action", "caption")
COLUMNS = (*TEXTS, *NUMBERS, "modified")
ORDER = ("=", "!=", "<", "<=", ">", ">=")
POSITIVE = {"!=": "=", "!~": "~"}
TEXT_OPERATORS = ("=", "!=", "~", "!~")
_TOKENS = re.compile(
    r"\s*(?:(?P<number>-?\d+(?:\.\d+)?(?![\w.]))|(?P<text>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')"
    r"|(?P<operator><=|>=|!=|!~|==|=|<|>|~|\(|\)|,)|(?P<word>[A-Za-z_]\w*))"
)

Mask = NDArray[np.bool_]
Constant = str | float
Node = Callable[["_Table"], Mask]


class Comparison(NamedTuple):
    """A column, an operator, and the constants that it is compared with (more than one after `in`)."""

    column: str
    operator: str
    constants: tuple[Constant, ...]


class _Token(NamedTuple):
    kind: str
    text: str


def fail(found: str, expected: str = "") -> RecipeError:
    """Return the error of an expression that cannot be read."""
    return RecipeError("where", found, expected, 'for example: duration > 60 and name ~ "beach"')


def matching_rows(expression: str, store: Store, snapshot: Snapshot) -> Mask:
    """Return (N,) which rows of a snapshot an expression selects.

    Raises:
        RecipeError: an expression that cannot be read, or labels where no classifier has been applied.
    """
    node = parse(expression)
    return node(_Table(store, snapshot)) & (snapshot.video_index >= 0)


def parse(expression: str) -> Node:
    """Parse an expression to a function of a table. Raises RecipeError."""
    if len(expression) > MAX_LENGTH:
        raise fail(f"{len(expression)} characters", f"at most {MAX_LENGTH}")
    parser = _Parser(_tokens(expression))
    node = parser.alternatives(0)
    if parser.position < len(parser.tokens):
        raise fail(f"'{parser.tokens[parser.position].text}' after the end", "and, or")
    return node


def _tokens(expression: str) -> list[_Token]:
    made, position = [], 0
    text = expression.rstrip()
    while position < len(text):
        found = _TOKENS.match(text, position)
        if found is None:
            raise fail(f"'{text[position:].strip()[:20]}'", "columns, numbers, quoted texts, operators")
        kind = str(found.lastgroup)
        made.append(_Token(kind, found.group(kind)))
        position = found.end()
    return made


class _Parser:
    """Recursive descent: alternatives (or) of terms (and) of factors (not, parentheses, comparisons)."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens, self.position = tokens, 0

    def _next(self) -> _Token:
        if self.position >= len(self.tokens):
            raise fail("the expression ends too early" if self.tokens else "empty", "COLUMN OPERATOR VALUE")
        self.position += 1
        return self.tokens[self.position - 1]

    def _skip(self, word: str) -> bool:
        """Skip the next token if it is this word or sign."""
        here = self.tokens[self.position] if self.position < len(self.tokens) else _Token("", "")
        found = here.kind in ("word", "operator") and here.text.lower() == word
        self.position += found
        return found

    def alternatives(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise fail(f"nested more than {MAX_DEPTH} deep")
        node = self._terms(depth)
        while self._skip("or"):
            node = _either(node, self._terms(depth))
        return node

    def _terms(self, depth: int) -> Node:
        node = self._factor(depth)
        while self._skip("and"):
            node = _both(node, self._factor(depth))
        return node

    def _factor(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise fail(f"nested more than {MAX_DEPTH} deep")
        if self._skip("not"):
            inner = self._factor(depth + 1)
            return lambda table: ~inner(table)
        if self._skip("("):
            node = self.alternatives(depth + 1)
            if not self._skip(")"):
                raise fail("a parenthesis that is not closed", ")")
            return node
        return self._comparison()

    def _comparison(self) -> Node:
        column = self._next()
        name = column.text.lower()
        if column.kind != "word" or name not in COLUMNS:
            raise fail(f"'{column.text[:40]}'", "one of the columns " + ", ".join(COLUMNS))
        if self._skip("in"):
            operator, constants = "=", self._list()
        else:
            operator = self._next().text.replace("==", "=")
            constants = [self._constant()]
        allowed = TEXT_OPERATORS if name in TEXTS else ORDER
        if operator not in allowed:
            raise fail(f"{name} {operator[:20]}", " ".join(allowed))
        for constant in constants:
            if isinstance(constant, str) != (name not in NUMBERS):
                raise fail(f"{name} {operator} {constant!r}", "a number" if name in NUMBERS else "a quoted text")
        made = [_seconds(str(constant)) for constant in constants] if name == "modified" else constants
        return _compare(Comparison(name, operator, tuple(made)))

    def _list(self) -> list[Constant]:
        if not self._skip("("):
            raise fail("'in' without a list", 'name in ("a", "b")')
        made = [self._constant()]
        while self._skip(","):
            made.append(self._constant())
        if not self._skip(")"):
            raise fail("a list that is not closed", ")")
        return made

    def _constant(self) -> Constant:
        token = self._next()
        if token.kind == "number":
            return float(token.text)
        if token.kind == "text":
            return re.sub(r"\\(.)", r"\1", token.text[1:-1])
        raise fail(f"'{token.text[:40]}' where a value should be", "a number or a quoted text")


def _both(one: Node, other: Node) -> Node:
    return lambda table: one(table) & other(table)


def _either(one: Node, other: Node) -> Node:
    return lambda table: one(table) | other(table)


def _seconds(text: str) -> float:
    """Return a date as seconds since 1970, local time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise fail(f"modified: '{text[:30]}'", 'a date such as "2026-11-30"') from error


def _compare(comparison: Comparison) -> Node:
    name, operator, constants = comparison
    wanted = [str(constant) for constant in constants]
    if name == "label":
        return lambda table: table.labeled(operator, wanted)
    if name in ("action", "caption"):
        kind: AnnotationKind = "action" if name == "action" else "caption"
        return lambda table: table.annotated(kind, operator, wanted)
    if name in TEXTS:
        return lambda table: table.of_videos(np.array([_fits(text, operator, wanted) for text in table.texts(name)]))
    numbers = np.array(constants, np.float64)
    apply = {"=": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal, ">": np.greater}.get(
        operator, np.greater_equal
    )
    return lambda table: np.asarray(apply(table.numbers(name)[:, None], numbers).any(axis=1), bool)


def _fits(text: str, operator: str, wanted: list[str]) -> bool:
    if operator in ("~", "!~"):
        return any(part.lower() in text.lower() for part in wanted) == (operator == "~")
    return (text in wanted) == (operator == "=")


class _Table:
    """The columns of a snapshot, one value per row."""

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self.store, self.snapshot = store, snapshot

    def texts(self, name: str) -> list[str]:
        """Return a text of each video."""
        paths = [video.path for video in self.snapshot.videos]
        if name == "path":
            return paths
        return [os.path.basename(path) if name == "name" else os.path.dirname(path) for path in paths]

    def of_videos(self, values: NDArray[Any]) -> Any:
        """Spread a value per video over the rows; removed rows get that of the last one."""
        index = self.snapshot.video_index
        return values[index] if len(values) else np.zeros(len(index), values.dtype if values.size else bool)

    def numbers(self, name: str) -> NDArray[np.float64]:
        if name in ("start", "end"):
            return self.snapshot.windows[:, 0 if name == "start" else 1]
        values = np.array([getattr(video, name) for video in self.snapshot.videos], np.float64)
        return np.asarray(self.of_videos(values), np.float64)

    def labeled(self, operator: str, wanted: list[str]) -> Mask:
        """Return the rows to which a classifier gave one of these labels."""
        classifiers = self.store.records.classifiers()
        if not classifiers:
            raise RecipeError("where", "label: no classifier has been applied to this collection", "",
                              "index with --classifier FILE of `internvideo fit`")  # fmt: skip
        found = np.zeros(len(self.snapshot.video_index), bool)
        positive = POSITIVE.get(operator, operator)
        for name, (_, classes) in classifiers.items():
            chosen = np.array([_fits(label, positive, wanted) for label in classes])
            labels = self.store.records.labels(name)
            for index, video in enumerate(self.snapshot.videos):
                if video.id in labels:
                    found[self.snapshot.rows(index)] |= chosen[labels[video.id][0]]
        return found if positive == operator else ~found

    def annotated(self, kind: AnnotationKind, operator: str, wanted: list[str]) -> Mask:
        """Return the rows that an annotation of this kind and one of these labels is about."""
        annotations = self.store.records.annotations(kind)
        if not annotations:
            raise RecipeError("where", f"{kind}: this collection has no annotation of that kind", "",
                              "index with --annotations FILE")  # fmt: skip
        positive = POSITIVE.get(operator, operator)
        found = np.zeros(len(self.snapshot.video_index), bool)
        places = {video.id: index for index, video in enumerate(self.snapshot.videos)}
        for video, one in annotations:
            if video in places and _fits(one.label, positive, wanted):
                rows = self.snapshot.rows(places[video])
                start, end = self.snapshot.windows[rows, 0], self.snapshot.windows[rows, 1]
                common = np.minimum(end, one.end) - np.maximum(start, one.start)
                found[rows] |= common >= 0.5 * np.minimum(end - start, one.end - one.start)
        return found if positive == operator else ~found
