"""Define the probe: a classifier on the features of a frozen model, with saving, loading and prediction.

A linear probe classifies one vector per video. An attentive probe first pools the video's tokens by attention with
learned queries. Probabilities are calibrated by one temperature. A video whose in-distribution score (`id_score`, the
largest cosine to a class prototype) is below a threshold is classified as "unknown": a classifier can be as confident
about a class that it was not trained on.

Shapes: n videos, N tokens, D dimension of a feature or token, H queries, W = D or H D dimension of the
classifier's input, C classes.
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
from internvideo.inference.hub_folder import model_hash
from internvideo.inference.video_model import VideoModel
from internvideo.metrics.classification import softmax
from internvideo.models.attention import attend
from internvideo.probing.cached_features import Kind, encode
from internvideo.storage import read_safetensors, write_safetensors

METADATA_KEY = "internvideo_classifier"
"""Key of the metadata in the safetensors file."""
FORMAT_VERSION = 1
TENSOR_KEYS = {"feature_mean": "centre", "class_prototypes": "directions"}
"""Field of `ProbeHead` -> key in the file, where these differ."""
UNKNOWN = "unknown"
"""Class name of rejected videos."""
POOL_CHUNK_SIZE = 256

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ProbeHead:
    """Map features to logits and in-distribution scores.

    Attributes:
        mean, scale: (D,) mean and standard deviation of the training features, which standardize features.
        weight: (C, W). bias: (C,).
        feature_mean: (W,) mean of the pooled training features.
        class_prototypes: (C, W) class means minus `feature_mean`, L2-normalized; 0 for a class without training videos.
        query: (H, D) of an attentive head, None for a linear one.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    feature_mean: Tensor
    class_prototypes: Tensor
    query: Tensor | None = None

    @property
    def kind(self) -> Kind:
        """Kind of features that the head takes."""
        return "video" if self.query is None else "tokens"

    def pool(self, features: Tensor) -> Tensor:
        """Pool features (n, D), or (n, N, D) for an attentive head -> (n, W)."""
        ndim = 2 if self.query is None else 3
        if features.ndim != ndim or features.shape[-1] != len(self.mean):
            raise ValueError(f"features {tuple(features.shape)}: {ndim} dimensions, the last of {len(self.mean)}")
        with torch.no_grad():
            chunks = torch.split(features, POOL_CHUNK_SIZE)
            return torch.cat([pool_features(chunk, self.mean, self.scale, self.query) for chunk in chunks])

    def logits_and_id_scores(self, features: Tensor) -> tuple[Floats, Floats]:
        """Compute logits (n, C) and id_scores (n,) in -1..1 of features as in `pool`."""
        pooled = self.pool(features)
        logits = pooled @ self.weight.T + self.bias
        prototypes = self.class_prototypes[self.class_prototypes.any(dim=1)]
        cosines = F.normalize(pooled - self.feature_mean, dim=1) @ prototypes.T
        return logits.double().numpy(), cosines.amax(dim=1).double().numpy()


def pool_features(features: Tensor, mean: Tensor, scale: Tensor, query: Tensor | None) -> Tensor:
    """Standardize features (n, D); with queries (H, D) pool standardized tokens (n, N, D) by attention -> (n, H D).

    The outputs of the queries are concatenated. Keys and values are the tokens themselves, shared by all queries. For
    one query per head this is as general as attention with projections: a key projection is equivalent to another
    query, a value projection to another classifier. Only the output is standardized: softmax is invariant to a constant
    shift of all tokens.
    """
    if query is None:
        return (features.float() - mean) / scale
    tokens = features.float().unsqueeze(1)
    queries = (query / scale).expand(len(features), 1, -1, -1)
    return ((attend(queries, tokens, tokens) - mean) / scale).flatten(1)


@dataclass(frozen=True)
class EncoderReference:
    """Encoder on whose features a probe was fitted; `source` is where its weights came from."""

    name: str
    weights_sha256: str
    preprocessing: Mapping[str, Any]
    source: str = ""

    @classmethod
    def from_model(cls, model: VideoModel) -> EncoderReference:
        """Return the reference of a loaded model."""
        source = model.metadata.get("source", "")
        return cls(model.name, model_hash(model), model.preprocessing.to_json(), source)


@dataclass(frozen=True)
class Probe:
    """A classifier on top of an encoder.

    Attributes:
        head: maps features to logits.
        classes: C names.
        temperature: divisor of the logits.
        threshold: a video with a smaller id_score is "unknown"; -1 accepts everything.
        encoder: encoder of the features on which the head was fitted.
        metadata: protocol and metrics of the fit, as JSON values.
    """

    head: ProbeHead
    classes: tuple[str, ...]
    temperature: float
    threshold: float
    encoder: EncoderReference
    metadata: Mapping[str, Any] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------------ predictions

    def check(self, model: VideoModel) -> None:
        """Check that the model is the encoder on which the probe was fitted.

        Raises:
            WeightsError: other weights or other preprocessing, with which the predictions would be meaningless.
        """
        given = EncoderReference.from_model(model)
        if given.weights_sha256 != self.encoder.weights_sha256:
            fitted = f"{self.encoder.name} (weights {self.encoder.weights_sha256[:12]})"
            found = f"fitted on features of {fitted}, not of {given.name} ({given.weights_sha256[:12]})"
            hint = "use that model, or fit a classifier again on this one"
            raise WeightsError("classifier", found, self.encoder.source or self.encoder.name, hint)
        for key, fitted_value in self.encoder.preprocessing.items():
            if fitted_value != given.preprocessing.get(key):
                found = f"fitted on clips with {key} {fitted_value}, not {given.preprocessing.get(key)}"
                raise WeightsError(
                    "classifier", found, "", "open the model with that setting, or fit a classifier again"
                )

    def features(self, model: VideoModel, clips: Tensor) -> Tensor:
        """Encode clips (n, 3, T, S, S) to features (n, D), or (n, N, D) for an attentive head."""
        return encode(model, clips, self.head.kind)

    def probabilities(self, features: Tensor | NDArray[Any]) -> Floats:
        """Compute calibrated probabilities (n, C), given that the video is of one of the C classes; rows sum to 1."""
        return softmax(self.head.logits_and_id_scores(torch.as_tensor(features))[0] / self.temperature)

    def predict(self, features: Tensor | NDArray[Any]) -> list[dict[str, float]]:
        """Return the probabilities of all classes and "unknown", the largest first; they sum to 1.

        The first entry is the prediction. The value of "unknown" is 0 if the id_score is at least `threshold`. For a
        smaller id_score the value is above 0.5 and increases as the id_score decreases, and the class probabilities
        are scaled down so that all sum to 1. The value of "unknown" is not a calibrated probability.
        """
        logits, id_scores = self.head.logits_and_id_scores(torch.as_tensor(features))
        rows = softmax(logits / self.temperature)
        return [
            self._to_class_probabilities(row, float(id_score)) for row, id_score in zip(rows, id_scores, strict=True)
        ]

    def _to_class_probabilities(self, row: Floats, id_score: float) -> dict[str, float]:
        is_unknown = id_score < self.threshold
        unknown = (1 + (self.threshold - id_score) / (self.threshold + 1)) / 2 if is_unknown else 0.0
        named = {self.classes[i]: float(row[i]) * (1 - unknown) for i in np.argsort(-row, kind="stable")}
        return {UNKNOWN: unknown, **named} if is_unknown else {**named, UNKNOWN: 0.0}

    def classify(
        self, model: VideoModel, videos: VideoSource | Sequence[VideoSource], *, batch_size: int = 8
    ) -> list[dict[str, float]]:
        """Classify videos, given as for `VideoModel.encode_video`; return one result of `predict` per video.

        Raises:
            WeightsError: `model` is not the encoder of the probe. VideoError: a video cannot be read.
        """
        self.check(model)
        batches = model.read(videos, batch_size=batch_size)
        return [answer for clips in batches for answer in self.predict(self.features(model, clips))]

    # ------------------------------------------------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically. Raises RunError."""
        metadata = {
            "format": FORMAT_VERSION,
            "classes": list(self.classes),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "encoder": asdict(self.encoder),
            "facts": dict(self.metadata),
        }
        tensors = {TENSOR_KEYS.get(name, name): value for name, value in vars(self.head).items() if value is not None}
        write_safetensors(path, tensors, {METADATA_KEY: json.dumps(metadata, ensure_ascii=False)})

    @classmethod
    def load(cls, path: str | Path) -> Probe:
        """Read a file that `save` wrote.

        Raises:
            WeightsError: no such file, a corrupt one, or not a classifier written by `internvideo fit`.
        """
        tensors, metadata = read_safetensors(path)
        expected = "a classifier written by `internvideo fit`"
        if METADATA_KEY not in metadata:
            raise WeightsError(path, "is not a classifier", expected)
        try:
            content = untrusted.parse_json(metadata[METADATA_KEY])
            if content["format"] != FORMAT_VERSION:
                raise WeightsError(path, f"classifier format {content['format']}", str(FORMAT_VERSION), "fit it again")
            field_names = {key: name for name, key in TENSOR_KEYS.items()}
            head = ProbeHead(**{field_names.get(key, key): value for key, value in tensors.items()})
            names = tuple(content["classes"])
            temperature, threshold = float(content["temperature"]), float(content["threshold"])
            probe = cls(head, names, temperature, threshold, EncoderReference(**content["encoder"]), content["facts"])
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(path, f"truncated or corrupt ({error})", expected, "fit it again") from error
        probe._check_tensors(path)
        return probe

    def _check_tensors(self, path: str | Path) -> None:
        head, classes = self.head, len(self.classes)
        width = len(head.mean) * (1 if head.query is None else len(head.query))
        found = {name: tuple(value.shape) for name, value in vars(head).items() if value is not None}
        expected = {"mean": head.mean.shape[:1], "scale": head.mean.shape[:1], "weight": (classes, width)}
        expected |= {"bias": (classes,), "feature_mean": (width,), "class_prototypes": (classes, width)}
        if head.query is not None:
            expected["query"] = (head.query.shape[0], len(head.mean))
        for name, shape in expected.items():
            if found[name] != tuple(shape):
                raise WeightsError(path, f"{name} {found[name]}", str(tuple(shape)), "fit it again")
        finite = all(bool(torch.isfinite(value).all()) for value in vars(head).values() if value is not None)
        if not finite or not self.temperature > 0 or not -1 <= self.threshold <= 1:
            raise WeightsError(
                path,
                "a value is not finite or out of range",
                "finite values, temperature > 0, threshold -1 to 1",
                "fit it again",
            )
