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

WORD_KINDS = ("verb", "noun")


@dataclass(frozen=True)
class VerbNounClasses:
    """Names of the verb and noun classes of a model, whose outputs are all verbs, then all nouns."""

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs in order, "verb: NAME" or "noun: NAME"."""
        return (*(f"verb: {name}" for name in self.verbs), *(f"noun: {name}" for name in self.nouns))

    @classmethod
    def parse(cls, outputs: Sequence[str]) -> VerbNounClasses:
        """Parse the names of all outputs."""
        names = [tuple(name[6:] for name in outputs if name.startswith(f"{kind}: ")) for kind in WORD_KINDS]
        return cls(names[0], names[1])


def collect_classes(manifest: Manifest) -> VerbNounClasses:
    """Return the sorted verbs and nouns of the rows. Raises ManifestError if no row has a verb, or none a noun."""
    names_by_part = [
        sorted({row.attributes[kind] for row in manifest.rows if row.attributes.get(kind)}) for kind in WORD_KINDS
    ]
    for kind, names in zip(WORD_KINDS, names_by_part, strict=True):
        if not names:
            raise ManifestError(manifest.source, f"no row has a {kind}", f"the attribute '{kind}'")
    return VerbNounClasses(tuple(names_by_part[0]), tuple(names_by_part[1]))


def label_indices(manifest: Manifest, classes: VerbNounClasses) -> NDArray[np.int64]:
    """Return the class indices (N, 2) of verb and noun, -100 for none. Raises ManifestError for an unknown word."""
    labels = np.full((len(manifest.rows), 2), NO_LABEL, dtype=np.int64)
    for column, (kind, names) in enumerate(zip(WORD_KINDS, (classes.verbs, classes.nouns), strict=True)):
        index_of = {name: index for index, name in enumerate(names)}
        for index, row in enumerate(manifest.rows):
            word = row.attributes.get(kind)
            if word and word not in index_of:
                predicted = f"row '{row.id}' has the {kind} '{word}'{did_you_mean(word, names)}"
                raise ManifestError(manifest.source, predicted, f"one of the model's {len(names)}")
            if word:
                labels[index, column] = index_of[word]
    return labels


class VerbNounLoader(WrappedLoader[Loader]):
    """Replace the labels of a loader's batches with (B, 2): indices of verb and noun."""

    def __init__(self, loader: Loader, classes: VerbNounClasses) -> None:
        super().__init__(loader)
        labels = torch.from_numpy(label_indices(loader.manifest, classes))
        self._labels = {row.id: labels[index] for index, row in enumerate(loader.manifest.rows)}

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`; they do not depend on `start`."""
        for batch in self.loader.epoch(k, start):
            yield replace(batch, labels=torch.stack([self._labels[name] for name in batch.ids]))
