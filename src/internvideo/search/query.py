"""Queries as vectors: texts with templates, pictures, clips, and sums of these.

Shapes: D dimension of the vectors, P templates.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from internvideo.data.preprocessing import Span, VideoSource
from internvideo.errors import RecipeError, VideoError
from internvideo.features.remote_files import local_copy
from internvideo.features.windows import open_long_video
from internvideo.inference.video_model import VideoModel

MAX_TEXT = 1000
TEMPLATES = ("{}",)
"""By default a text is encoded as it is."""


@dataclass(frozen=True)
class Example:
    """A picture or video file to search for, or the window around a time of it.

    Attributes:
        path: of the file. time: seconds; None for the whole file.
    """

    path: str
    time: float | None = None


@dataclass(frozen=True)
class Query:
    """What to search for; the vectors of its parts are added.

    Attributes:
        text: a description, "" for none. examples: pictures and clips.
        templates: sentences with one "{}", the place of the text; the mean of their vectors counts.

    Raises:
        RecipeError: no part at all, a text that is too long, or a template without a place for it.
    """

    text: str = ""
    examples: tuple[Example, ...] = ()
    templates: tuple[str, ...] = TEMPLATES

    def __post_init__(self) -> None:
        if not self.text.strip() and not self.examples:
            raise RecipeError("query", "empty", "a text, a picture or a clip")
        if len(self.text) > MAX_TEXT:
            raise RecipeError("query", f"{len(self.text)} characters", f"at most {MAX_TEXT}")
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise RecipeError("templates", str(list(self.templates))[:80], "sentences with one {}")

    @property
    def kind(self) -> str:
        """The kind of null distribution that its scores are compared with: "text", "clip", or "sum" for none."""
        return "clip" if not self.text.strip() else "sum" if self.examples else "text"


def parse_example(text: str) -> Example:
    """Read FILE or FILE@TIME; the time is seconds (12.5), minutes (1:02.5) or hours (1:00:02).

    Raises:
        RecipeError: a time that cannot be read.
    """
    path, mark, time = text.rpartition("@")
    if not mark or os.path.exists(text):
        return Example(text)
    if not re.fullmatch(r"(\d{1,6}:){0,2}\d{1,9}(\.\d{1,9})?", time):
        if not os.path.exists(path):  # an @ in the name of a file that is not there: told when it is opened
            return Example(text)
        raise RecipeError("like", f"'{time[:30]}' after @", "seconds (12.5), minutes (1:02.5) or hours (1:00:02)")
    seconds = 0.0
    for part in time.split(":"):
        seconds = seconds * 60 + float(part)
    return Example(path, seconds)


def text_vectors(model: VideoModel, queries: Sequence[Query]) -> NDArray[np.float32]:
    """Encode the texts of queries at once (Q, D), L2-normalized: the means over their templates.

    Raises:
        RecipeError: the model has no text tower.
    """
    lines = [template.replace("{}", query.text) for query in queries for template in query.templates]
    bounds = np.cumsum([0, *(len(query.templates) for query in queries)])
    vectors = model.encode_text(lines).numpy()
    means = [unit(vectors[low:high].mean(axis=0)) for low, high in pairwise(bounds)]
    return np.array(means, np.float32).reshape(len(queries), -1)


def example_vector(model: VideoModel, example: Example, window_seconds: float) -> NDArray[np.float32]:
    """Encode a picture or clip (D,), L2-normalized; at a time, the window around it. Raises VideoError."""
    with local_copy(example.path) as path:
        source: VideoSource = path
        if example.time is not None:
            with open_long_video(path) as video:
                duration = video.info.duration
            if not 0 <= example.time <= duration:
                raise VideoError(example.path, f"no frame at {example.time:g} s", f"0 to {duration:.3f} s")
            start = max(0.0, min(example.time - window_seconds / 2, duration - window_seconds))
            source = Span(path, start, min(start + window_seconds, duration))
        return np.asarray(model.encode_video(source).numpy()[0], np.float32)


def query_vector(model: VideoModel, query: Query, window_seconds: float) -> NDArray[np.float32]:
    """Encode a query (D,), L2-normalized. Raises as `text_vectors` and `example_vector`."""
    parts = [text_vectors(model, [query])[0]] if query.text.strip() else []
    parts += [example_vector(model, example, window_seconds) for example in query.examples]
    return unit(np.sum(parts, axis=0))


def unit(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    """L2-normalize a vector; one of zeros stays."""
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)
