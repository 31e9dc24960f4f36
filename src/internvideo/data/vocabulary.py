"""Map the words of navigation instructions to ids, by a list of words or by the most frequent ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PAD, UNKNOWN, START = "<pad>", "<unk>", "<start>"
SPECIAL = (PAD, UNKNOWN, START)
"""The first words of every list. The planner reads its output at the position of START."""

_WORD = re.compile(r"[\w']+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Split a sentence into lower-case words and punctuation marks."""
    return _WORD.findall(text.lower())


class Vocabulary:
    """Word vocabulary: words to ids.

    Args:
        words: the list, the special ones first.

    Raises ValueError: it does not begin with the special words, or has a word twice.
    """

    def __init__(self, words: Sequence[str]) -> None:
        if tuple(words[: len(SPECIAL)]) != SPECIAL or len(set(words)) != len(words):
            raise ValueError(f"a list of words begins with {', '.join(SPECIAL)} and has no word twice")
        self.words = tuple(words)
        self._index_of = {word: number for number, word in enumerate(words)}

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def from_texts(cls, texts: Iterable[str], max_size: int) -> Vocabulary:
        """Build it from the most frequent words, at most `max_size` with the special ones; ties by spelling."""
        counts = Counter(word for text in texts for word in split_words(text))
        order = sorted(counts, key=lambda word: (-counts[word], word))
        return cls((*SPECIAL, *order[: max(0, max_size - len(SPECIAL))]))

    def encode(self, text: str, max_length: int) -> list[int]:
        """Encode the start token and the words, at most `max_length`; out-of-vocabulary words are unknown."""
        return [self._index_of[START], *(self._index_of.get(word, 1) for word in split_words(text))][:max_length]

    def batch(self, texts: Sequence[str], max_length: int) -> Tensor:
        """Encode texts to (B, L) int64, padded with 0 to the longest."""
        rows = [self.encode(text, max_length) for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])
