"""Probe: a classifier of one's own on the features of a model that stays as it is; saved, loaded and asked here.

A linear probe scores one vector a video. An attentive probe first lets learned queries read the video's tokens. Its
probabilities are calibrated (one temperature). What is less familiar than a threshold is answered "unknown";
familiarity is the largest cosine with a mean of a class, because a classifier can be as sure of what it never saw.

Shapes: n videos, N tokens, D width of a feature or token, H queries, W = D or H D width of what is classified,
C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from internvideo import untrusted
from internvideo.data.preprocessing import VideoSource
from internvideo.errors import WeightsError
from internvideo.inference.video_model import VideoModel
from internvideo.metrics.classification import softmax
from internvideo.models.attention import attend
from internvideo.probing.cached_features import Kind, encode, model_hash
from internvideo.storage import read_safetensors, write_safetensors

KEY = "internvideo_classifier"
"""Under this name the file carries everything that is no tensor."""
FORMAT = 1
UNKNOWN = "unknown"
ROWS_AT_ONCE = 256

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Head:
    """Features to logits.

    Attributes:
        mean, scale: (D,) of the training features; features are standardised with them.
        weight: (C, W). bias: (C,).
        centre: (W,) mean of what is classified. directions: (C, W) from there to the mean of each class, of length 1;
            0 for a class without a training video.
        query: (H, D) of an attentive head, None for a linear one.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    centre: Tensor
    directions: Tensor
    query: Tensor | None = None

    @property
    def kind(self) -> Kind:
        """What features it reads."""
        return "video" if self.query is None else "tokens"

    def read(self, features: Tensor) -> Tensor:
        """(n, D), or (n, N, D) for an attentive head -> what is classified, (n, W)."""
        wanted = 2 if self.query is None else 3
        if features.ndim != wanted or features.shape[-1] != len(self.mean):
            raise ValueError(f"features {tuple(features.shape)}: {wanted} dimensions, the last of {len(self.mean)}")
        with torch.no_grad():
            parts = torch.split(features, ROWS_AT_ONCE)
            return torch.cat([pool(part, self.mean, self.scale, self.query) for part in parts])

    def scores(self, features: Tensor) -> tuple[Floats, Floats]:
        """Logits (n, C) and familiarity (n,) in -1..1 of features as in `read`."""
        read = self.read(features)
        logits = read @ self.weight.T + self.bias
        cosines = F.normalize(read - self.centre, dim=1) @ self.directions[self.directions.any(dim=1)].T
        return logits.double().numpy(), cosines.amax(dim=1).double().numpy()


def pool(features: Tensor, mean: Tensor, scale: Tensor, query: Tensor | None) -> Tensor:
    """What is classified: features (n, D) standardised; with queries (H, D) what these read of standardised tokens
    (n, N, D), side by side (n, H D).

    Keys and values are the tokens as they are, shared by all queries. For one query a head this is as general as
    attention with projections of its own: a key projection can be told as another query, a value projection as another
    classifier. Only what was read is standardised: the soft-max does not see what all tokens of a video share.
    """
    if query is None:
        return (features.float() - mean) / scale
    tokens = features.float().unsqueeze(1)
    asked = (query / scale).expand(len(features), 1, -1, -1)
    return ((attend(asked, tokens, tokens) - mean) / scale).flatten(1)


@dataclass(frozen=True)
class EncoderReference:
    """Whose features a probe was fitted on."""

    name: str
    weights_sha256: str
    preprocessing: Mapping[str, Any]
    source: str = ""

    @classmethod
    def of(cls, model: VideoModel) -> EncoderReference:
        """The reference of an open model."""
        source = model.metadata.get("source", "")
        return cls(model.name, model_hash(model), model.preprocessing.to_json(), source)


@dataclass(frozen=True)
class Probe:
    """A classifier on top of an encoder.

    Attributes:
        head: features to logits.
        classes: C names.
        temperature: logits are divided by it.
        threshold: what is less familiar is answered "unknown"; -1 accepts everything.
        encoder: what it was fitted on.
        facts: how it was fitted and how good it was, plain JSON values.
    """

    head: Head
    classes: tuple[str, ...]
    temperature: float
    threshold: float
    encoder: EncoderReference
    facts: Mapping[str, Any] = field(default_factory=dict)

    # ---------------------------------------------------------------------------------------------------- answers

    def check(self, model: VideoModel) -> None:
        """Make sure that this is the encoder it was fitted on.

        Raises:
            WeightsError: other weights, or clips cut in another way: its answers would mean nothing.
        """
        now = EncoderReference.of(model)
        if now.weights_sha256 != self.encoder.weights_sha256:
            raise WeightsError(
                "classifier",
                f"fitted on features of {self.encoder.name} (weights {self.encoder.weights_sha256[:12]}), "
                f"not of {now.name} ({now.weights_sha256[:12]})",
                self.encoder.source or self.encoder.name,
                "give it that model, or fit it again on this one",
            )
        was, is_now = dict(self.encoder.preprocessing), dict(now.preprocessing)
        changed = [key for key in was if was[key] != is_now.get(key)]
        if changed:
            raise WeightsError(
                "classifier",
                f"fitted on clips with {changed[0]} {was[changed[0]]}, not {is_now.get(changed[0])}",
                "",
                "open the model as it was then, or fit it again",
            )

    def features(self, model: VideoModel, clips: Tensor) -> Tensor:
        """What it reads of clips (n, 3, T, S, S): (n, D), or (n, N, D) for an attentive head."""
        return encode(model, clips, self.head.kind)

    def probabilities(self, features: Tensor | NDArray[Any]) -> Floats:
        """(n, C) calibrated, each row sums to 1: how likely each class is if it is one of them."""
        return softmax(self.head.scores(torch.as_tensor(features))[0] / self.temperature)

    def predict(self, features: Tensor | NDArray[Any]) -> list[dict[str, float]]:
        """Probabilities of all classes and "unknown", the largest first; they sum to 1.

        "unknown" is 0 for what is familiar enough. Otherwise it is more than a half, the more the stranger, and the
        classes share the rest as before: so the first entry always is the answer. That number is a degree, no
        calibrated probability.
        """
        logits, familiarity = self.head.scores(torch.as_tensor(features))
        rows = softmax(logits / self.temperature)
        return [self._answer(row, float(degree)) for row, degree in zip(rows, familiarity, strict=True)]

    def _answer(self, row: Floats, familiarity: float) -> dict[str, float]:
        strange = familiarity < self.threshold
        unknown = (1 + (self.threshold - familiarity) / (self.threshold + 1)) / 2 if strange else 0.0
        found = {self.classes[i]: float(row[i]) * (1 - unknown) for i in np.argsort(-row, kind="stable")}
        return {UNKNOWN: unknown, **found} if strange else {**found, UNKNOWN: 0.0}

    def classify(
        self, model: VideoModel, videos: VideoSource | Sequence[VideoSource], *, batch_size: int = 8
    ) -> list[dict[str, float]]:
        """Answers as `predict`, of videos as `VideoModel.encode_video` takes them.

        Raises:
            WeightsError: not the encoder it was fitted on. VideoError: a video that cannot be read.
        """
        self.check(model)
        answers: list[dict[str, float]] = []
        for clips in model.read(videos, batch_size=batch_size):
            answers.extend(self.predict(self.features(model, clips)))
        return answers

    # ------------------------------------------------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically. Raises RunError."""
        about = {
            "format": FORMAT,
            "classes": list(self.classes),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "encoder": asdict(self.encoder),
            "facts": dict(self.facts),
        }
        tensors = {name: value for name, value in vars(self.head).items() if value is not None}
        write_safetensors(path, tensors, {KEY: json.dumps(about, ensure_ascii=False)})

    @classmethod
    def load(cls, path: str | Path) -> Probe:
        """Read what `save` wrote.

        Raises:
            WeightsError: no such file, damaged, or not a classifier of `internvideo fit`.
        """
        tensors, metadata = read_safetensors(path)
        wanted = "a classifier written by `internvideo fit`"
        if KEY not in metadata:
            raise WeightsError(path, "holds no classifier of your own", wanted)
        try:
            about = untrusted.parse_json(metadata[KEY])
            if about["format"] != FORMAT:
                raise WeightsError(path, f"classifier format {about['format']}", str(FORMAT), "fit it again")
            head = Head(**tensors)
            names = tuple(about["classes"])
            temperature, threshold = float(about["temperature"]), float(about["threshold"])
            probe = cls(head, names, temperature, threshold, EncoderReference(**about["encoder"]), about["facts"])
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(path, f"not a whole classifier ({error})", wanted, "fit it again") from error
        probe._check_parts(path)
        return probe

    def _check_parts(self, path: str | Path) -> None:
        head, classes = self.head, len(self.classes)
        width = len(head.mean) * (1 if head.query is None else len(head.query))
        found = {name: tuple(value.shape) for name, value in vars(head).items() if value is not None}
        wanted = {"mean": head.mean.shape[:1], "scale": head.mean.shape[:1], "weight": (classes, width)}
        wanted |= {"bias": (classes,), "centre": (width,), "directions": (classes, width)}
        if head.query is not None:
            wanted["query"] = (head.query.shape[0], len(head.mean))
        for name, shape in wanted.items():
            if found[name] != tuple(shape):
                raise WeightsError(path, f"{name} {found[name]}", str(tuple(shape)), "fit it again")
        finite = all(bool(torch.isfinite(value).all()) for value in vars(head).values() if value is not None)
        if not finite or not self.temperature > 0 or not -1 <= self.threshold <= 1:
            raise WeightsError(path, "a number in it is out of range", "finite numbers", "fit it again")
