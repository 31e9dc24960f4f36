"""CLIP's byte-pair encoding of text (Multi-Modalities-Pretraining): 49,408 ids, lower case, at most 77 of them.

The merges are the file in `assets/` (its licence beside it). The encoder is built when the first text arrives.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from internvideo.errors import TextError

if TYPE_CHECKING:  # loaded when the first text arrives
    import tokenizers
    from tokenizers import pre_tokenizers

MERGES = "bpe_simple_vocab_16e6.txt.gz"
MERGE_LINES = slice(1, 48895)
"""The first line names the file's version; lines behind the last merge of the vocabulary are not used."""
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORD_PATTERN = r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CACHE_SIZE = 16384
"""Encodings kept, least recently used go first; only texts of up to `CACHED_TEXT_LENGTH` characters are kept."""
CACHED_TEXT_LENGTH = 1024


@cache
def _byte_to_char() -> dict[int, str]:
    """Return byte -> the printable character that represents it, in the order of the first 256 ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@cache
def _merges() -> list[tuple[str, str]]:
    packed = (files("internvideo.data") / "assets" / MERGES).read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[MERGE_LINES]
    return [(left, right) for left, right in map(str.split, lines)]


@cache
def _vocabulary() -> tuple[str, ...]:
    letters = list(_byte_to_char().values())
    merged = [left + right for left, right in _merges()]
    return (*letters, *(letter + WORD_END for letter in letters), *merged, START, END)


@cache
def _splitter() -> pre_tokenizers.Split:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True)


@cache
def _encoder() -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(_vocabulary())}
    encoder = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(), end_of_word_suffix=WORD_END))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([_splitter(), to_bytes])
    return encoder


def clean(text: str) -> str:
    """Fix broken encodings, unescape HTML twice, collapse white space, lower the case."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def _encode(text: str) -> tuple[int, ...]:
    """Encode a text without start, end and padding."""
    text = clean(text)
    if START not in text and END not in text:
        return tuple(_encoder().encode(text).ids)
    ids: list[int] = []
    for piece, _ in _splitter().pre_tokenize_str(text):
        special = {START: Tokenizer.start, END: Tokenizer.end}.get(piece)
        ids.extend(_encoder().encode(piece).ids if special is None else [special])
    return tuple(ids)


_encode_cached = lru_cache(maxsize=CACHE_SIZE)(_encode)


@dataclass(frozen=True)
class Tokenizer:
    """Convert text to ids and back.

    Attributes:
        context_length: L, maximum number of ids of a text, start and end included.
    """

    context_length: int = 77

    vocabulary = 49408
    start = 49406
    end = 49407

    def __post_init__(self) -> None:
        if self.context_length < 2:
            raise ValueError(f"context {self.context_length}: start and end need 2")

    def encode(self, texts: str | Sequence[str], *, truncate: bool = True) -> Tensor:
        """Encode one text or several.

        Args:
            texts: one text (B = 1) or B texts; an empty text is start and end alone.
            truncate: cut longer texts to the context, the last id being `end`.

        Returns: (B, L) int64, padded with 0.

        Raises TextError: no texts, something that is not text, or a text longer than the context without `truncate`.
        """
        several = [texts] if isinstance(texts, str) else texts
        if not isinstance(several, Sequence) or isinstance(several, bytes):
            raise TextError("text", f"a {type(texts).__name__}", "a text or a list of texts")
        if len(several) == 0:
            raise TextError("text", "an empty list", "at least one text")
        rows = torch.zeros(len(several), self.context_length, dtype=torch.int64)
        for row, text in enumerate(several):
            ids = self._ids(text, row, truncate)
            rows[row, : len(ids)] = torch.tensor(ids)
        return rows

    def decode(self, ids: Tensor | Iterable[int], *, special: bool = True) -> str:
        """Decode one row of ids, with a space after every word.

        Args:
            ids: (n,) ids without padding; with `special` False, padding after the end is ignored.
            special: keep the start and end tokens; otherwise return the text up to the first end, stripped.

        Raises TextError: an id outside the vocabulary.
        """
        row = [int(index) for index in ids]
        if not special:
            row = row[: row.index(self.end)] if self.end in row else row
            row = [index for index in row if index != self.start]
        for index in row:
            if not 0 <= index < self.vocabulary:
                raise TextError("token id", str(index), f"0 to {self.vocabulary - 1}")
        byte_of = {letter: byte for byte, letter in _byte_to_char().items()}
        letters = "".join(_vocabulary()[index] for index in row)
        text = bytes(byte_of[letter] for letter in letters).decode("utf-8", errors="replace").replace(WORD_END, " ")
        return text if special else text.strip()

    def _ids(self, text: object, row: int, truncate: bool) -> list[int]:
        if not isinstance(text, str):
            raise TextError(f"text {row}", "nothing (None)" if text is None else f"a {type(text).__name__}", "a text")
        inner = _encode_cached(text) if len(text) <= CACHED_TEXT_LENGTH else _encode(text)
        max_tokens = self.context_length - 2
        if len(inner) > max_tokens and not truncate:
            found = f"{len(inner) + 2} ids in {text[:40]!r}"
            raise TextError(f"text {row}", found, f"at most {self.context_length}", "shorten it or allow it to be cut")
        return [self.start, *inner[:max_tokens], self.end]
