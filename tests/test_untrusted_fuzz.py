"""Damaged settings, metadata, arrays, shards, manifests, features and annotations, of which each is read or refused.

No other exception, no hang, no memory, no file that stays open. Thousands of damaged files are read in another process
(`fuzz_untrusted.py`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzz_untrusted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo import untrusted
from internvideo.recipe import build_recipe, read_recipe


def search(work: Path, first: int, count: int) -> dict[str, Any]:
    """Run the search over all kinds; a crash or a hang fails with the kind and number of the file."""
    kinds = ",".join(fuzz_untrusted.KINDS)
    program = [sys.executable, fuzz_untrusted.__file__, kinds, str(work), str(first), str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        reached = {path.parent.name: path.read_text() for path in work.glob("*/number")}
        raise AssertionError(f"exit {done.returncode}, reached {reached}: {' '.join(program)}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def judge(found: dict[str, Any], count: int) -> None:
    for kind, told in found.items():
        assert told["problems"] == [], kind
        assert told["given"] + told["refused"] == count
        assert told["given"] > 0, kind
        assert told["refused"] > 0, kind
        assert told["slowest"][0] < fuzz_untrusted.SECONDS, kind
        assert told["largest"][0] < fuzz_untrusted.GROWTH, kind


@pytest.mark.parametrize("kind", fuzz_untrusted.KINDS)
def test_some_damaged_files(tmp_path: Path, kind: str) -> None:
    """In this process: importing all anew would take longer than the reading."""

    def too_long(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, too_long)
    try:
        judge({kind: fuzz_untrusted.main(kind, tmp_path, 0, 25)}, 25)
    finally:
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.slow
def test_thousands_of_damaged_files_of_every_kind(tmp_path: Path) -> None:
    found = search(tmp_path, 1000, 800)
    print(json.dumps(found))
    judge(found, 800)


@pytest.mark.slow
def test_an_input_that_fails_or_hangs_is_told(tmp_path: Path) -> None:
    """The search itself."""
    program = """
import fuzz_untrusted, sys
from pathlib import Path
def read(folder):
    number = (folder / 'number').read_text()
    if number == '2':
        raise KeyError(number)
    while number == sys.argv[2]:
        pass
fuzz_untrusted.SECONDS = 0.2
fuzz_untrusted.KINDS['x'] = fuzz_untrusted.Kind(lambda folder: None, lambda folder, whole, rng: None, read)
print(fuzz_untrusted.main('x', Path(sys.argv[1]), 0, 4)['problems'])
"""
    for stops_at, told in (("none", "[\"2: KeyError('2')\"]"), ("3", "")):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), stops_at], capture_output=True, text=True, check=False,
            cwd=Path(__file__).parent / "support",
        )  # fmt: skip
        assert done.stdout.strip() == told, done.stderr
        assert (done.returncode == 0) == (stops_at == "none")
    assert (tmp_path / "number").read_text() == "3"


# --- generated texts -------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
PIECE = st.sampled_from(
    ["- ", "? ", ": ", ", ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "|\n ", ">\n", "'", '"', "#", "!!int ", "!!set ",
     "!!binary ", "!!omap ", "!!timestamp ", "!x ", "%YAML 1.1\n", "---\n", "...\n", "\n", "\n  ", "~", "0x", "1_0",
     "1:30", "2001-01-01", ".nan", "1e5", "yes", "a", "stage", "\\u0000", "\\x41", "\ufeff", "\x85"]
) | TEXTS  # fmt: skip
SOUPS = st.lists(PIECE, max_size=30).map("".join)
QUICK = settings(max_examples=20, deadline=None, database=None, derandomize=True)
LONG = settings(max_examples=1000, deadline=None, database=None, derandomize=True)


def check_soup(text: str) -> None:
    for parse in (untrusted.parse_json, untrusted.parse_yaml):
        fuzz_untrusted.refused(lambda parse=parse: parse(text), ValueError)
    fuzz_untrusted.refused(lambda: read_recipe("sample/masked", [f"schedule.epochs={text}"]))


def check_settings(changes: dict[str, Any], name: str) -> None:
    whole = read_recipe(f"sample/{name}").resolved()
    fuzz_untrusted.refused(lambda: build_recipe({**whole, **changes}).resolved())


KEYS = ("stage", "model", "data", "optimizer", "schedule", "loop", "init", "settings", "init_head", "about")
CHANGES = st.dictionaries(st.sampled_from(KEYS), TREES, min_size=1, max_size=4)
NAMES = st.sampled_from(["masked", "multimodal"])


@given(SOUPS, CHANGES, NAMES)
@QUICK
def test_generated_texts_and_settings_are_read_or_refused(text: str, changes: dict[str, Any], name: str) -> None:
    check_soup(text)
    check_settings(changes, name)


@pytest.mark.slow
@given(SOUPS, CHANGES, NAMES)
@LONG
def test_thousands_of_them(text: str, changes: dict[str, Any], name: str) -> None:
    check_soup(text)
    check_settings(changes, name)
