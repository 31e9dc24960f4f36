"""Predict and score captions (paper 3.1.2; multi-modalities-downstream).

The figures come from the pycocoevalcap and nltk packages (`pip install internvideo[captions]`): BLEU-4, ROUGE-L and
CIDEr as they are published there, and METEOR without its synonyms, which need a download. Tokenization differs from
the Java tokenizer of published results, so metrics may differ in the last digits.
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
class Writing:
    """Decoding settings: beam search with `beams` (1 is greedy), or top-p sampling with p = `nucleus` and `seed`.

    Raises:
        RecipeError: beams below 1, a nucleus outside 0..1, or both.
    """

    beams: int = 1
    nucleus: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.beams < 1 or not 0 <= self.nucleus <= 1 or (self.nucleus and self.beams > 1):
            found = f"beams {self.beams}, nucleus {self.nucleus:g}"
            raise RecipeError("writing", found, "1 beam or more; or one beam and a nucleus over 0 up to 1")
        if self.seed and not self.nucleus:
            raise RecipeError("seed", f"{self.seed} without a nucleus, where nothing is drawn", "with a nucleus over 0")


def predict(inputs: ClipInputs[VideoLanguage], tokenizer: Tokenizer, *, writing: Writing | None = None) -> Predictions:
    """Generate a caption for every video.

    Args:
        inputs: a model with a caption decoder; clips of rows with captions, one view a video.
        tokenizer: of its text tower. writing: greedy by default.

    Returns:
        ids (N,), written (N,), references (Q,), owner (Q,) of the videos read.

    Raises:
        ManifestError: a row without caption. RecipeError: several views, a model that writes none.
        RunError: see `run_clips`.
    """
    writing = writing or Writing()
    towers, num_views = inputs.model, inputs.clips.num_views
    inputs.manifest.require("captions")
    if num_views != 1:
        raise RecipeError("num_clips", str(num_views), "1: a caption is of one clip")
    if towers.caption_decoder is None:
        raise RecipeError("weights", "a model without a caption decoder", "one that was trained with captions")
    generator = torch.Generator().manual_seed(writing.seed)

    def write(batch: Batch) -> dict[str, Tensor]:
        ids = towers.generate(
            towers.normalize(batch.video), start=tokenizer.start, end=tokenizer.end, beams=writing.beams,
            nucleus=writing.nucleus, generator=generator,
        )  # fmt: skip
        return {"ids": ids}

    views = run_clips(write, inputs, NAME)
    ids = torch.from_numpy(views.values["ids"]).long()
    own = [row.captions for row in views.rows]
    arrays = {
        "ids": np.asarray([row.id for row in views.rows]),
        "written": np.asarray([tokenizer.decode(row, special=False) for row in ids]),
        "references": np.asarray([text for texts in own for text in texts]),
        "owner": np.asarray([number for number, texts in enumerate(own) for _ in texts], dtype=np.int64),
    }
    protocol = {**inputs.describe(), "writing": asdict(writing)}
    return Predictions(NAME, arrays, protocol, views.coverage)


def words(text: str) -> str:
    """Normalize a sentence: lower case, words and numbers separated by one space, without punctuation."""
    return " ".join(re.findall(r"\w+(?:'\w+)?", text.lower()))


def score(table: Predictions) -> Result:
    """Compute bleu4, rouge_l, cider and meteor_exact, also for the most frequent reference as every caption.

    CIDEr can exceed 1, as in published tables (it is up to 10). BLEU-4 is one figure of the whole split and has no
    interval.
    """
    references, count = table["references"].tolist(), len(table["ids"])
    known: Texts = {str(number): [] for number in range(count)}
    for number, text in zip(table["owner"].tolist(), references, strict=True):
        known[str(number)].append(words(text))
    written = {str(number): [words(text) or "nothing"] for number, text in enumerate(table["written"].tolist())}
    texts, counts = np.unique([words(text) for text in references], return_counts=True)
    common = str(texts[counts.argmax()])
    metrics = MetricValues()
    for suffix, given in (("", written), ("_one_for_all", {name: [common] for name in written})):
        for name, (value, each) in judge(known, given).items():
            spread = None if each is None else bootstrap.interval(bootstrap.mean(each), count)
            metrics.add(name + suffix, value, spread)
    protocol = {"one_for_all": common, "captions": len(references), "different": len(set(map(str, table["written"])))}
    return metrics.result(table, **protocol)


def judge(known: Mapping[str, Sequence[str]], written: Mapping[str, Sequence[str]]) -> dict[str, tuple[float, Any]]:
    """Score sentences in the form of `words`: name -> (metric, values of the videos (N,) or None).

    Raises:
        ExtraError: the packages are not installed.
    """
    require("captions", "captioning")
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(known, written, verbose=0)
    rouge, rouges = Rouge().compute_score(known, written)
    cider, ciders = Cider().compute_score(known, written)
    stemmer = PorterStemmer()
    meteors = _array(
        meteor_score([text.split() for text in known[name]], written[name][0].split(), str, stemmer, _NoSynonyms())
        for name in known
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


def examples(table: Predictions, count: int = 20) -> str:
    """Return JSON lines of the first videos: id, generated caption, reference captions."""
    lines = []
    for number, (name, text) in enumerate(zip(table["ids"][:count], table["written"][:count], strict=True)):
        references = table["references"][table["owner"] == number].tolist()
        record = {"id": str(name), "written": str(text), "references": references}
        lines.append(json.dumps(record, ensure_ascii=False))
    return "\n".join(lines) + "\n"
