"""Files that try to do harm: each is refused in one line, runs nothing and leaves nothing."""

from __future__ import annotations

import contextlib
import itertools
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hostile_files
import pytest
import torch
from hostile_files import (
    ASKING,
    PREFIX,
    RAW,
    call,
    checkpoint,
    legacy,
    number,
    objection,
    one_tensor,
    refused,
    stacked,
    storage,
    text,
    write_zip,
)

from internvideo.weights.convert import convert

TRAPS = tuple(hostile_files.running(Path("/nowhere")))
DATA = "a/data/0"


# --- pickles that call -----------------------------------------------------------------------------------------------


UNPICKLE = """
import pathlib, pickle, sys
import hostile_files
marker = pathlib.Path(sys.argv[1])
for name, content in hostile_files.running(marker).items():
    try:
        pickle.loads(content)
    except Exception:  # after the call, of its result
        pass
    if marker.exists():
        marker.unlink()
        print(name)
"""


def test_the_traps_would_work(tmp_path: Path) -> None:
    """What the next test proves would be nothing, if these pickles did nothing."""
    words = [sys.executable, "-c", UNPICKLE, tmp_path / "marker"]
    done = subprocess.run(
        words, cwd=Path(__file__).parents[1] / "support", capture_output=True, text=True, timeout=60, check=True
    )
    assert tuple(done.stdout.split()) == TRAPS


@pytest.mark.parametrize("name", TRAPS)
def test_a_call_is_refused_and_not_made(tmp_path: Path, name: str) -> None:
    content = hostile_files.running(tmp_path / "marker")[name]
    lines = [refused(checkpoint(tmp_path / "zip.pth", content, {"0": RAW}))]
    lines.append(objection(legacy(tmp_path / "legacy.pt", content)))
    if content.startswith(b"\x80"):
        (tmp_path / "bare.bin").write_bytes(content)
        lines.append(objection(tmp_path / "bare.bin"))
    for line in lines if name not in ("inst", "obj") else ():
        assert line.startswith("the pickle asks for "), line
        assert "nothing was run; " in line
        assert "tensors, numbers, texts, lists, dictionaries, argparse.Namespace" in line
        assert "; take weights from a source that you trust" in line
    assert not (tmp_path / "marker").exists()


def test_the_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    traps = hostile_files.running(tmp_path / "marker").items()
    told = {name: objection(checkpoint(tmp_path / "c.pth", content)).split(";")[0] for name, content in traps}
    assert told["os"] == told["stack_global"] == "the pickle asks for os.system"
    assert told["reduce0"] == told["reduce5"] == "the pickle asks for posix.system"
    assert told["python2"] == "the pickle asks for __builtin__.eval"
    assert told["nested"] == "the pickle asks for builtins.getattr"
    assert told["dotted"] == "the pickle asks for tempfile._os.system"
    assert told["inst"] == "the pickle uses the instruction INST"


@pytest.mark.parametrize("spelling", [call, stacked])
def test_other_names_are_refused_also_those_of_torch(tmp_path: Path, spelling: Callable[..., bytes]) -> None:
    for full in ASKING.split():
        module, _, name = full.rpartition(".")
        path = checkpoint(tmp_path / "c.pth", b"\x80\x04" + spelling(module, name, text("x")) + b".")
        assert objection(path).startswith(f"the pickle asks for {full}; nothing was run;")
    assert f"asks for {full}" in refused(path)


def test_every_cut_of_a_dotted_name_is_one_name(tmp_path: Path) -> None:
    """torch._utils + _rebuild_tensor_v2 is allowed however it is cut, because it is a key of a table and no path."""
    good = one_tensor().replace(b"\x80\x02", b"\x80\x04")
    cut = good.replace(
        b"ctorch._utils\n_rebuild_tensor_v2\n", text("torch") + text("_utils._rebuild_tensor_v2") + b"\x93"
    )
    assert cut != good
    assert convert(checkpoint(tmp_path / "c.pth", cut, {"0": RAW})).tensors == 1


def test_code_in_a_torchscript_archive_is_not_read(tmp_path: Path) -> None:
    entries = {
        "a/data.pkl": PREFIX + b"c__torch__\nNet\n)\x81" + one_tensor()[2:-1] + b"b.",
        "a/constants.pkl": PREFIX + call("os", "system", text(f"touch {tmp_path}/marker")) + b".",
        "a/code/__torch__.py": f"open('{tmp_path}/marker', 'w')".encode(),
        DATA: RAW,
    }
    assert convert(write_zip(tmp_path / "c.pt", entries)).layout == "torchscript"
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (PREFIX + text("x") + b")R.", "calls a str"),
        (PREFIX + b"N)R.", "calls a NoneType"),
        (PREFIX + one_tensor()[2:-1] + b")R.", "calls a dict"),
        (PREFIX + storage() + b")R.", "calls a Storage"),
        (PREFIX + storage() + b"}b.", "sets attributes of a Storage"),
        (PREFIX + b"cargparse\nNamespace\n(N}" + text("__init__") + b"cnumpy\ndtype\nstb.", "attributes of a Global"),
        (PREFIX + b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__code__") + b"Nsb.", "attributes of a Global"),
        (PREFIX + b"]}b.", "attributes of a list"),
        (PREFIX + call("torch", "FloatStorage", number(9)) + b".", "torch.FloatStorage is called"),
        (PREFIX + call("torch._utils", "_rebuild_tensor_v2") + b".", "is called with wrong arguments"),
        (PREFIX + call("torch._utils", "_rebuild_parameter", text("x")) + b".", "is called with"),
        (PREFIX + call("torch._tensor", "_rebuild_from_type_v2", b"cnumpy\ndtype\nN)") + b".", "is built by numpy."),
        (PREFIX + b"\x82\x01.", "instruction EXT1"),
        (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
        (PREFIX + b"P1\n.", "instruction PERSID"),
        (PREFIX + b"NQ.", "refers to something outside"),
        (PREFIX + b"(" + text("module") + b"NNNNtQ.", "refers to something outside"),
        (PREFIX + storage(kind="Tensor") + b".", "without a known type"),
        (PREFIX + storage(key="../../etc/passwd") + b".", "../../etc/passwd should have 16 bytes and is absent"),
        (PREFIX + storage(key="\x1b[31mred\n") + b".", r"\x1b[31mred\n should"),
        (PREFIX + b"}(NNu" + storage() + b"Ns.", "key of type Storage"),
        (PREFIX + b"}cargparse\nNamespace\n)\x81Ns.", "key of type ObjectStub"),
        (PREFIX + b"}((]tNu.", "key of type tuple"),
        (PREFIX + b"N.", "holds no state dict"),
        (PREFIX + b"].", "holds no state dict"),
        (PREFIX + b"}.", "holds no tensors"),
        (PREFIX + b".", "pickle is damaged"),
        (PREFIX + b"u.", "pickle is damaged"),
        (PREFIX + b"h\x09.", "pickle is damaged"),
        (PREFIX + b"}(Nu.", "pickle is damaged"),
        (PREFIX + b"NNa.", "item is appended to a value that is no list"),
        (PREFIX + b"NNNs.", "entry is set on a value that is no dictionary"),
        (PREFIX, "pickle is damaged"),
        (b"", "pickle is damaged"),
        (b"garbage" * 50, "pickle is damaged"),
        (PREFIX + b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "pickle is damaged"),
        (PREFIX + b"\x8b" + struct.pack("<i", -5) + b".", "pickle is damaged"),
        (b"I" + b"9" * 5000 + b"\n.", "pickle is damaged"),
        (one_tensor(name="a\nb"), r"a tensor is named a\nb"),
        (one_tensor(name="__metadata__"), "a tensor is named __metadata__"),
    ],
)  # fmt: skip
def test_what_no_checkpoint_does_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    assert told in objection(checkpoint(tmp_path / "c.pth", content, {"0": RAW}))


# --- tensors that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"shape": (5,)}, "reaches beyond its storage of 16 bytes: shape (5,)"),
        ({"shape": (1 << 61,)}, "reaches beyond"),
        ({"shape": (1 << 40, 1 << 40), "strides": (1, 1)}, "reaches beyond"),
        ({"shape": (2,), "strides": (4,)}, "reaches beyond"),
        ({"offset": 1}, "reaches beyond"),
        ({"shape": (1,), "offset": 1 << 61}, "reaches beyond"),
        ({"shape": (-1,)}, "negative, too large"),
        ({"shape": (4, -1), "strides": (1, 1)}, "negative, too large"),
        ({"strides": (-1,), "offset": 3}, "negative, too large"),
        ({"offset": -1}, "negative, too large"),
        ({"shape": (1 << 62,), "strides": (0,)}, "negative, too large"),
        ({"shape": (1 << 40,), "strides": (0,)}, "more than four times"),
        ({"shape": (1 << 61,) * 64, "strides": (0,) * 64}, "more than four times"),
        ({"shape": (1,) * 65, "strides": (1,) * 65}, "65 dimensions"),
        ({"strides": ()}, "1 dimensions and 0 strides"),
        ({"made": b"N"}, "not built from a storage"),
        ({"made": storage(count=1 << 61)}, "should have 9223372036854775808 bytes and is 16 bytes"),
        ({"made": storage(count=5)}, "should have 20 bytes and is 16 bytes"),
        ({"made": storage(count=-4)}, "without a known type, key or size"),
        ({"made": storage("UntypedStorage", count=16)}, "unknown number type"),
        ({"made": storage() + b"0" + storage("IntStorage")}, "two types or sizes"),
    ],
)
def test_tensors_outside_of_their_storage_are_refused(tmp_path: Path, arguments: dict[str, object], told: str) -> None:
    bad = checkpoint(tmp_path / "c.pth", one_tensor(**arguments), {"0": RAW})  # type: ignore[arg-type]  # from the table
    assert told in objection(bad)


def test_huge_and_negative_tensors_leave_nothing(tmp_path: Path) -> None:
    assert convert(checkpoint(tmp_path / "good.pth", one_tensor(), {"0": RAW})).parameters == 4
    huge = one_tensor(shape=(1 << 61,) * 64, strides=(0,) * 64)
    assert "more than four times" in refused(checkpoint(tmp_path / "huge.pth", huge, {"0": RAW}))
    before = one_tensor(strides=(-1,), offset=3)
    assert "negative" in refused(checkpoint(tmp_path / "before.pth", before, {"0": RAW}))


def test_many_names_of_one_storage_do_not_fill_the_disk(tmp_path: Path) -> None:
    state = {"w": torch.ones(100_000)}
    state |= {f"w{n}": state["w"] for n in range(1000)}
    torch.save(state, tmp_path / "c.pth")
    assert "its tensors would take 400400000 bytes, more than four times" in refused(tmp_path / "c.pth")


def test_conjugated_and_negated_views_are_refused(tmp_path: Path) -> None:
    for value in (torch.ones(2, dtype=torch.complex64).conj(), torch.ones(2, dtype=torch.complex64).conj().imag):
        torch.save({"w": value}, tmp_path / "c.pth")
        assert "conjugate or negative bit" in refused(tmp_path / "c.pth")


@pytest.mark.parametrize("value", [torch.ones(2, dtype=torch.complex128), torch.ones(2).to_sparse()])
def test_types_that_safetensors_lacks_are_refused(tmp_path: Path, value: torch.Tensor) -> None:
    torch.save({"w": value}, tmp_path / "c.pth")
    assert "asks for torch." in refused(tmp_path / "c.pth")


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.pth")
    assert "asks for torch.nn.modules.linear.Linear" in (line := refused(tmp_path / "c.pth"))
    assert "state_dict()" in line


# --- memory and time -------------------------------------------------------------------------------------------------


def doubling(levels: int) -> bytes:
    """Instructions for a list of twice the same list, of twice the same list, and so on."""
    double = b"0](j%bj%ber%b"
    return (
        b"]r"
        + bytes(4)
        + b"".join(double % (*[struct.pack("<I", n)] * 2, struct.pack("<I", n + 1)) for n in range(levels))
    )


def test_billions_of_laughs_cost_nothing(tmp_path: Path) -> None:
    content = checkpoint(tmp_path / "c.pth", PREFIX + doubling(200) + b".")
    assert "holds no state dict" in refused(content, memory_gb=0.1)
    beside = PREFIX + b"}" + text("model") + one_tensor()[2:-1] + b"s" + text("args") + doubling(200) + b"s."
    found = convert(checkpoint(tmp_path / "d.pth", beside, {"0": RAW}), memory_gb=0.1)
    assert found.dropped == ["args"]


def test_a_module_tree_that_doubles_is_refused(tmp_path: Path) -> None:
    level = b"c__torch__\nN\n)\x81}q\x00b"
    for n in range(60):
        level += b"r" + struct.pack("<I", n) + b"c__torch__\nN\n)\x81}(" + b"".join(
            text(name) + b"j" + struct.pack("<I", n) for name in "ab") + b"ub"  # fmt: skip
    write_zip(tmp_path / "c.pt", {"a/data.pkl": PREFIX + level + b".", "a/constants.pkl": b""})
    assert "module tree is missing, endless or too deep" in refused(tmp_path / "c.pt")
    endless = b"c__torch__\nN\n)\x81q\x00}" + text("me") + b"h\x00sb."
    write_zip(tmp_path / "d.pt", {"a/data.pkl": PREFIX + endless, "a/constants.pkl": b""})
    assert "endless" in refused(tmp_path / "d.pt")


@pytest.mark.parametrize(
    "content", [b"N" + b"\x85" * 10**6, b"]" * 10**5 + b"a" * (10**5 - 1)], ids=["tuples", "lists"]
)
def test_deep_nesting_is_survived(tmp_path: Path, content: bytes) -> None:
    beside = PREFIX + b"}" + text("model") + one_tensor()[2:-1] + b"s" + text("args") + content + b"s."
    assert convert(checkpoint(tmp_path / "d.pth", beside, {"0": RAW})).dropped == ["args"]
    as_key = PREFIX + b"}" + content + b"Ns."
    assert "has a key of type" in refused(checkpoint(tmp_path / "e.pth", as_key))


def test_a_million_marks_are_survived(tmp_path: Path) -> None:
    assert "pickle is damaged" in refused(checkpoint(tmp_path / "c.pth", PREFIX + b"(" * 10**6 + b"."))


def test_a_builder_inside_a_builder_is_refused(tmp_path: Path) -> None:
    function = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    content = PREFIX + function + b"(" + function + b"NNtR."
    assert "is built by torch._tensor._rebuild_from_type_v2" in refused(checkpoint(tmp_path / "c.pth", content))


def test_a_pickle_that_fills_the_memory_is_stopped(tmp_path: Path) -> None:
    checkpoint(tmp_path / "c.pth", PREFIX + b"}" * 3_000_000 + b".")
    assert "needs more than 0.06 GB to read; if you trust" in refused(tmp_path / "c.pth", memory_gb=0.06)


def test_a_pickle_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    checkpoint(tmp_path / "c.pth", PREFIX + b"N0" * 8_000_000 + b".")
    assert "took longer than 1 s to read; if you trust" in refused(tmp_path / "c.pth", seconds=1)


def test_small_pickles_of_all_instructions_never_surprise(tmp_path: Path) -> None:
    """All pairs of instructions without arguments: refused or read."""
    import io
    import pickletools

    from internvideo.untrusted_pickle import Machine, RefusedError

    def no_storage(_: object) -> NoReturn:
        raise RefusedError("none here")

    codes = [op.code.encode("latin-1") for op in pickletools.opcodes if op.arg is None]
    starts = (b"", b"(", b"N", b"](", b"}(NN", b"cargparse\nNamespace\n)", b"cargparse\nNamespace\n)\x81}")
    for start, one, two in itertools.product(starts, codes, codes):
        with contextlib.suppress(RefusedError):
            Machine(io.BytesIO(start + one + two + b"."), no_storage).run()
