"""The tokenizer against the stored ids, and its refusals."""

from __future__ import annotations

import hashlib
import json
import pickle
from importlib.resources import files
from typing import Any

import ftfy
import pytest
import torch
from goldens_folder import GOLDENS
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo.data import tokenizer as module
from internvideo.data.tokenizer import Tokenizer
from internvideo.errors import TextError

STORED = json.loads((GOLDENS / "models/tokenizer.json").read_text())
KNOWN = {"note", "ftfy_version", "vocab_size", "vocab_file", "vocab_file_bytes", "vocab_file_sha256", "decode", "items"}
TOKENIZER = Tokenizer()


@pytest.mark.parity
def test_stored_file_is_understood() -> None:
    assert set(STORED) == KNOWN
    assert STORED["items"]
    assert STORED["decode"]
    assert TOKENIZER.vocabulary == STORED["vocab_size"]


@pytest.mark.parity
@pytest.mark.parametrize("case", STORED["items"], ids=range(len(STORED["items"])))
def test_stored_ids(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ids = case["ids"]
    assert TOKENIZER.encode(case["text"])[0].tolist() == ids + [0] * (77 - len(ids))
    assert len(ids) == case["n"]
    if case["truncated"]:
        with pytest.raises(TextError, match="at most 77"):
            TOKENIZER.encode(case["text"], truncate=False)
    else:
        assert TOKENIZER.encode(case["text"], truncate=False)[0, : len(ids)].tolist() == ids
    monkeypatch.setattr(ftfy, "fix_text", lambda text: text)
    unmended = module._encode(case["text"])[:75]
    assert (list(unmended) != ids[1:-1]) == case["needs_ftfy"]


@pytest.mark.parity
@pytest.mark.parametrize("case", STORED["decode"], ids=range(len(STORED["decode"])))
def test_stored_texts(case: dict[str, Any]) -> None:
    assert TOKENIZER.decode(case["ids"]) == case["text"]


@pytest.mark.parity
def test_merges_file_is_the_published_one() -> None:
    packed = (files("internvideo.data") / "assets" / STORED["vocab_file"]).read_bytes()
    assert len(packed) == STORED["vocab_file_bytes"]
    assert hashlib.sha256(packed).hexdigest() == STORED["vocab_file_sha256"]
    assert len(module._vocabulary()) == len(set(module._vocabulary())) == STORED["vocab_size"]


def test_special_marks_inside_other_signs_are_not_special() -> None:
    ids = TOKENIZER.encode("!!<|endoftext|> a<|endoftext|>b")[0].tolist()
    assert ids.count(TOKENIZER.end) == 2
    assert ids[0] == TOKENIZER.start
    inner = TOKENIZER.encode("!!<| endoftext |>")[0].tolist()
    assert ids[1:4] == inner[1:4]


def test_several_texts_make_rows_of_the_context() -> None:
    ids = Tokenizer(8).encode(["a dog runs", "word " * 30, ""])
    assert ids.shape == (3, 8)
    assert ids.dtype == torch.int64
    assert ids[0].tolist()[5:] == [0, 0, 0]
    assert ids[1, -1] == TOKENIZER.end
    assert ids[2].tolist() == [49406, 49407, 0, 0, 0, 0, 0, 0]
    assert (Tokenizer(8).encode("a dog runs") == ids[:1]).all()


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60))
def test_any_text_gives_one_row_that_ends(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids.shape == (1, 77)
    assert ids[0, 0] == TOKENIZER.start
    assert (ids == TOKENIZER.end).any()
    assert (ids == TOKENIZER.encode(text)).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["a", "red", "square", "rolls", "left", "naïve", "走る", "dog's"]), max_size=12))
def test_words_survive_the_way_there_and_back(words: list[str]) -> None:
    back = TOKENIZER.decode(TOKENIZER.encode(" ".join(words))[0], special=False)
    assert back.replace(" ", "") == "".join(words)


def test_ids_survive_pickling_to_a_worker() -> None:
    copy = pickle.loads(pickle.dumps(Tokenizer(16)))
    assert copy == Tokenizer(16)
    assert (copy.encode("a dog") == Tokenizer(16).encode("a dog")).all()


def test_memory_of_encodings_is_bounded() -> None:
    module._encode_cached.cache_clear()
    TOKENIZER.encode(["a cat", "a cat", "x" * (module.CACHED_TEXT_LENGTH + 1)])
    info = module._encode_cached.cache_info()
    assert (info.hits, info.currsize, info.maxsize) == (1, 1, module.CACHE_SIZE)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "empty list"),
        ((), "empty list"),
        (None, "NoneType"),
        (3, "a int"),
        (b"bytes", "a bytes"),
        (["a", None], "text 1: nothing"),
        (["a", 2.5], "text 1: a float"),
    ],
)
def test_what_is_not_text_is_refused(texts: Any, message: str) -> None:
    with pytest.raises(TextError, match=message):
        TOKENIZER.encode(texts)


def test_too_long_text_says_how_long() -> None:
    with pytest.raises(TextError, match=r"text 1: 102 ids in 'dog dog .*expected: at most 77"):
        TOKENIZER.encode(["a", "dog " * 100], truncate=False)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(TextError, match="49408"):
        TOKENIZER.decode([49408])
    with pytest.raises(ValueError, match="context 1"):
        Tokenizer(1)
