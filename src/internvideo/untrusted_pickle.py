"""Decode pickles of torch checkpoints as plain data: a stack machine that imports and calls nothing.

A pickle is a program for a stack machine, and its instructions may import and call anything. Here a global is only a
name that is looked up in the tables below: a call of a tensor builder returns a record of the tensor, a call of another
allowed name an `ObjectStub`, and any other name raises RefusedError. This module imports the standard library only,
because it runs in the sandbox of `internvideo convert`.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn, Protocol, cast

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "BOOL": 1}
ITEM_BYTES |= {f"{sign}{bits}": bits // 8 for sign in "IU" for bits in (8, 16, 32, 64)}
"""Type in safetensors -> bytes per element."""
DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.complex64": "C64",
    "torch.bool": "BOOL",
    **{f"torch.int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"torch.uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}
STORAGES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.ComplexFloatStorage": "C64",
    "torch.BoolStorage": "BOOL",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.storage.UntypedStorage": "",
    "torch.UntypedStorage": "",
}
BUILDERS = {
    **{f"torch._utils._rebuild_{name}": name for name in ("tensor", "tensor_v2", "tensor_v3")},
    **{f"torch._utils._rebuild_{name}": "parameter" for name in ("parameter", "parameter_with_state")},
    "torch._tensor._rebuild_from_type_v2": "from_type",
    "torch.jit._pickle.restore_type_tag": "first",
    **{f"collections.{name}": "dictionary" for name in ("OrderedDict", "defaultdict", "Counter")},
}
"""Global -> kind of its replacement in `build_replacement`."""
STUBBED = {
    *(f"builtins.{name}" for name in ("set", "frozenset", "dict", "list", "int", "float", "complex", "bytearray")),
    *(f"__builtin__.{name}" for name in ("set", "frozenset", "dict", "list", "int", "float", "complex", "bytearray")),
    *("argparse.Namespace", "_codecs.encode", "pathlib.PosixPath", "pathlib._local.PosixPath", "datetime.datetime"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter"),
    *(f"torch.jit._pickle.build_{name}list" for name in ("int", "double", "bool", "tensor")),
    *(
        f"pytorch_lightning.callbacks.{name}"
        for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
    ),
    *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict"),
    *(f"deepspeed.runtime.fp16.loss_scaler.{name}" for name in ("LossScaler", "DynamicLossScaler")),
}
"""Allowed globals that build no tensor; a call returns an empty `ObjectStub`, which is not converted."""
ALLOWED = "tensors, numbers, texts, lists, dictionaries, argparse.Namespace, NumPy scalars"
CONSTANTS = {"INT", "LONG", "STRING", "UNICODE", "FLOAT", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
CONSTANTS |= {"BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
CONSTANTS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
"""Instructions that only carry a value."""
MAX_DIMENSIONS = 64


class RefusedError(Exception):
    """A pickle that is refused: what was found, what was expected, and a hint."""

    def __init__(self, found: str, expected: str = "", hint: str = "") -> None:
        super().__init__(found, expected, hint)


@dataclass(frozen=True, slots=True)
class Global:
    """An allowed name; never imported."""

    name: str


@dataclass(slots=True)
class ObjectStub:
    """Attributes of an object whose class is not imported."""

    name: str
    fields: dict[object, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Storage:
    """A range of `size` bytes in the file; dtype "" if untyped."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Number of elements of the storage from the first to the last used one, inclusive."""
        if not self.numel:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


def printable(text: str) -> str:
    """Shorten and escape a string from the file for a message: ASCII without control characters."""
    plain = text if text.isascii() and text.isprintable() else ascii(text)[1:-1]
    return plain if len(plain) <= 120 else f"{plain[:117]}..."


def refuse_damaged(reason: str) -> NoReturn:
    """Raise RefusedError for a damaged file."""
    raise RefusedError(f"cannot be read: {reason}", "a complete checkpoint written by torch.save", "copy it again")


def is_byte_count(value: object) -> bool:
    """Return whether a value is an int from 0 to 2^62 - 1."""
    return type(value) is int and 0 <= value < 1 << 62


def make_tensor(storage: object, offset: object, shape: object, strides: object, dtype: str = "") -> Tensor:
    """Build the record of a tensor and check that it stays inside its storage. Raises RefusedError."""
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise RefusedError("a tensor is not built from a storage, a shape and strides", ALLOWED)
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        found = f"a tensor has {len(shape)} dimensions and {len(strides)} strides"
        raise RefusedError(found, f"at most {MAX_DIMENSIONS} of each")
    if not (
        isinstance(offset, int)
        and is_byte_count(offset)
        and all(map(is_byte_count, shape))
        and all(map(is_byte_count, strides))
    ):
        raise RefusedError("a tensor's offset, shape or strides are negative, too large or no integers", "0 or more")
    record = Tensor(storage, dtype or storage.dtype, offset, shape, strides)
    if record.dtype not in ITEM_BYTES:
        raise RefusedError("a tensor of an unknown number type", ", ".join(ITEM_BYTES))
    if (offset + record.span) * ITEM_BYTES[record.dtype] > storage.size:
        geometry = f"shape {printable(str(shape))}, strides {printable(str(strides))}, offset {offset}"
        raise RefusedError(f"a tensor reaches beyond its storage of {storage.size} bytes: {geometry}")
    return record


def build_replacement(name: str, args: object) -> object:
    """Return the replacement for the result of a call `name(*args)`; nothing is called. Raises RefusedError."""
    kind = BUILDERS.get(name)
    if not isinstance(args, tuple):
        refuse_damaged("a call without arguments")
    if kind in ("tensor_v2", "tensor_v3") and any(args[6 if kind == "tensor_v2" else 7 :]):
        raise RefusedError("a tensor has the conjugate or negative bit set", "tensors as they are")
    if kind in ("tensor", "tensor_v2") and len(args) >= 4:
        return make_tensor(args[0], args[1], args[2], args[3])
    if kind == "tensor_v3" and len(args) >= 7 and isinstance(args[6], Global):
        return make_tensor(args[0], args[1], args[2], args[3], DTYPES.get(args[6].name, "?"))
    if kind == "parameter" and args and isinstance(args[0], Tensor):
        return args[0]
    if kind == "from_type" and len(args) >= 3 and isinstance(args[0], Global):
        if BUILDERS.get(args[0].name, "") not in ("tensor", "tensor_v2", "tensor_v3"):
            raise RefusedError(f"a tensor is built by {printable(args[0].name)}", ALLOWED)
        return build_replacement(args[0].name, args[2])
    if kind == "first" and args:
        return args[0]
    if kind == "dictionary":
        entries: dict[object, object] = {}
        pairs = args[-1] if args else []
        for pair in pairs if isinstance(pairs, list) else ():
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                refuse_damaged("a dictionary of something else than pairs")
            set_entry(entries, pair[0], pair[1])
        return entries
    if kind is not None or name in STORAGES or name in DTYPES:
        raise RefusedError(f"{printable(name)} is called with wrong arguments", ALLOWED)
    return ObjectStub(name)


def set_entry(target: object, key: object, value: object) -> None:
    """Set an entry of a dictionary. Raises RefusedError for nested keys, whose hashing could overflow the stack."""
    plain = (str, int, float, bytes, Global, type(None))
    if not (isinstance(key, plain) or (isinstance(key, tuple) and all(isinstance(part, plain) for part in key))):
        raise RefusedError(f"a dictionary has a key of type {type(key).__name__}", "texts and numbers")
    if isinstance(target, dict):
        target[key.name if isinstance(key, Global) else key] = value
    elif not isinstance(target, ObjectStub):
        refuse_damaged("an entry is set on a value that is no dictionary")


class Stream(Protocol):
    """Byte source of a pickle; near the end of the file `read` returns and allocates fewer bytes than `size`."""

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes."""

    def readline(self) -> bytes:
        """Read up to the end of the line."""

    def tell(self) -> int:
        """Return the offset in the file."""


class Machine:
    """The stack machine of pickle.

    Args:
        stream: byte source; after `run` it is at the end of the pickle.
        storage: returns the `Storage` for a persistent id.
        scripted: also allow names that begin with `__torch__.` (TorchScript); they become `ObjectStub`s.
    """

    def __init__(self, stream: Stream, storage: Callable[[object], Storage], scripted: bool = False) -> None:
        self.stream, self.storage, self.scripted = stream, storage, scripted
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.globals: set[str] = set()
        self.handlers: dict[str, Callable[[], object]] = {
            "NONE": lambda: None,
            "NEWTRUE": lambda: True,
            "NEWFALSE": lambda: False,
            "EMPTY_TUPLE": tuple,
            "EMPTY_LIST": list,
            "EMPTY_SET": list,
            "EMPTY_DICT": dict,
            "TUPLE1": lambda: self._pop_last(1),
            "TUPLE2": lambda: self._pop_last(2),
            "TUPLE3": lambda: self._pop_last(3),
            "TUPLE": lambda: tuple(self._pop_to_mark()),
            "LIST": self._pop_to_mark,
            "FROZENSET": self._pop_to_mark,
            "DICT": lambda: self._set_entries({}, self._pop_to_mark()),
            "DUP": lambda: self._top,
            "SETITEM": lambda: self._set_entries(*self._pop_target(self._pop_last(2))),
            "SETITEMS": self._set_entries_to_mark,
            "APPEND": lambda: self._extend(*self._pop_target(self._pop_last(1))),
            "APPENDS": self._extend_to_mark,
            "ADDITEMS": self._extend_to_mark,
            "STACK_GLOBAL": lambda: self._lookup_global(*self._pop_last(2)),
            "BINPERSID": lambda: self.storage(self._pop()),
            "REDUCE": self._call,
            "NEWOBJ": self._call,
            "NEWOBJ_EX": self._call_with_keywords,
            "BUILD": self._set_state,
        }

    def run(self) -> object:
        """Execute the pickle and return its value. Raises RefusedError."""
        try:
            argument: Any  # the instruction determines its type
            stream = cast("IO[bytes]", self.stream)  # genops uses only the methods of `Stream`
            for opcode, argument, _ in pickletools.genops(stream):
                name = opcode.name
                if name in CONSTANTS:
                    self.stack.append(argument)
                elif name in self.handlers:
                    self.stack.append(self.handlers[name]())
                elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                    self.memo[int(argument)] = self._top
                elif name == "MEMOIZE":
                    self.memo[len(self.memo)] = self._top
                elif name in ("GET", "BINGET", "LONG_BINGET"):
                    self.stack.append(self.memo[int(argument)])
                elif name == "GLOBAL":
                    self.stack.append(self._lookup_global(*argument.split(" ", 1)))
                elif name == "MARK":
                    self.marks.append(len(self.stack))
                elif name == "POP":
                    self._pop()
                elif name == "POP_MARK":
                    self._pop_to_mark()
                elif name not in ("PROTO", "FRAME", "STOP"):
                    raise RefusedError(f"the pickle uses the instruction {name}", "those that torch.save writes")
            return self._pop()
        except (ValueError, KeyError, TypeError, IndexError) as error:  # a wrong length, text, offset or memo
            refuse_damaged(f"its pickle is damaged ({printable(str(error))})")

    @property
    def _top(self) -> object:
        return self.stack[-1]

    def _pop(self) -> object:
        return self.stack.pop()

    def _pop_last(self, count: int) -> tuple[object, ...]:
        """Pop the last `count` values."""
        if len(self.stack) < count:
            raise IndexError("empty stack")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def _pop_to_mark(self) -> list[object]:
        """Pop the last mark and the values above it."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _pop_target(self, values: tuple[object, ...]) -> tuple[object, list[object]]:
        return self._pop(), list(values)

    def _set_entries(self, target: object, values: list[object]) -> object:
        for key, value in zip(values[::2], values[1::2], strict=True):
            set_entry(target, key, value)
        return target

    def _set_entries_to_mark(self) -> object:
        values = self._pop_to_mark()
        return self._set_entries(self._pop(), values)

    def _extend(self, target: object, values: list[object]) -> object:
        if not isinstance(target, list):
            refuse_damaged("an item is appended to a value that is no list")
        target.extend(values)
        return target

    def _extend_to_mark(self) -> object:
        values = self._pop_to_mark()
        return self._extend(self._pop(), values)

    def _lookup_global(self, module: object, name: object) -> Global:
        """Look up an allowed global by name. Raises RefusedError."""
        full = f"{module}.{name}"
        known = any(full in table for table in (BUILDERS, STORAGES, DTYPES, STUBBED))
        if not known and not (self.scripted and full.startswith("__torch__.")):
            hint = "take weights from a source that you trust, saved as a state_dict()"
            raise RefusedError(f"the pickle asks for {printable(full)}; nothing was run", ALLOWED, hint)
        self.globals.add(full)
        return Global(full)

    def _call(self) -> object:
        function, args = self._pop_last(2)
        if not isinstance(function, Global):
            raise RefusedError(f"the pickle calls a {type(function).__name__}; nothing was run", ALLOWED)
        return build_replacement(function.name, args)

    def _call_with_keywords(self) -> object:
        self._pop()  # named arguments
        return self._call()

    def _set_state(self) -> object:
        target, state = self._pop_last(2)
        if isinstance(target, ObjectStub):
            target.fields.update(state if isinstance(state, dict) else {"state": state})
        elif not isinstance(target, dict):  # torch sets `_metadata` (module versions) on a state dict
            raise RefusedError(f"the pickle sets attributes of a {type(target).__name__}", ALLOWED)
        return target
