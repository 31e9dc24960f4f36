"""Files that are damaged or lie about themselves: each is refused in one line and leaves nothing."""

from __future__ import annotations

import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_files import (
    PREFIX,
    RAW,
    call,
    checkpoint,
    legacy,
    objection,
    one_tensor,
    refused,
    text,
    write_zip,
)

from internvideo.weights.convert import convert

DATA = "a/data/0"


# --- zip files that lie ----------------------------------------------------------------------------------------------


def patched(path: Path, change: Callable[[bytearray, int, int], None], name: str = DATA) -> Path:
    """The good checkpoint after a change of (its bytes, place of the entry's own header, place of the other one)."""
    checkpoint(path, one_tensor(), {"0": RAW})
    data = bytearray(path.read_bytes())
    own = data.index(name.encode()) - 30
    change(data, own, data.rindex(name.encode()) - 46)
    path.write_bytes(data)
    return path


def put(data: bytearray, place: int, layout: str, *values: int) -> None:
    struct.pack_into(layout, data, place, *values)


ZIPS: dict[str, tuple[Callable[[bytearray, int, int], None], str]] = {
    "larger than the file": (lambda d, own, there: put(d, there + 20, "<II", 1 << 30, 1 << 30), "lies about its size"),
    "grows when unpacked": (lambda d, own, there: put(d, there + 24, "<I", 1 << 31), "a bomb"),
    "grows a little": (lambda d, own, there: put(d, there + 24, "<I", 17), "lies about its size"),
    "shrinks": (lambda d, own, there: put(d, there + 24, "<I", 12), "lies about its size"),
    "other bytes": (lambda d, own, there: put(d, own + 30 + len(DATA), "<I", 7), "another checksum"),
    "other sum": (lambda d, own, there: put(d, there + 16, "<I", 7), "another checksum"),
    "another name inside": (lambda d, own, there: put(d, own + 30, "<B", 65), "two headers that differ"),
    "encrypted": (lambda d, own, there: put(d, own + 6, "<H", 1), "encrypted"),
    "another method": (lambda d, own, there: put(d, there + 10, "<H", 8), "two headers that differ"),
    "compressed": (
        lambda d, own, there: (put(d, there + 10, "<H", 8), put(d, own + 8, "<H", 8))[0], "is compressed"
    ),
    "elsewhere": (lambda d, own, there: put(d, there + 42, "<I", 5), "does not begin where the directory says"),
    "outside": (lambda d, own, there: put(d, there + 42, "<I", len(d) + 9), "outside"),
    "parent folder": (lambda d, own, there: put(d, there + 46, "<8s", b"a/../../"), "unsafe"),
    "root folder": (lambda d, own, there: put(d, there + 46, "<8s", b"/a/data/"), "unsafe"),
    "overlap": (lambda d, own, there: put(d, own + 28, "<H", 40), "overlaps"),
}  # fmt: skip


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_file_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    change, told = ZIPS[name]
    path = patched(tmp_path / "c.pth", change)
    assert told in objection(path)
    if name in ("larger than the file", "grows when unpacked", "other bytes", "parent folder"):
        assert told in refused(path)


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    zeros = bytes(5_000_000)
    for name, told in (("a/code/x.py", "a bomb"), ("a/data/0", "a bomb"), ("a/data.pkl", "a bomb")):
        entries = {"a/data.pkl": one_tensor(), DATA: RAW, "a/version": b"3", name: zeros}
        assert told in refused(write_zip(tmp_path / "c.pth", entries, compressed=(name,)))
    entries = {"a/data.pkl": one_tensor(), DATA: os.urandom(64)}
    assert "is compressed" in refused(write_zip(tmp_path / "c.pth", entries, compressed=(DATA,)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_repeated_entries_and_many_pickles_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        for content in (one_tensor(), PREFIX + call("os", "system", text("true")) + b"."):
            archive.writestr("a/data.pkl", content)
    assert "unsafe or repeated name" in refused(tmp_path / "c.pth")
    write_zip(tmp_path / "d.pth", {"a/data.pkl": one_tensor(), "b/data.pkl": one_tensor()})
    assert "2 pickles" in refused(tmp_path / "d.pth")
    write_zip(tmp_path / "e.pth", {"picture.png": b"x"})
    assert "0 pickles" in refused(tmp_path / "e.pth")
    write_zip(tmp_path / "f.pth", {f"a/data/{n}": b"" for n in range(3)} | {"a/data.pkl": one_tensor()})
    assert "should have 16 bytes and is 0 bytes" in refused(tmp_path / "f.pth")


def test_a_zip_of_very_many_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from internvideo.weights import torch_archive

    monkeypatch.setattr(torch_archive, "MAX_ENTRIES", 50)
    write_zip(tmp_path / "c.pth", {f"a/data/{n}": b"" for n in range(60)})
    with (tmp_path / "c.pth").open("rb") as file, pytest.raises(torch_archive.RefusedError, match="has 60 entries"):
        torch_archive.read_checkpoint(file, 10**6)


def test_a_zip_behind_other_bytes_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "c.pth", one_tensor(), {"0": RAW})
    whole = (tmp_path / "c.pth").read_bytes()
    (tmp_path / "c.pth").write_bytes(b"#!/bin/sh\n" + whole)
    assert "not a torch checkpoint" in refused(tmp_path / "c.pth")
    (tmp_path / "c.pth").write_bytes(b"PK\x03\x04" + whole)
    assert "other bytes come before" in refused(tmp_path / "c.pth")


# --- no checkpoints, or not whole ------------------------------------------------------------------------------------


def test_other_things_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").write_bytes(b"")
    assert refused(tmp_path / "empty.pth").startswith("is empty")
    (tmp_path / "text.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is not a torch checkpoint; expected: a .pth, .pt, .bin or .ckpt" in refused(tmp_path / "text.pth")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"w": [1.0]}))
    assert "is a pickle, but no torch checkpoint" in refused(tmp_path / "plain.bin")
    (tmp_path / "folder.pth").mkdir()
    assert refused(tmp_path / "folder.pth").startswith("is a folder")
    assert refused(tmp_path / "absent.pth").startswith("no such file")
    os.mkfifo(tmp_path / "pipe.pth")
    assert refused(tmp_path / "pipe.pth").startswith("is not a regular file")
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.add(tmp_path / "text.pth", "storages")
    assert "not a torch checkpoint" in refused(tmp_path / "old.pth")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, new: bool) -> None:
    torch.save({"w": torch.ones(50), "v": torch.ones(3)}, tmp_path / "c.pth", _use_new_zipfile_serialization=new)
    whole = (tmp_path / "c.pth").read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "c.pth").write_bytes(whole[:size])
        objection(tmp_path / "c.pth")
    refused(tmp_path / "c.pth")
    (tmp_path / "c.pth").write_bytes(whole + b"more" * 30_000)
    refused(tmp_path / "c.pth")


def test_the_older_format_is_checked_too(tmp_path: Path) -> None:
    good, keys = one_tensor(), PREFIX + b"]" + text("0") + b"a."
    tail = struct.pack("<q", 4) + RAW
    assert convert(legacy(tmp_path / "good.pth", good, keys, tail=tail)).layout == "legacy"
    for told, values, end in (
        ("list of storages", (good, PREFIX + b"]."), tail),
        ("list of storages", (good, PREFIX + b"](" + text("0") + text("0") + b"e."), tail),
        ("list of storages", (good, PREFIX + b"]" + text("1") + b"a."), tail),
        ("which the file has not", (good, keys), struct.pack("<q", 1 << 40) + RAW),
        ("which the file has not", (good, keys), struct.pack("<q", -4) + RAW),
        ("ends too early", (good, keys), b""),
        ("after the last storage", (good, keys), tail + b"x"),
        ("reaches beyond", (one_tensor(shape=(5,)), keys), tail),
    ):
        assert told in objection(legacy(tmp_path / "c.pth", *values, tail=end))


@pytest.mark.parametrize("count", [150, pytest.param(6000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["zip", "legacy", "torchscript"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript itself
def test_random_damage_is_refused_or_harmless(tmp_path: Path, kind: str, count: int) -> None:
    """Changed, cut and doubled bytes: the reader says what is wrong or reads tensors, and nothing else happens."""
    from internvideo.untrusted_pickle import RefusedError
    from internvideo.weights.torch_archive import read_checkpoint
    from internvideo.weights.unpickle import check_tensors, find_state_dict

    path = tmp_path / "c.pth"
    state = {"model": {"w": torch.ones(5), "v": torch.ones(2, 3).t().half()}, "args": [1, "x", (2.5, None)]}
    if kind == "torchscript":
        torch.jit.script(torch.nn.Linear(2, 3)).save(str(path))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(5)
    endings, unclear = dict.fromkeys(("refused", "read"), 0), []
    for _ in range(count):
        data = bytearray(whole)
        for place in torch.randint(
            len(data), (1 + int(torch.randint(4, (1,), generator=generator)),), generator=generator
        ):
            data[int(place)] = int(torch.randint(256, (1,), generator=generator))
        path.write_bytes(data)
        with path.open("rb") as file:
            try:
                found = read_checkpoint(file, len(data))
                tensors, _, _ = find_state_dict(found)
                check_tensors(file, found, tensors, len(data))
                endings["read"] += 1
            except RefusedError as error:
                endings["refused"] += 1
                unclear += [part for part in error.args if not part.isprintable()]
    assert min(endings.values()) > 0, endings
    assert unclear == []
