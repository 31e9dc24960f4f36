"""Define `Sample`, one row of a manifest, and its fields, with their validation independent of the file format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from internvideo.errors import ManifestError


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a "did you mean" hint with the known word closest to `word`; "" if none is close."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


MAX_CLASSES = 100_000
"""Maximum number of classes, so that a mistyped label of ten billion does not allocate as many class names."""


class ClassNames:
    """Map class names to provisional indices while rows are read, and to final indices at the end (`finalize`).

    A number is an index, a text is a name; "007" and "7" are different names. In formats where every label is text
    (csv and list files), texts like "7" are indices, unless they are among `classes`.

    Args:
        classes: the names in order, if known; None to collect and sort the names of the rows.
        untyped: whether a text may be an index.
    """

    def __init__(self, classes: Sequence[str] | None, *, untyped: bool = False) -> None:
        self.fixed, self.untyped = classes is not None, untyped
        self.names = {name: index for index, name in enumerate(classes or ())}
        if classes is not None and len(self.names) != len(classes):
            raise ValueError("duplicate class name")
        self.highest = -1  # largest index given as a number
        self._numeric_texts: dict[str, bool] = {}  # texts that look like numbers -> whether a given class is called so

    def index(self, value: object) -> int:
        """Return the index of a class given by index or name. Raises ValueError with the valid ones."""
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("a class index or a class name")
        if isinstance(value, str) and not (self.untyped and _is_number(value)):
            return self._index_of_name(value)
        if isinstance(value, str):
            self._numeric_texts[value] = value in self.names
            if self._numeric_texts[value] or (not self.fixed and not value.startswith("-")):
                return self._index_of_name(value)
        index_ = int(value)
        num_allowed = len(self.names) if self.fixed else MAX_CLASSES
        if not 0 <= index_ < num_allowed:
            limit = f"0 to {num_allowed - 1}" if self.fixed or index_ >= 0 else "0 or more"
            raise ValueError(f"a class index {limit} (leave the label out where there is none)")
        self.highest = max(self.highest, index_)
        return index_

    def _index_of_name(self, name: str) -> int:
        if name not in self.names:
            if self.fixed:
                raise ValueError(f"one of the {len(self.names)} class names{did_you_mean(name, self.names)}")
            if not name.strip():
                raise ValueError("a class name that is not empty")
            self.names[name] = len(self.names)
        return self.names[name]

    def finalize(self, source: Path) -> tuple[tuple[str, ...], dict[int, int]]:
        """Return the class names in order, and {provisional index: final index} (empty if unchanged).

        Raises ManifestError: names in some rows and numbers in others, or numbers that could be either.
        """
        if self.fixed:
            self._check_ambiguity(source)
            return tuple(self.names), {}
        if not self.names or (self.untyped and all(_is_number(name) for name in self.names)):
            highest = max([self.highest, *(int(name) for name in self.names)])
            if highest >= MAX_CLASSES:
                raise ManifestError(source, f"label {highest}", f"0 to {MAX_CLASSES - 1}", "or names of classes")
            return tuple(str(index) for index in range(highest + 1)), {
                provisional: int(name) for name, provisional in self.names.items()
            }
        if self.highest >= 0:
            found = f"label is the name '{next(iter(self.names))}' in some rows and the number {self.highest} in others"
            hint = "write names everywhere, or numbers and a classes.txt beside the manifest"
            raise ManifestError(source, found, "names or numbers", hint)
        ordered = sorted(self.names)
        return tuple(ordered), {self.names[name]: index for index, name in enumerate(ordered)}

    def _check_ambiguity(self, source: Path) -> None:
        """Raise ManifestError for texts like "1" that are the name of one given class and the index of another."""
        ambiguous = [name for name, known in self._numeric_texts.items() if known and self.names[name] != int(name)]
        if ambiguous and all(int(name) < len(self.names) for name in self._numeric_texts):
            found = f"label {ambiguous[0]} may be the class called so or class number {ambiguous[0]}, '"
            found += f"{list(self.names)[int(ambiguous[0])]}'"
            raise ManifestError(source, found, "", "write JSONL: a number is an index there, a text a name")


def _is_number(text: str) -> bool:
    """Return whether a text is an integer without leading zeros."""
    return text.isascii() and text.removeprefix("-").isdecimal() and str(int(text)) == text


def _class_index(value: object, info: ValidationInfo) -> object:
    if isinstance(info.context, ClassNames):
        return info.context.index(value)
    if isinstance(value, bool | str):
        raise ValueError("a class index")
    return value


def _require_text(text: str) -> str:
    if not text.strip():
        raise ValueError("a text that is not blank")
    return text


ClassIndex = Annotated[int, BeforeValidator(_class_index), Field(ge=0, lt=MAX_CLASSES)]


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


_Number = BeforeValidator(_refuse_bool)  # pydantic reads true as 1
Second = Annotated[float, _Number, Field(ge=0.0)]
Fraction = Annotated[float, _Number, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(min_length=1)]
Sentence = Annotated[str, AfterValidator(_require_text)]  # a text encoder can do nothing with a blank one


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class Segment(_Record):
    """An action of class `label` from `start` to `end` (seconds in the video)."""

    start: Second
    end: Second
    label: ClassIndex

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.end <= self.start:
            raise ValueError("start before end")
        return self


class Box(_Record):
    """An actor at `time` (seconds): corners as fractions of width and height, and all its action classes."""

    time: Second
    x1: Fraction
    y1: Fraction
    x2: Fraction
    y2: Fraction
    labels: tuple[ClassIndex, ...] = ()
    actor: Annotated[int, _Number] = 0

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.x2 <= self.x1 or self.y2 <= self.y1:
            raise ValueError("x1 < x2 and y1 < y2")
        return self


class QA(_Record):
    """A question about the clip and its answer; `type` is the annotated question type, if any."""

    question: Sentence
    answer: Sentence
    type: str | None = None


class Choice(_Record):
    """Candidate sentences; `answer` is the 0-based index of the correct one.

    `kinds` may name the error type of each option; evaluation then reports the accuracy per kind.
    """

    options: tuple[Sentence, ...] = Field(min_length=2)
    answer: Annotated[int, _Number, Field(ge=0)]
    kinds: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.answer >= len(self.options):
            raise ValueError(f"an answer from 0 to {len(self.options) - 1}")
        if self.kinds and len(self.kinds) != len(self.options):
            raise ValueError(f"one kind for each of the {len(self.options)} options, or none")
        return self


class Sample(_Record):
    """One row of a manifest: a video, or a span of it, with its annotations.

    Attributes:
        id: unique name in the manifest.
        path: video file or folder of frames, as written; relative paths start at the folder of the manifest.
        span: (start, end) in seconds from the start of the video; None for the whole video.
        label: class index; None where unknown.
        captions: sentences that describe the clip.
        segments: actions with their times. boxes: actors with their actions. Times are from the start of the video.
        qa: questions with answers; choices: a multiple choice.
        group: clips of one group (scene, signer, source video) must not be divided between splits.
        split: "train", "test", ...
        fps: frames per second of a folder of frames; video files have their own.
        attributes: anything else, as text; "stride" (of mixtures) replaces the sampler's stride, and "fps" is an
            alternative to `fps`.
    """

    id: Text
    path: Text
    span: tuple[Second, Second] | None = None
    label: ClassIndex | None = None
    captions: tuple[Sentence, ...] = ()
    segments: tuple[Segment, ...] = ()
    boxes: tuple[Box, ...] = ()
    qa: tuple[QA, ...] = ()
    choices: Choice | None = None
    group: str | None = None
    split: str | None = None
    fps: Annotated[float, _Number, Field(gt=0.0, le=1000.0)] | None = None
    attributes: dict[str, str] = Field(default_factory=dict)

    @field_validator("span")
    @classmethod
    def _check_order(cls, span: tuple[float, float] | None) -> tuple[float, float] | None:
        if span is not None and span[1] <= span[0]:
            raise ValueError("start before end")
        return span

    @field_validator("path")
    @classmethod
    def _refuse_nul(cls, path: str) -> str:
        if "\0" in path:
            raise ValueError("a path without a NUL character")
        return path

    @property
    def frame_rate(self) -> float | None:
        """Frames per second of a folder of frames; None if the row has none, nan if it is not a number."""
        if self.fps is not None or "fps" not in self.attributes:
            return self.fps
        try:
            return float(self.attributes["fps"])
        except ValueError:
            return math.nan

    def class_indices(self) -> Iterator[int]:
        """Yield all class indices of the row: of its label, segments and boxes."""
        if self.label is not None:
            yield self.label
        for segment in self.segments:
            yield segment.label
        for box in self.boxes:
            yield from box.labels

    def with_class_indices(self, index: Mapping[int, int]) -> Sample:
        """Return the row with every class index `i` replaced by `index[i]`."""
        label = None if self.label is None else index[self.label]
        segments = tuple(item_.model_copy(update={"label": index[item_.label]}) for item_ in self.segments)
        boxes = tuple(box.model_copy(update={"labels": tuple(map(index.get, box.labels))}) for box in self.boxes)
        return self.model_copy(update={"label": label, "segments": segments, "boxes": boxes})


def frame_size(row: Sample, where: object) -> tuple[int, int]:
    """Parse width and height from the attribute "size". Raises ManifestError."""
    parts = row.attributes["size"].split("x")
    if len(parts) != 2 or not all(item_.isdecimal() and int(item_) for item_ in parts):
        raise ManifestError(where, f"the size '{row.attributes['size']}'", "WIDTHxHEIGHT in pixels")
    return int(parts[0]), int(parts[1])
