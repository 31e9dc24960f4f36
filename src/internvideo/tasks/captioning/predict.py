"""Predict and score captions (paper 3.1.2; multi-modalities-downstream).

The metrics are computed by the packages pycocoevalcap and nltk (`pip install internvideo[captions]`): BLEU-4, ROUGE-L,
CIDEr, and METEOR without synonyms, which need a download. Published results use a Java tokenizer; with ours, metrics
may differ in the last digits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.tokenizer import Tokenizer
from internvideo.errors import RecipeError
from internvideo.extras import require
from internvideo.metrics import bootstrap
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.protocol import ClipInputs
from internvideo.tasks.table import MetricValues, Predictions, Result
from internvideo.tasks.views import run_clips

NAME = "captioning"
Texts = dict[str, list[str]]


@dataclass(frozen=True)
class DecodingSettings:
    """Decoding: beam search with `num_beams` (1 is greedy), or nucleus sampling with `top_p` and `seed`.

    Raises:
        RecipeError: num_beams below 1, top_p outside 0..1, or several beams with top_p.
    """

    num_beams: int = 1
    top_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_beams < 1 or not 0 <= self.top_p <= 1 or (self.top_p and self.num_beams > 1):
            found = f"num_beams {self.num_beams}, top_p {self.top_p:g}"
            raise RecipeError("decoding", found, "num_beams of 1 or more; top_p 0 to 1, with one beam")
        if self.seed and not self.top_p:
            raise RecipeError("seed", f"{self.seed} without top_p, which makes no random choice", "top_p above 0")


def predict(
    inputs: ClipInputs[VideoLanguage], tokenizer: Tokenizer, *, decoding: DecodingSettings | None = None
) -> Predictions:
    """Generate a caption for every video.

    Args:
        inputs: a model with a caption decoder; clips of rows with captions, one view per video.
        tokenizer: of its text tower. decoding: greedy by default.

    Returns:
        ids (N,), written (N,) generated captions, references (Q,) captions, owner (Q,) index into ids of each
        reference; of the videos read.

    Raises:
        ManifestError: a row without caption. RecipeError: several views, or a model without caption decoder.
        RunError: see `run_clips`.
    """
    decoding = decoding or DecodingSettings()
    towers, num_views = inputs.model, inputs.protocol.num_views
    inputs.manifest.require("captions")
    if num_views != 1:
        raise RecipeError("num_clips", str(num_views), "1: a caption is of one clip")
    if towers.caption_decoder is None:
        raise RecipeError("weights", "a model without a caption decoder", "one that was trained with captions")
    generator = torch.Generator().manual_seed(decoding.seed)

    def generate_captions(batch: Batch) -> dict[str, Tensor]:
        ids = towers.generate(
            towers.normalize(batch.video), start=tokenizer.start, end=tokenizer.end, num_beams=decoding.num_beams,
            top_p=decoding.top_p, generator=generator,
        )  # fmt: skip
        return {"ids": ids}

    views = run_clips(generate_captions, inputs, NAME)
    ids = torch.from_numpy(views.values["ids"]).long()
    captions = [row.captions for row in views.rows]
    arrays = {
        "ids": np.asarray([row.id for row in views.rows]),
        "written": np.asarray([tokenizer.decode(row, special=False) for row in ids]),
        "references": np.asarray([text for texts in captions for text in texts]),
        "owner": np.asarray([index for index, texts in enumerate(captions) for _ in texts], dtype=np.int64),
    }
    protocol = {**inputs.describe(), "decoding": asdict(decoding)}
    return Predictions(NAME, arrays, protocol, views.coverage)


def normalize_text(text: str) -> str:
    """Normalize a sentence: lower case, words and numbers separated by one space, without punctuation."""
    return " ".join(re.findall(r"\w+(?:'\w+)?", text.lower()))


def score(table: Predictions) -> Result:
    """Compute bleu4, rouge_l, cider and meteor_exact; with the suffix _one_for_all, of the most frequent reference.

    CIDEr is in 0..10, as in published tables. BLEU-4 is computed over the whole split and has no interval.
    """
    references, num_videos = table["references"].tolist(), len(table["ids"])
    references_by_video: Texts = {str(index): [] for index in range(num_videos)}
    for index, text in zip(table["owner"].tolist(), references, strict=True):
        references_by_video[str(index)].append(normalize_text(text))
    written = {str(index): [normalize_text(text) or "nothing"] for index, text in enumerate(table["written"].tolist())}
    texts, counts = np.unique([normalize_text(text) for text in references], return_counts=True)
    most_frequent = str(texts[counts.argmax()])
    metrics = MetricValues()
    for suffix, candidates in (("", written), ("_one_for_all", {name: [most_frequent] for name in written})):
        for name, (value, per_video) in compute_caption_metrics(references_by_video, candidates).items():
            bounds = None if per_video is None else bootstrap.interval(bootstrap.mean(per_video), num_videos)
            metrics.add(name + suffix, value, bounds)
    protocol = {
        "one_for_all": most_frequent,
        "captions": len(references),
        "different": len(set(map(str, table["written"]))),
    }
    return metrics.result(table, **protocol)


def compute_caption_metrics(
    references_by_video: Mapping[str, Sequence[str]], written: Mapping[str, Sequence[str]]
) -> dict[str, tuple[float, Any]]:
    """Compute the caption metrics of texts from `normalize_text`.

    Args:
        references_by_video: name of a video -> references. written: name of a video -> one generated caption.

    Returns:
        name -> (metric, values per video (N,) or None).

    Raises:
        ExtraError: the packages of the `captions` extra are not installed.
    """
    require("captions", "captioning")
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(references_by_video, written, verbose=0)
    rouge, rouges = Rouge().compute_score(references_by_video, written)
    cider, ciders = Cider().compute_score(references_by_video, written)
    stemmer = PorterStemmer()
    meteors = _array(
        meteor_score(
            [text.split() for text in references_by_video[name]], written[name][0].split(), str, stemmer, _NoSynonyms()
        )
        for name in references_by_video
    )
    return {
        "cider": (float(cider), _array(ciders)),
        "bleu4": (float(bleu[3]), None),
        "rouge_l": (float(rouge), _array(rouges)),
        "meteor_exact": (float(meteors.mean()), meteors),
    }


class _NoSynonyms:
    """Stand-in for WordNet, which needs a download, without synonyms."""

    def synsets(self, _: str) -> list[str]:
        """None."""
        return []


def _array(values: Iterable[float]) -> NDArray[np.float64]:
    return np.asarray([float(value) for value in values])


def examples(table: Predictions, num_videos: int = 20) -> str:
    """Return JSON lines of the first videos: id, generated caption, reference captions."""
    lines = []
    for index, (name, text) in enumerate(zip(table["ids"][:num_videos], table["written"][:num_videos], strict=True)):
        references = table["references"][table["owner"] == index].tolist()
        record = {"id": str(name), "written": str(text), "references": references}
        lines.append(json.dumps(record, ensure_ascii=False))
    return "\n".join(lines) + "\n"
