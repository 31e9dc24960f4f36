"""Load clips with two labels, the attributes "verb" and "noun" of their rows (arXiv 2211.09529)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from internvideo.data.batch import Batch, WrappedLoader
from internvideo.data.dataset import NO_LABEL
from internvideo.data.loader import Loader
from internvideo.data.manifest import Manifest
from internvideo.data.sample import did_you_mean
from internvideo.errors import ManifestError

PARTS = ("verb", "noun")


@dataclass(frozen=True)
class Words:
    """The verb and noun classes of a model, in the order of its outputs: first all verbs, then all nouns."""

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs."""
        return (*(f"verb: {name}" for name in self.verbs), *(f"noun: {name}" for name in self.nouns))

    @classmethod
    def of(cls, outputs: Sequence[str]) -> Words:
        """Parse the names of outputs."""
        names = [tuple(name[6:] for name in outputs if name.startswith(f"{part}: ")) for part in PARTS]
        return cls(names[0], names[1])


def words_of(manifest: Manifest) -> Words:
    """Return the sorted verbs and nouns of the rows. Raises ManifestError: no verb or no noun."""
    names_by_part = [
        sorted({row.attributes[part] for row in manifest.rows if row.attributes.get(part)}) for part in PARTS
    ]
    for part, names in zip(PARTS, names_by_part, strict=True):
        if not names:
            raise ManifestError(manifest.source, f"no row has a {part}", f"the attribute '{part}'")
    return Words(tuple(names_by_part[0]), tuple(names_by_part[1]))


def labels_of(manifest: Manifest, words: Words) -> NDArray[np.int64]:
    """Return indices (N, 2) of verb and noun, -100 if a row has none. Raises ManifestError: an unknown word."""
    labels = np.full((len(manifest.rows), 2), NO_LABEL, dtype=np.int64)
    for column, (part, names) in enumerate(zip(PARTS, (words.verbs, words.nouns), strict=True)):
        index_of = {name: index for index, name in enumerate(names)}
        for number, row in enumerate(manifest.rows):
            word = row.attributes.get(part)
            if word and word not in index_of:
                found = f"row '{row.id}' has the {part} '{word}'{did_you_mean(word, names)}"
                raise ManifestError(manifest.source, found, f"one of the model's {len(names)}")
            if word:
                labels[number, column] = index_of[word]
    return labels


class VerbNounLoader(WrappedLoader[Loader]):
    """Replace the labels of a loader's batches with (B, 2): indices of verb and noun."""

    def __init__(self, loader: Loader, words: Words) -> None:
        super().__init__(loader)
        labels = torch.from_numpy(labels_of(loader.manifest, words))
        self._labels = {row.id: labels[number] for number, row in enumerate(loader.manifest.rows)}

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`."""
        for batch in self.loader.epoch(k, start):
            yield replace(batch, labels=torch.stack([self._labels[name] for name in batch.ids]))
