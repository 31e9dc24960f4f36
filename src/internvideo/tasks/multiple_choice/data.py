"""Load multiple choice: batches of clips with K texts each, one of them correct (multi-modalities-downstream).

If a row has the attribute "question", every text is the question followed by an option (TGIF-QA), else the option.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from internvideo.data.batch import Batch, WrappedLoader
from internvideo.data.loader import Loader
from internvideo.data.sample import Sample
from internvideo.errors import ManifestError
from internvideo.tasks.question_answering.data import question_tokens


def choice_texts(row: Sample) -> list[str]:
    """Return the K texts of a row. Raises ValueError for a row without choices."""
    if row.choices is None:
        raise ValueError(f"row '{row.id}' has no choices")
    return [f"{row.attributes.get('question', '')} {option}".strip() for option in row.choices.options]


class ChoiceLoader(WrappedLoader[Loader]):
    """Add the K texts as token ids (B, K, L) and the indices of the correct ones as labels (B,) to a loader's batches.

    Args:
        clips: loader of rows with choices, without tokenizer. context_length: of the text tower.

    Raises:
        ManifestError: rows without choices, or with different numbers of options.
    """

    def __init__(self, clips: Loader, context_length: int) -> None:
        clips.manifest.require("choices")
        super().__init__(clips)
        self.context_length = context_length
        self._rows = {row.id: row for row in clips.manifest.rows}
        counts = {len(choice_texts(row)): row.id for row in clips.manifest.rows}
        if len(counts) > 1:
            examples = " and ".join(f"{count} ('{name}')" for count, name in sorted(counts.items())[:2])
            raise ManifestError(clips.manifest.source, f"rows of {examples} options", "the same number in every row")

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`; they do not depend on `start`."""
        for batch in self.loader.epoch(k, start):
            rows = [self._rows[name] for name in batch.ids]
            tokens = question_tokens([text for row in rows for text in choice_texts(row)], self.context_length)
            labels = torch.tensor([row.choices.answer for row in rows if row.choices is not None])
            yield replace(batch, text_ids=tokens.view(len(rows), -1, tokens.shape[1]), labels=labels)
