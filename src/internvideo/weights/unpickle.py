"""Sandboxed subprocess of `internvideo convert`: reads a torch checkpoint, writes safetensors.

Standard input is the checkpoint, standard output the safetensors file, standard error the report (JSON); settings are
the last argument (JSON). Before the first byte is read the process limits its memory, its time and the size of what it
writes, and gives up the right to open files or connections and to start processes. See pickle_machine.py for why
nothing in the file can run. Standard library only: torch and NumPy are not loaded.
"""

from __future__ import annotations

import array
import hashlib
import itertools
import json
import math
import os
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

try:
    import resource
except ImportError:  # absent on Windows: `limit` returns False there
    resource = None  # type: ignore[assignment]  # where the module is absent (Windows)

from internvideo.untrusted_pickle import BYTES, DTYPES, Holder, RefusedError, Tensor, printable
from internvideo.weights.torch_archive import Checkpoint, chunks, read_checkpoint

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module")
"""Keys searched for a state dict, in this order, before any other key."""
AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?|avg|shadow)(_|$)")
NO_MODEL = re.compile(r"optim|sched|scaler|^amp$|rng|loops?$|callback|hyper|^args?$|config|meta|history", re.IGNORECASE)
"""Keys of averaged weights, and keys of content that is no model although it may hold tensors."""
ZERO_SHARD_HINT = "run zero_to_fp32.py, which DeepSpeed wrote into the folder above, and convert the file that it makes"
MODULE_FLAGS = ("training", "_is_full_backward_hook")
MAX_MODULES, MAX_DEPTH, MAX_LISTED = 100_000, 64, 200
OUT_OF_MEMORY = b'{"memory": true}'  # allocated before reading: after a MemoryError there is no room for it
DIGESTS, REST = "internvideo_sha256", "__metadata__"
"""As in `storage`, which this process does not import."""
TORCH = {ours: theirs for theirs, ours in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
"""Largest JSON header that the safetensors library reads, in bytes."""


def limit(memory: int, seconds: int, written: int) -> bool:
    """Limit this process for good: bytes of memory, seconds of CPU time, bytes written, no new files.

    Returns False where the system has no such limits: then the caller's timeout ends the process, and the pickle still
    cannot run code.
    """
    for encoding in ("cp437", "raw-unicode-escape"):  # codecs, loaded while files can be opened
        "".encode(encoding)
    if resource is None:
        return False
    limits = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # the soft limit comes first: its signal names the reason
        resource.RLIMIT_FSIZE: (written, written),
        resource.RLIMIT_NPROC: (0, 0),
        resource.RLIMIT_NOFILE: (3, 3),  # standard input, output and error: no other file, no connection
    }
    if sys.platform != "darwin":  # macOS counts shared memory that nobody uses, and refuses this limit
        limits[resource.RLIMIT_AS] = (memory, memory)
    for what, values in limits.items():
        most = resource.getrlimit(what)[1]
        soft, hard = (value if most == resource.RLIM_INFINITY else min(value, most) for value in values)
        resource.setrlimit(what, (soft, hard))
    return True


def state_dict(checkpoint: Checkpoint, key: str = "") -> tuple[dict[str, Tensor], list[str], str]:
    """Find the state dict of a checkpoint: (its tensors by name, the remaining content, its key).

    Args:
        checkpoint: the unpickled content.
        key: dotted path of the state dict, or a prefix of the wanted tensors' names; "" searches.

    Raises RefusedError: no state dict, or several of which none has a usual name.
    """
    if checkpoint.layout == "torchscript":
        if key:
            raise RefusedError("is a TorchScript module, which has no keys", "", "leave out --key")
        return *_module_tensors(checkpoint.content), ""
    _check_zero(checkpoint.content)
    start, rest = _followed(checkpoint.content, key)
    content, path, dropped = _opened(start, key.removesuffix(rest).rstrip("."))
    if not isinstance(content, dict):
        raise RefusedError("holds no state dict", f"names and tensors, also under {', '.join(WRAPPERS)}")
    found = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    beside = dropped + [f"{path}." * bool(path) + str(name) for name in content if name not in found]
    if rest:
        chosen = {name.removeprefix(f"{rest}."): value for name, value in found.items() if name.startswith(f"{rest}.")}
        if not chosen:
            names = ", ".join(map(printable, _holders(checkpoint.content))) or "none"
            raise RefusedError(f"has no tensors under {printable(key)}", f"names that hold tensors: {names}")
        return chosen, beside + [name for name in found if not name.startswith(f"{rest}.")], key
    if "param_shapes" in _mapping(checkpoint.content) and any(not tensor.count for tensor in found.values()):
        raise RefusedError("its parameters are spread over the shards of DeepSpeed (ZeRO stage 3)", "", ZERO_SHARD_HINT)
    return found, beside, path


def _mapping(value: object) -> dict[object, object]:
    return value if isinstance(value, dict) else {}


def _check_zero(content: object) -> None:
    """Raise RefusedError for a shard of DeepSpeed's optimizer, and for averages without names."""
    parts = _mapping(content)
    optimizer = _mapping(parts.get("optimizer_state_dict"))
    if not parts.keys() & set(WRAPPERS) and {"zero_stage", "partition_count"} & optimizer.keys():
        found = "is one shard of DeepSpeed's optimizer (ZeRO), no model"
        raise RefusedError(found, "mp_rank_00_model_states.pt beside it", ZERO_SHARD_HINT)
    if "shadow_params" in parts and not any(isinstance(value, dict | Tensor) for value in parts.values()):
        raise RefusedError(
            "holds averaged parameters in a list (shadow_params), without names",
            "names and tensors",
            "put them into the model with the program that wrote them, and save its state_dict",
        )


def _followed(content: object, key: str) -> tuple[object, str]:
    """Follow a dotted key into nested dicts: (the innermost value reached, the unused rest of the key)."""
    while key:
        parts = _mapping(content)
        names = [name for name in parts if isinstance(name, str) and f"{key}.".startswith(f"{name}.")]
        inner = max(names, key=len, default=None)
        if inner is None or not isinstance(parts[inner], dict):
            return content, key
        content, key = parts[inner], key.removeprefix(inner).removeprefix(".")
    return content, ""


def _opened(content: object, path: str) -> tuple[object, str, list[str]]:
    """Unwrap a trainer's checkpoint: (state dict, its path, the remaining content)."""
    dropped: list[str] = []
    for _ in range(MAX_DEPTH):
        if not isinstance(content, dict):
            break
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            if any(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
                break
            inner = _only(_holders(content))
        if inner is None:
            break
        dropped += [f"{path}." * bool(path) + str(key) for key in content if key != inner]
        content, path = content[inner], f"{path}.{inner}" if path else inner
    return content, path, dropped


def _holders(content: object, depth: int = 4) -> list[str]:
    """List the keys of one level that hold a state dict, directly or nested."""
    return [
        name
        for name, value in _mapping(content).items()
        if isinstance(name, str) and isinstance(value, dict) and not NO_MODEL.search(name) and _holds(value, depth)
    ]


def _holds(content: dict[object, object], depth: int) -> bool:
    if any(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return True
    return depth > 0 and bool(_holders(content, depth - 1))


def _only(names: list[str]) -> str | None:
    """Choose the model's key, averaged weights only as a last resort. Raises RefusedError for several."""
    plain = [name for name in names if not AVERAGED.search(name)] or names
    if len(plain) > 1:
        found = f"holds several state dicts: {', '.join(map(printable, names[:12]))}"
        raise RefusedError(found, "one", "name the one you want with --key")
    return plain[0] if plain else None


def _module_tensors(content: object) -> tuple[dict[str, Tensor], list[str]]:
    """Collect the tensors of a TorchScript module under the names of its state_dict()."""
    found: dict[str, Tensor] = {}
    dropped: list[str] = []
    ahead: list[tuple[str, object, int]] = [("", content, 0)]
    for count in itertools.count():
        if not ahead:
            return found, dropped
        prefix, module, depth = ahead.pop()
        if not isinstance(module, Holder) or count > MAX_MODULES or depth > MAX_DEPTH:
            raise RefusedError("its module tree is missing, endless or too deep", "the archive of a TorchScript module")
        for key, value in module.fields.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{key}"] = value
            elif isinstance(value, Holder) and value.name.startswith("__torch__."):
                ahead.append((f"{prefix}{key}.", value, depth + 1))
            elif value is not None and key not in MODULE_FLAGS:
                dropped.append(f"{prefix}{key}")
    raise AssertionError


def check(file: BinaryIO, checkpoint: Checkpoint, tensors: dict[str, Tensor], size: int) -> None:
    """Check the tensors: printable names, total size plausible for the file, checksums. Raises RefusedError."""
    if not tensors:
        raise RefusedError("holds no tensors under names", f"names and tensors, also under {', '.join(WRAPPERS)}")
    for name in tensors:
        if name == "__metadata__" or not name.isprintable():  # includes lone surrogates
            raise RefusedError(f"a tensor is named {printable(name)}", "printable names")
    total = sum(tensor.count * BYTES[tensor.dtype] for tensor in tensors.values())
    if total > 4 * size:
        reason = f"its tensors would take {printable(str(total))} bytes, more than four times its {size}"
        raise RefusedError(reason, "tensors with little shared storage: each is written out in full")
    for key, storage in {tensor.storage.key: tensor.storage for tensor in tensors.values()}.items():
        if key in checkpoint.sums:
            found = 0
            for piece in chunks(file, checkpoint.places[key], storage.size):
                found = zlib.crc32(piece, found)
            if found != checkpoint.sums[key]:
                reason = f"the storage {printable(key)} is damaged: another checksum"
                raise RefusedError(reason, "", "copy the file again")


def write(
    file: BinaryIO, places: dict[str, int], tensors: dict[str, Tensor], output: BinaryIO, settings: dict[str, object]
) -> dict[str, str]:
    """Write the safetensors file: 8 bytes length, JSON header, then the tensors one after the other.

    Returns: name -> type of every tensor, as written.
    """
    wide = settings["float32"] is True
    floats = ("F16", "BF16", "F64")
    types = {name: "F32" if wide and tensor.dtype in floats else tensor.dtype for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-BYTES[types[name]], name))  # so every tensor is aligned
    header: dict[str, object] = {"__metadata__": settings["metadata"]}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].count * BYTES[types[name]]
        header[name] = {"dtype": types[name], "shape": tensors[name].shape, "data_offsets": (start, end)}
    digests = dict.fromkeys((REST, *order), "0" * 64)
    digests[REST] = hashlib.sha256(json.dumps(settings["metadata"], sort_keys=True).encode()).hexdigest()
    head = _header(header, digests)
    if len(head) > MAX_HEADER_BYTES:
        raise RefusedError(f"its names and shapes take {len(head)} bytes", f"at most {MAX_HEADER_BYTES}")
    output.write(struct.pack("<Q", len(head)) + head)
    for name in order:
        digest = hashlib.sha256(f"{TORCH[types[name]]} {list(tensors[name].shape)} ".encode())
        for piece in _bytes(file, places[tensors[name].storage.key], tensors[name]):
            numbers = piece if types[name] == tensors[name].dtype else _float32(piece, tensors[name].dtype)
            digest.update(numbers)
            output.write(numbers)
        digests[name] = digest.hexdigest()
    output.seek(8)
    output.write(_header(header, digests))  # as long as before
    output.flush()
    return types


def _header(header: dict[str, object], digests: dict[str, str]) -> bytes:
    """Build the JSON header with the SHA-256 of all tensors, in the form of `storage`."""
    metadata = {**dict(header["__metadata__"]), DIGESTS: json.dumps(digests)}  # type: ignore[call-overload]  # a dict
    head = json.dumps({**header, "__metadata__": metadata}, separators=(",", ":")).encode()
    return head + b" " * (-len(head) % 8)


def _bytes(file: BinaryIO, place: int, tensor: Tensor) -> Iterator[bytes | bytearray | memoryview]:
    """Yield a tensor's data in row-major order, in chunks of whole elements."""
    size = BYTES[tensor.dtype]
    start = place + tensor.offset * size
    axes = [axis for axis in range(len(tensor.shape)) if tensor.shape[axis] != 1]
    dense = math.prod(tensor.shape)
    plain = {axis: math.prod(tensor.shape[axis + 1 :]) for axis in axes}
    if not dense or all(tensor.strides[axis] == plain[axis] for axis in axes):
        yield from chunks(file, start, dense * size)
        return
    source = _numbers(bytearray().join(chunks(file, start, tensor.span * size)), size)
    target = _numbers(bytearray(dense * size), size)
    longest = max(axes, key=lambda axis: tensor.shape[axis])
    rest = [axis for axis in axes if axis != longest]
    n, source_step, target_step = tensor.shape[longest], tensor.strides[longest], plain[longest]
    for index in itertools.product(*(range(tensor.shape[axis]) for axis in rest)):
        source_at = sum(i * tensor.strides[axis] for i, axis in zip(index, rest, strict=True))
        target_at = sum(i * plain[axis] for i, axis in zip(index, rest, strict=True))
        if source_step:
            row = source[source_at : source_at + (n - 1) * source_step + 1 : source_step]
            target[target_at : target_at + (n - 1) * target_step + 1 : target_step] = row
        else:
            for i in range(n):
                target[target_at + i * target_step] = source[source_at]
    yield target.cast("B")


def _numbers(data: bytearray, size: int) -> memoryview[int]:
    """View bytes as unsigned integers of `size` bytes."""
    return memoryview(data).cast("B" if size == 1 else "H" if size == 2 else "I" if size == 4 else "Q")


def _float32(piece: bytes | bytearray | memoryview, dtype: str) -> bytes:
    """Convert a chunk of another float type to little-endian float32."""
    if dtype == "BF16":  # the upper half of a float32
        wide = bytearray(2 * len(piece))
        wide[2::4], wide[3::4] = piece[0::2], piece[1::2]
        return bytes(wide)
    count, letter = len(piece) // BYTES[dtype], "e" if dtype == "F16" else "d"
    parts = [
        array.array("f", struct.unpack_from(f"<{min(65536, count - i)}{letter}", piece, i * BYTES[dtype]))
        for i in range(0, count, 65536)
    ]
    return b"".join(part.tobytes() for part in parts)


def convert(settings: dict[str, object]) -> dict[str, object]:
    """Convert standard input to standard output; returns the report. Raises RefusedError, MemoryError, OSError."""
    file, output = sys.stdin.buffer, sys.stdout.buffer
    size = os.fstat(file.fileno()).st_size
    checkpoint = read_checkpoint(file, size)
    tensors, dropped, key = state_dict(checkpoint, str(settings.get("key", "")))
    check(file, checkpoint, tensors, size)
    types = write(file, checkpoint.places, tensors, output, settings)
    more = [f"and {len(dropped) - MAX_LISTED} more"] if len(dropped) > MAX_LISTED else []
    return {
        "layout": checkpoint.layout,
        "key": printable(key),
        "tensors": len(tensors),
        "parameters": sum(tensor.count for tensor in tensors.values()),
        "dtypes": dict(sorted(Counter(types.values()).items())),
        "dropped": [printable(name) for name in dropped[:MAX_LISTED]] + more,
        "globals": sorted(checkpoint.globals)[:MAX_LISTED],
    }


def main() -> None:
    """Run with the settings of the last argument: memory (bytes), seconds, written (bytes), float32, key, metadata."""
    settings = json.loads(sys.argv[-1])
    limit(settings["memory"], settings["seconds"], settings["written"])
    report: dict[str, object]
    try:
        report = convert(settings)
    except RefusedError as error:
        report = {"refused": list(error.args)}
    except MemoryError:
        os.write(2, OUT_OF_MEMORY)
        os._exit(0)
    except RecursionError:
        report = {"refused": ["cannot be read: it is nested too deep", "a checkpoint that torch.save wrote", ""]}
    except OSError as error:
        report = {"errno": error.errno}
    os.write(2, json.dumps(report).encode())
    os._exit(0)  # exit at once: no second flush of unwritable output, no deep recursive deallocation
