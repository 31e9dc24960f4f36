"""Files that try to do harm when they are read as a checkpoint: pickles of every kind of call, zip files that lie.

Every call would leave a marker file, and `test_the_traps_would_work` proves that it would.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from internvideo.errors import WeightsError
from internvideo.untrusted_pickle import RefusedError
from internvideo.weights.convert import convert
from internvideo.weights.torch_archive import read_checkpoint
from internvideo.weights.unpickle import check_tensors, find_state_dict

PREFIX = b"\x80\x02"
RAW = struct.pack("<4f", 1, 2, 3, 4)
"""How a pickle of protocol 2 begins; the bytes of a storage of 4 numbers."""


def text(words: str) -> bytes:
    """A pickled string."""
    data = words.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """Instructions that call a global with what other instructions give."""
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def stacked(module: str, name: str, *arguments: bytes) -> bytes:
    """The same by the instruction that takes names from the stack, and follows dots in them."""
    return text(module) + text(name) + b"\x93(" + b"".join(arguments) + b"tR"


class Calls:
    """An object that pickles as a call."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.what


def running(marker: Path) -> dict[str, bytes]:
    """Pickles that make the file `marker` when they are unpickled in the ordinary way."""
    import os

    shell, code = text(f"touch {marker}"), text(f"open({str(marker)!r}, 'w').close()")
    system = text("os"), text("system")
    module = call("builtins", "__import__", system[0])
    each = call("builtins", "map", b"cos\nsystem\n", b"(" + shell + b"l")
    state = call("collections", "OrderedDict")
    return {
        **{f"reduce{n}": pickle.dumps({"w": Calls(os.system, f"touch {marker}")}, n) for n in range(6)},
        "os": PREFIX + call("os", "system", shell) + b".",
        "posix": PREFIX + call("posix", "system", shell) + b".",
        "python2": PREFIX + call("__builtin__", "eval", code) + b".",
        "eval": PREFIX + call("builtins", "eval", code) + b".",
        "exec": PREFIX + call("builtins", "exec", code) + b".",
        "open": PREFIX + call("io", "open", text(str(marker)), text("w")) + b".",
        "popen": PREFIX + call("subprocess", "check_output", b"(" + text("touch") + text(str(marker)) + b"t") + b".",
        "nested": PREFIX + call("builtins", "getattr", module, system[1]) + b"(" + shell + b"tR.",
        "attribute": PREFIX + call("operator", "attrgetter", system[1]) + b"(" + module + b"tR(" + shell + b"tR.",
        "partial": PREFIX + call("functools", "partial", b"cos\nsystem\n") + b"(" + shell + b"tR.",
        "map": PREFIX + call("builtins", "list", each) + b".",
        "stack_global": b"\x80\x04" + stacked("os", "system", shell) + b".",
        "dotted": b"\x80\x04" + stacked("tempfile", "_os.system", shell) + b".",
        "dotted_class": b"\x80\x04" + stacked("collections", "_sys.modules.get", system[0]) + b"0" + module
        + b"0cos\nsystem\n(" + shell + b"tR.",
        "inst": b"(" + shell + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + shell + b"o.",
        "newobj": PREFIX + b"cbuiltins\ntuple\n(" + each + b"t\x81.",
        "newobj_ex": b"\x80\x04" + text("builtins") + text("tuple") + b"\x93(" + each + b"t}\x92.",
        "hidden": PREFIX + state + call("os", "system", shell) + b"0.",
        "value": PREFIX + b"}(" + text("w") + call("os", "system", shell) + b"u.",
        "key": PREFIX + b"}" + call("os", "system", shell) + b"Ns.",
        "in_builder": PREFIX + state + b"(cbuiltins\neval\n" + code + b"t0cbuiltins\neval\n(" + code + b"tR0.",
        "ordered": PREFIX + call("collections", "OrderedDict", b"((" + text("w") + call("os", "system", shell) + b"tt")
        + b".",
        "build": PREFIX + state + b"}" + text("w") + call("os", "system", shell) + b"sb.",
        "setstate": PREFIX + b"cargparse\nNamespace\n)\x81}(" + text("__setstate__") + b"cos\nsystem\nub" + shell
        + b"b.",
        "second": PREFIX + call("code", "InteractiveInterpreter") + b"0" + call("builtins", "exec", code) + b".",
    }  # fmt: skip


ASKING = """
torch.load torch.hub.load torch.jit.load torch.package.PackageImporter torch.ops.load_library torch.compile torch.save
torch._utils._import_dotted_name torch.utils.cpp_extension.load_inline torch.nn.modules.linear.Linear
torch.serialization.load torch.storage._load_from_bytes torch.distributed.rpc.rpc_sync
torch._utils._rebuild_wrapper_subclass torch._utils._rebuild_device_tensor_from_numpy
torch._inductor.codecache.PyCodeCache.load torch.FloatStorage.__reduce__ torch.fx.graph_module.reduce_graph_module
numpy.load numpy.fromfile numpy.testing._private.utils.runstring numpy.f2py.crackfortran.myeval
numpy.ctypeslib.load_library numpy.core.multiarray._reconstruct.__self__
collections.OrderedDict.fromkeys collections.namedtuple argparse.Namespace.__init__ argparse.FileType
builtins.getattr builtins.setattr builtins.compile builtins.__import__ builtins.globals builtins.breakpoint
builtins.map builtins.object builtins.type builtins.open builtins.input builtins.print os.remove os.environ.get
importlib.import_module runpy.run_path pty.spawn pydoc.locate pdb.run code.interact ctypes.CDLL marshal.loads
types.FunctionType types.CodeType functools.reduce operator.methodcaller socket.create_connection socket.socket
shutil.rmtree pathlib.Path.write_text pickle.loads pickle._loads _pickle.loads copyreg._reconstructor
copyreg.__newobj__ webbrowser.open urllib.request.urlopen multiprocessing.reduction.recv_handle sys.exit asyncio.run
logging.config.dictConfig __torch__.Evil __main__.Evil internvideo.storage.write_text
internvideo.untrusted_pickle.build_replacement
"""
"""Names that a checkpoint has no business with, though many belong to torch or stand in harmless modules."""


def write_zip(path: Path, entries: dict[str, bytes], compressed: tuple[str, ...] = ()) -> Path:
    """A zip file with these entries, as torch writes one."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            kind = zipfile.ZIP_DEFLATED if name in compressed else zipfile.ZIP_STORED
            archive.writestr(name, data, compress_type=kind)
    return path


def checkpoint(path: Path, content: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A checkpoint in the zip format with this pickle."""
    data = {f"a/data/{key}": data for key, data in (storages or {}).items()}
    return write_zip(path, {"a/data.pkl": content, "a/byteorder": b"little", **data, "a/version": b"3\n"})


def legacy(path: Path, *values: bytes, tail: bytes = b"") -> Path:
    """A checkpoint in the older format: magic, version, system, then these pickles."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    path.write_bytes(b"".join([*head, *values]) + tail)
    return path


def number(value: int) -> bytes:
    """A pickled whole number of any size."""
    return pickletools.optimize(pickle.dumps(value, 2))[2:-1]


def numbers(values: tuple[int, ...]) -> bytes:
    """A pickled tuple of whole numbers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 4) -> bytes:
    """Instructions that refer to a storage."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def one_tensor(
    shape: tuple[int, ...] = (4,), strides: tuple[int, ...] = (1,), offset: int = 0, name: str = "w", made: bytes = b""
) -> bytes:
    """A state dict of one float tensor over a storage of 4 numbers; `made` replaces the storage's instructions."""
    parts = [
        made or storage(),
        number(offset),
        numbers(shape),
        numbers(strides),
        b"\x89",
        call("collections", "OrderedDict"),
    ]
    return PREFIX + b"}" + text(name) + call("torch._utils", "_rebuild_tensor_v2", *parts) + b"s."


def refused(path: Path, **limits: float) -> str:
    """The one line of the refusal; nothing was made beside the file."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(WeightsError) as told:
        convert(path, **limits)  # type: ignore[arg-type]  # memory_gb or seconds
    line = str(told.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable(), "more than one line, or codes for the terminal"
    assert len(line) < len(str(path)) + 700
    assert sorted(path.parent.iterdir()) == before
    return line.removeprefix(f"{path}: ")


def objection(path: Path) -> str:
    """The same refusal by the reader alone, in this process: it runs nothing either, and starts faster."""
    with path.open("rb") as file:
        try:
            found = read_checkpoint(file, path.stat().st_size)
            check_tensors(file, found, find_state_dict(found)[0], path.stat().st_size)
        except RefusedError as error:
            return "; ".join(filter(None, error.args))
    raise AssertionError("the reader found nothing wrong")
