"""Predict label, belief and uncertainty of clips; "unknown" above the threshold of an evaluation (DEAR)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from torch import Tensor

from internvideo import untrusted
from internvideo.errors import RunError, WeightsError
from internvideo.inference.hub_folder import model_hash
from internvideo.inference.video_model import VideoModel
from internvideo.objectives.evidential import Evidence, opinion
from internvideo.objectives.evidential import evidence as class_evidence
from internvideo.tasks.open_set import predict as open_set


@dataclass(frozen=True)
class Prediction:
    """Prediction for one clip.

    Attributes:
        label: the class of highest belief.
        belief: evidence of the class / (total evidence + number of classes); for a softmax classifier its probability.
        uncertainty: 0..1. With evidence, the beliefs of all classes and the uncertainty sum to 1.
        known: whether the uncertainty is below the threshold.
    """

    label: str
    belief: float
    uncertainty: float
    known: bool


@dataclass(frozen=True)
class OpenSetRule:
    """Convert a classifier's scores to open-set predictions.

    Attributes:
        evidence: function from logits to evidence, None for a softmax.
        threshold: uncertainty above which a clip is unknown.
        weights_sha256: of the classifier that was evaluated.
        source: the file that was read.
    """

    evidence: Evidence | None
    threshold: float
    weights_sha256: str
    source: Path

    @classmethod
    def load(cls, path: str | Path) -> OpenSetRule:
        """Read the open_set.json of an evaluation. Raises RunError: another file."""
        file, expected = Path(path), "the open_set.json of `internvideo evaluate open_set`"
        try:
            result = untrusted.read_json(file)
            if result["task"] != open_set.NAME:
                raise RunError(file, f"figures of {result['task']}", expected)
            protocol, evidence_kind = result["protocol"], result["protocol"]["evidence"]
            if evidence_kind not in ("softmax", *get_args(Evidence)):
                raise ValueError(f"evidence {evidence_kind}")
            evidence = None if evidence_kind == "softmax" else cast(Evidence, evidence_kind)
            return cls(
                evidence, float(protocol["thresholds"][open_set.OWN_METHOD]), str(protocol["weights_sha256"]), file
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(file, f"cannot be used: {error}", expected) from error

    def check(self, model: VideoModel) -> None:
        """Raise WeightsError if another classifier was evaluated, RecipeError if `model` is no classifier."""
        model.label_names(None)
        if model_hash(model) != self.weights_sha256:
            class_evidence_ = f"is of the weights {self.weights_sha256[:12]}, not {model_hash(model)[:12]}"
            hint = "run `internvideo evaluate open_set` on it"
            raise WeightsError(self.source, class_evidence_, "the evaluation of this model", hint)

    def __call__(self, model: VideoModel, clips: Tensor) -> list[Prediction]:
        """Predict clips (B, 3, T, S, S) of the model's preprocessing."""
        return self.predict_logits(model, model.logits(clips))

    def predict_logits(self, model: VideoModel, logits: Tensor) -> list[Prediction]:
        """Predict from logits (B, C) of the model."""
        logits = logits.double()
        if self.evidence is None:
            beliefs = logits.softmax(dim=1)
            uncertainty = 1 - beliefs.amax(dim=1)
        else:
            class_evidence_ = class_evidence(logits, self.evidence)
            uncertainty = opinion(class_evidence_)[1]
            beliefs = class_evidence_ / (class_evidence_.sum(dim=1, keepdim=True) + class_evidence_.shape[1])
        best = beliefs.max(dim=1)
        names = [model.class_names[index] for index in best.indices.tolist()]
        rows = zip(names, best.values.tolist(), uncertainty.tolist(), strict=True)
        return [
            Prediction(name, belief, uncertainty_, uncertainty_ <= self.threshold)
            for name, belief, uncertainty_ in rows
        ]
