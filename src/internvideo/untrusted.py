"""Parse untrusted files within limits: bytes, depth, digits, aliases and sizes are checked before objects are built.

Other modules call no parser of the standard library (tests/test_architecture.py). Functions return plain data, or raise
OSError (absent, no regular file) or ValueError (with the reason), which callers convert. Guarantees: SECURITY.md.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, BinaryIO, Literal, NoReturn, TextIO

import yaml

from internvideo.errors import InternVideoError

MAX_BYTES = 2**33
"""Maximum size of an annotation file; larger ones would not fit in memory as Python objects."""
MAX_SETTINGS_BYTES = 2**24
"""Maximum size of a settings file (JSON), bytes."""
MAX_YAML_LENGTH = 2**20
MAX_LINE_LENGTH = 2**26
MAX_VALUES = 2**26
MAX_NODES = 20_000
"""Maximum number of values of a YAML file, with aliases expanded."""
MAX_DEPTH = 64
MAX_COLUMNS = 10_000
MAX_DIGITS = 20
MIN_DECOMPRESSED_BYTES, MAX_COMPRESSION_RATIO = 2**26, 100
"""See `max_decompressed_bytes`."""
_BLOCK_BYTES = 2**24

PathLike = str | os.PathLike[str]


class DuplicateKeyError(ValueError):
    """A duplicate key in one JSON object."""


# -------------------------------------------------------------------------------------------------------------- files


def open_regular(path: PathLike, max_size: int | None = None) -> BinaryIO:
    """Open a regular file for reading; others are refused, because a pipe or device may block or never end.

    Raises OSError: absent, a folder, a pipe, a device, or larger than `max_size` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer does not block
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "a pipe or device, not a file")
        if max_size is not None and status.st_size > max_size:
            raise OSError(f"{status.st_size:,} bytes, {max_size:,} is the limit")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_text(path: PathLike) -> TextIO:
    """Open a UTF-8 file, with or without a byte order mark; line ends are not converted. Raises OSError."""
    return io.TextIOWrapper(open_regular(path, MAX_BYTES), encoding="utf-8-sig", newline="")


def read_lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines of an open text file. Raises ValueError: a line that is too long, a NUL, not UTF-8."""
    while line := stream.readline(MAX_LINE_LENGTH):
        if "\0" in line:
            raise ValueError("a NUL character, so not a text file")
        if len(line) == MAX_LINE_LENGTH:
            raise ValueError(f"a line of {MAX_LINE_LENGTH:,} characters or more")
        yield line


def read_bytes(path: PathLike) -> bytes:
    """Read the bytes of a regular file. Raises OSError."""
    with open_regular(path, MAX_BYTES) as stream:
        return stream.read(MAX_BYTES)


def read_text(path: PathLike, max_size: int = MAX_BYTES) -> str:
    """Read a UTF-8 file, decompressed if its name ends in .gz. Raises OSError, ValueError."""
    with open_regular(path, max_size) as stream:
        return _decode(_decompress(stream) if str(path).endswith(".gz") else _read_all(stream, max_size))


def _read_all(stream: IO[bytes] | gzip.GzipFile, max_size: int) -> bytes:
    """Read all bytes of a text, up to `max_size`. Raises ValueError, early for a NUL (as in sparse files)."""
    content = bytearray()
    while block := stream.read(_BLOCK_BYTES):
        content += block
        if len(content) > max_size:
            raise ValueError(f"more than {max_size:,} bytes")
        if 0 in block:
            raise ValueError("a NUL character, so not a text file")
    return bytes(content)


def _decompress(stream: BinaryIO) -> bytes:
    try:
        with gzip.GzipFile(fileobj=stream) as archive:
            return _read_all(archive, max_decompressed_bytes(os.fstat(stream.fileno()).st_size))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"not a complete gzip file ({error})") from None


def max_decompressed_bytes(compressed_bytes: int) -> int:
    """Return to how many bytes a file of `compressed_bytes` may decompress."""
    return min(MIN_DECOMPRESSED_BYTES + MAX_COMPRESSION_RATIO * compressed_bytes, MAX_BYTES)


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: byte {error.start} is {content[error.start]:#04x}") from None


# --------------------------------------------------------------------------------------------------------------- JSON


def _dict_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise DuplicateKeyError(f"duplicate key '{name}' in one object")
            names.add(name)
    return entries


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text) if len(text) < 2000 else 'thousands of'} digits")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]}, which is too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


_STRICT_DECODER = json.JSONDecoder(
    object_pairs_hook=_dict_without_duplicates,
    parse_int=_parse_int,
    parse_float=_parse_float,
    parse_constant=_refuse_constant,
)
_LOG_DECODER = json.JSONDecoder(parse_int=_parse_int)
"""For training logs, which may contain NaN or Infinity."""


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Parse JSON to plain values.

    Args:
        text: one document. finite: refuse duplicate keys, NaN and infinities.

    Raises:
        ValueError: not JSON (`json.JSONDecodeError`), a duplicate key (`DuplicateKeyError`), an integer of more than
            MAX_DIGITS digits, a number that is not finite, nested too deeply, too many values.
    """
    text = _decode(text) if isinstance(text, bytes) else text
    if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values")
    try:
        document = (_STRICT_DECODER if finite else _LOG_DECODER).decode(text)
    except (RecursionError, MemoryError):
        raise ValueError("too deeply nested") from None
    _check_depth(document)
    return document


def _check_depth(document: object) -> None:
    """Raise ValueError if values are nested so deeply that recursive functions would fail."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def read_json(path: PathLike, max_size: int = MAX_BYTES, *, finite: bool = True) -> Any:
    """Read a JSON file to plain values. Raises OSError, ValueError."""
    return parse_json(read_text(path, max_size), finite=finite)


def read_json_object(path: PathLike, max_size: int = MAX_BYTES) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing, invalid or not an object."""
    try:
        content = read_json(path, max_size)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def parse_json_entry(
    texts: Any, name: str, where: object, error: type[InternVideoError], expected: str, default: str = ""
) -> Any:
    """Parse the JSON text of an entry of a mapping, such as the metadata of weights.

    Args:
        texts: the mapping. name: key of the entry. default: text for a missing key; "" if the key is required.
        where, error, expected: location, type and expected value of errors.

    Raises error: the key is missing, or its text is not valid JSON.
    """
    try:
        return parse_json(texts.get(name, default) if default else texts[name])
    except KeyError:
        raise error(where, f"has no entry '{name}'", expected) from None
    except ValueError as reason:
        raise error(where, f"its entry '{name}' cannot be read: {reason}", expected) from None


# --------------------------------------------------------------------------------------------------------- YAML, CSV


class _Loader(yaml.SafeLoader):
    """YAML loader of plain values, which counts the values of aliases before it expands them."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._num_nodes, self._depth = 0, 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # untyped in PyYAML
        num_before, anchor = self._num_nodes, event.anchor
        # An alias inside its own anchor has no size yet: its expansion would be infinite.
        self._num_nodes += self._sizes.get(anchor, MAX_NODES) if isinstance(event, yaml.AliasEvent) else 1
        self._depth += 1
        if self._num_nodes > MAX_NODES or self._depth > MAX_DEPTH:
            deep = self._num_nodes <= MAX_NODES
            found = f"nested more than {MAX_DEPTH} deep" if deep else f"over {MAX_NODES:,} values"
            raise yaml.composer.ComposerError(None, None, f"{found}, with aliases expanded", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[anchor] = self._num_nodes - num_before
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in keys:
                    found = f"duplicate key '{key.value}'"
                    raise yaml.constructor.ConstructorError(None, None, found, key.start_mark)
                keys.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > 2 * MAX_DIGITS:
            found = f"a number of {len(node.value):,} digits"
            raise yaml.constructor.ConstructorError(None, None, found, node.start_mark)
        return super().construct_scalar(node)


def _construct_finite_float(loader: _Loader, node: Any) -> float:
    value = loader.construct_yaml_float(node)
    if not math.isfinite(value):
        raise yaml.constructor.ConstructorError(None, None, f"the number {node.value[:20]}", node.start_mark)
    return value


_Loader.add_constructor("tag:yaml.org,2002:float", _construct_finite_float)


def parse_yaml(text: str) -> Any:
    """Parse YAML to plain values. Raises ValueError: not YAML, a duplicate key, nested too deeply, too many values."""
    if len(text) > MAX_YAML_LENGTH:
        raise ValueError(f"{len(text):,} characters, {MAX_YAML_LENGTH:,} is the limit")
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"{error.problem}" + ("" if mark is None else f", line {mark.line + 1}")) from None
    # Constructors of numbers, dates and sets raise other errors than YAMLError.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_yaml(path: PathLike) -> Any:
    """Read a YAML file to plain values. Raises OSError, ValueError."""
    return parse_yaml(read_text(path, MAX_YAML_LENGTH))


class CsvReader:
    """Iterate over rows as `csv.reader`, with at most `MAX_COLUMNS` cells per row.

    Args:
        text: lines. delimiter: between cells. quoted: cells may be enclosed in ". strict: refuse stray quotes.

    Raises:
        csv.Error: during the iteration.
    """

    def __init__(self, text: Iterable[str], delimiter: str = ",", *, quoted: bool = True, strict: bool = True) -> None:
        style: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        self._reader = csv.reader(text, delimiter=delimiter, quoting=style, strict=quoted and strict)

    @property
    def line_num(self) -> int:
        """Number of lines read so far."""
        return self._reader.line_num

    def __iter__(self) -> CsvReader:
        return self

    def __next__(self) -> list[str]:
        cells = next(self._reader)
        if len(cells) > MAX_COLUMNS:
            raise csv.Error(f"{len(cells):,} cells in a row, {MAX_COLUMNS:,} is the limit")
        return cells
