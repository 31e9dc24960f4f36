"""A damaged annotation file is read or refused in one line; it never ends in another exception."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from goldens_folder import GOLDENS

from internvideo.datasets.catalog import BENCHMARKS
from internvideo.datasets.prepare import read_pickle
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError

FILES = GOLDENS / "tasks" / "annotations"
FOLDERS = {
    "activitynet": "activitynet_v1_3",
    "hacs_segments": "hacs",
    "hacs_clips": "hacs",
    "ava": "ava_v2_2",
    "msrvtt_full": "msrvtt",
    "tgif_choice": "tgif_qa",
    "r2r_ce": "r2r_vlnce",
}
NAMES = [name for name in BENCHMARKS if (FILES / FOLDERS.get(name, name)).is_dir()]
PIECES = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"-1",
    b"null",
    b"1e999",
    b"NaN",
    b"\0",
    b"\n",
    b"\t",
    b";",
    b"\xff",
    b":",
)
PIECES += (b'"x"', b"true", b" ", b"99999999999999999999", b"\\u0000", b"\\ud800", b"\r")


def damaged(content: bytes, rng: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, kind = rng.randrange(len(made) + 1), rng.random()
        if kind < 0.5:
            made[at : at + rng.choice((0, 1, 1, 3))] = rng.choice(PIECES)
        elif kind < 0.75:
            del made[at : at + rng.choice((1, 2, 10))]
        elif kind < 0.95 and made:
            start = rng.randrange(len(made))
            made[at:at] = made[start : start + rng.randrange(1, 30)]
        else:
            made = made[:at]
    return bytes(made)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    folder = tmp_path / "files"
    shutil.copytree(FILES / FOLDERS.get(name, name), folder)
    files = sorted(folder.iterdir())
    refused = 0
    for _ in range(30):
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, rng))
        line = ""
        try:
            BENCHMARKS[name].read(AnnotationSource(folder, unpickle=read_pickle))
        except ManifestError as error:
            line = str(error)
        assert "\n" not in line
        refused += line != ""
        file.write_bytes(whole)
    assert refused
