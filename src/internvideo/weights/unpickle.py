"""Sandboxed subprocess of `internvideo convert`: reads a torch checkpoint, writes safetensors.

Standard input is the checkpoint, standard output the safetensors file, standard error the report (JSON); settings are
the last argument (JSON). Before it reads the first byte, the process limits its memory, its CPU time and the size of
its output, and gives up the right to open files or connections and to start processes. Why nothing in the file can
run: see untrusted_pickle.py. Standard library only: torch and NumPy are not loaded.
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
except ImportError:  # absent on Windows: `limit_process` returns False there
    resource = None  # type: ignore[assignment]  # typed as a module

from internvideo.untrusted_pickle import DTYPES, ITEM_BYTES, ObjectStub, RefusedError, Tensor, printable
from internvideo.weights.torch_archive import Checkpoint, read_checkpoint, read_chunks

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module")
"""Keys searched for a state dict, in this order, before any other key."""
AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?|avg|shadow)(_|$)")
NOT_A_MODEL = re.compile(
    r"optim|sched|scaler|^amp$|rng|loops?$|callback|hyper|^args?$|config|meta|history", re.IGNORECASE
)
"""Patterns of keys: of averaged weights; of other content than models, although it may hold tensors."""
ZERO_SHARD_HINT = "run zero_to_fp32.py, which DeepSpeed wrote into the folder above, and convert the file that it makes"
MODULE_FLAGS = ("training", "_is_full_backward_hook")
MAX_MODULES, MAX_DEPTH, MAX_LISTED = 100_000, 64, 200
OUT_OF_MEMORY = b'{"memory": true}'  # allocated before reading, because after a MemoryError nothing can be
DIGESTS, METADATA_DIGEST = "internvideo_sha256", "__metadata__"
"""Copies of the constants of `storage`, which this process does not import."""
TORCH_DTYPES = {ours: theirs for theirs, ours in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
"""Largest JSON header that the safetensors library reads, in bytes."""


def limit_process(max_memory_bytes: int, max_cpu_seconds: int, max_output_bytes: int) -> bool:
    """Limit the memory, CPU time and output of this process for good, and forbid new files and processes.

    Returns False on a system without such limits: then only the timeout of the parent process limits this one, and the
    pickle still cannot run code.
    """
    for encoding in ("cp437", "raw-unicode-escape"):  # load the codecs while files can still be opened
        "".encode(encoding)
    if resource is None:
        return False
    limits = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_CPU: (max_cpu_seconds, max_cpu_seconds + 1),  # SIGXCPU at the soft limit, then SIGKILL
        resource.RLIMIT_FSIZE: (max_output_bytes, max_output_bytes),
        resource.RLIMIT_NPROC: (0, 0),
        resource.RLIMIT_NOFILE: (3, 3),  # standard input, output and error: no other file, no connection
    }
    if sys.platform != "darwin":  # macOS counts the shared system libraries too, and refuses this limit
        limits[resource.RLIMIT_AS] = (max_memory_bytes, max_memory_bytes)
    for kind, values in limits.items():
        current = resource.getrlimit(kind)[1]
        soft, hard = (value if current == resource.RLIM_INFINITY else min(value, current) for value in values)
        resource.setrlimit(kind, (soft, hard))
    return True


def find_state_dict(checkpoint: Checkpoint, key: str = "") -> tuple[dict[str, Tensor], list[str], str]:
    """Find the state dict of a checkpoint; return (name -> tensor, names of the remaining content, key).

    Args:
        checkpoint: the decoded file.
        key: dotted path of the state dict, or a prefix of the names of the tensors to take; "" searches.

    Raises RefusedError: no state dict, or several of which none has a key of WRAPPERS.
    """
    if checkpoint.layout == "torchscript":
        if key:
            raise RefusedError("is a TorchScript module, which has no keys", "", "leave out --key")
        return *_module_tensors(checkpoint.content), ""
    _refuse_deepspeed_shards(checkpoint.content)
    start, prefix = _follow_key(checkpoint.content, key)
    content, path, dropped = _unwrap(start, key.removesuffix(prefix).rstrip("."))
    if not isinstance(content, dict):
        raise RefusedError("holds no state dict", f"names and tensors, also under {', '.join(WRAPPERS)}")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    dropped += [f"{path}." * bool(path) + str(name) for name in content if name not in tensors]
    if prefix:
        start_ = f"{prefix}."
        selected = {name.removeprefix(start_): value for name, value in tensors.items() if name.startswith(start_)}
        if not selected:
            names = ", ".join(map(printable, _state_dict_keys(checkpoint.content))) or "none"
            raise RefusedError(f"has no tensors under {printable(key)}", f"names that hold tensors: {names}")
        return selected, dropped + [name for name in tensors if not name.startswith(start_)], key
    if "param_shapes" in _mapping(checkpoint.content) and any(not tensor.numel for tensor in tensors.values()):
        raise RefusedError("its parameters are spread over the shards of DeepSpeed (ZeRO stage 3)", "", ZERO_SHARD_HINT)
    return tensors, dropped, path


def _mapping(value: object) -> dict[object, object]:
    return value if isinstance(value, dict) else {}


def _refuse_deepspeed_shards(content: object) -> None:
    """Raise RefusedError for a shard of DeepSpeed's optimizer, and for EMA parameters in a list without names."""
    entries = _mapping(content)
    optimizer = _mapping(entries.get("optimizer_state_dict"))
    if not entries.keys() & set(WRAPPERS) and {"zero_stage", "partition_count"} & optimizer.keys():
        found = "is one shard of DeepSpeed's optimizer (ZeRO), no model"
        raise RefusedError(found, "mp_rank_00_model_states.pt beside it", ZERO_SHARD_HINT)
    if "shadow_params" in entries and not any(isinstance(value, dict | Tensor) for value in entries.values()):
        raise RefusedError(
            "holds averaged parameters in a list (shadow_params), without names",
            "names and tensors",
            "put them into the model with the program that wrote them, and save its state_dict",
        )


def _follow_key(content: object, key: str) -> tuple[object, str]:
    """Follow a dotted key into nested dicts; return the innermost dict and the remaining end of the key."""
    while key:
        entries = _mapping(content)
        names = [name for name in entries if isinstance(name, str) and f"{key}.".startswith(f"{name}.")]
        inner = max(names, key=len, default=None)
        if inner is None or not isinstance(entries[inner], dict):
            return content, key
        content, key = entries[inner], key.removeprefix(inner).removeprefix(".")
    return content, ""


def _unwrap(content: object, path: str) -> tuple[object, str, list[str]]:
    """Unwrap the checkpoint of a training program; return (state dict, its path, names of the remaining content)."""
    dropped: list[str] = []
    for _ in range(MAX_DEPTH):
        if not isinstance(content, dict):
            break
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            if any(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
                break
            inner = _choose_key(_state_dict_keys(content))
        if inner is None:
            break
        dropped += [f"{path}." * bool(path) + str(key) for key in content if key != inner]
        content, path = content[inner], f"{path}.{inner}" if path else inner
    return content, path, dropped


def _state_dict_keys(content: object, depth: int = 4) -> list[str]:
    """List the keys of a mapping under which a state dict lies, at most `depth` levels deeper."""
    return [
        name
        for name, value in _mapping(content).items()
        if isinstance(name, str)
        and isinstance(value, dict)
        and not NOT_A_MODEL.search(name)
        and _has_tensors(value, depth)
    ]


def _has_tensors(content: dict[object, object], depth: int) -> bool:
    if any(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return True
    return depth > 0 and bool(_state_dict_keys(content, depth - 1))


def _choose_key(names: list[str]) -> str | None:
    """Return the key of the model; averaged weights only if there are no others. Raises RefusedError for several."""
    candidates = [name for name in names if not AVERAGED.search(name)] or names
    if len(candidates) > 1:
        found = f"holds several state dicts: {', '.join(map(printable, names[:12]))}"
        raise RefusedError(found, "one", "name the one you want with --key")
    return candidates[0] if candidates else None


def _module_tensors(content: object) -> tuple[dict[str, Tensor], list[str]]:
    """Collect the tensors of a TorchScript module under the names of its state_dict()."""
    tensors: dict[str, Tensor] = {}
    dropped: list[str] = []
    stack: list[tuple[str, object, int]] = [("", content, 0)]
    for num_modules in itertools.count():
        if not stack:
            return tensors, dropped
        prefix, module, depth = stack.pop()
        if not isinstance(module, ObjectStub) or num_modules > MAX_MODULES or depth > MAX_DEPTH:
            raise RefusedError("its module tree is missing, endless or too deep", "the archive of a TorchScript module")
        for key, value in module.fields.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{key}"] = value
            elif isinstance(value, ObjectStub) and value.name.startswith("__torch__."):
                stack.append((f"{prefix}{key}.", value, depth + 1))
            elif value is not None and key not in MODULE_FLAGS:
                dropped.append(f"{prefix}{key}")
    raise AssertionError


def check_tensors(file: BinaryIO, checkpoint: Checkpoint, tensors: dict[str, Tensor], size: int) -> None:
    """Check names (printable), total size (at most 4 times that of the file) and checksums. Raises RefusedError."""
    if not tensors:
        raise RefusedError("holds no tensors under names", f"names and tensors, also under {', '.join(WRAPPERS)}")
    for name in tensors:
        if name == "__metadata__" or not name.isprintable():  # includes lone surrogates
            raise RefusedError(f"a tensor is named {printable(name)}", "printable names")
    total = sum(tensor.numel * ITEM_BYTES[tensor.dtype] for tensor in tensors.values())
    if total > 4 * size:
        reason = f"its tensors would take {printable(str(total))} bytes, more than four times its {size}"
        raise RefusedError(reason, "tensors with little shared storage: each is written out in full")
    for key, storage in {tensor.storage.key: tensor.storage for tensor in tensors.values()}.items():
        if key in checkpoint.crc32:
            crc32 = 0
            for chunk in read_chunks(file, checkpoint.offsets[key], storage.size):
                crc32 = zlib.crc32(chunk, crc32)
            if crc32 != checkpoint.crc32[key]:
                reason = f"the storage {printable(key)} is damaged: another checksum"
                raise RefusedError(reason, "", "copy the file again")


def write(
    file: BinaryIO, offsets: dict[str, int], tensors: dict[str, Tensor], output: BinaryIO, settings: dict[str, object]
) -> dict[str, str]:
    """Write the safetensors file: 8 bytes length, JSON header, then the tensors one after the other.

    With settings["float32"], F16, BF16 and F64 (rounded) are written as F32.

    Returns: name -> dtype of every tensor, as written.
    """
    converted = ("F16", "BF16", "F64") if settings["float32"] is True else ()
    types = {name: "F32" if tensor.dtype in converted else tensor.dtype for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[types[name]], name))  # large elements first: all are aligned
    header: dict[str, object] = {"__metadata__": settings["metadata"]}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel * ITEM_BYTES[types[name]]
        header[name] = {"dtype": types[name], "shape": tensors[name].shape, "data_offsets": (start, end)}
    digests = dict.fromkeys((METADATA_DIGEST, *order), "0" * 64)
    digests[METADATA_DIGEST] = hashlib.sha256(json.dumps(settings["metadata"], sort_keys=True).encode()).hexdigest()
    encoded = _encode_header(header, digests)
    if len(encoded) > MAX_HEADER_BYTES:
        raise RefusedError(f"its names and shapes take {len(encoded)} bytes", f"at most {MAX_HEADER_BYTES}")
    output.write(struct.pack("<Q", len(encoded)) + encoded)
    for name in order:
        digest = hashlib.sha256(f"{TORCH_DTYPES[types[name]]} {list(tensors[name].shape)} ".encode())
        for chunk in _read_tensor(file, offsets[tensors[name].storage.key], tensors[name]):
            elements = chunk if types[name] == tensors[name].dtype else _to_float32(chunk, tensors[name].dtype)
            digest.update(elements)
            output.write(elements)
        digests[name] = digest.hexdigest()
    output.seek(8)
    output.write(_encode_header(header, digests))  # has the same length with the actual digests
    output.flush()
    return types


def _encode_header(header: dict[str, object], digests: dict[str, str]) -> bytes:
    """Encode the JSON header with the SHA-256 of all tensors, in the format of `storage`."""
    metadata = {**dict(header["__metadata__"]), DIGESTS: json.dumps(digests)}  # type: ignore[call-overload]  # a dict
    encoded = json.dumps({**header, "__metadata__": metadata}, separators=(",", ":")).encode()
    return encoded + b" " * (-len(encoded) % 8)


def _read_tensor(file: BinaryIO, offset: int, tensor: Tensor) -> Iterator[bytes | bytearray | memoryview]:
    """Yield the data of a tensor in row-major order, in chunks of complete elements.

    Args:
        file: the checkpoint. offset: of the storage in the file, in bytes. tensor: of any strides.
    """
    size, numel = ITEM_BYTES[tensor.dtype], tensor.numel
    start = offset + tensor.offset * size
    axes = [axis for axis in range(len(tensor.shape)) if tensor.shape[axis] != 1]
    contiguous_strides = {axis: math.prod(tensor.shape[axis + 1 :]) for axis in axes}
    if not numel or all(tensor.strides[axis] == contiguous_strides[axis] for axis in axes):
        yield from read_chunks(file, start, numel * size)
        return
    source = _as_integers(bytearray().join(read_chunks(file, start, tensor.span * size)), size)
    target = _as_integers(bytearray(numel * size), size)
    longest = max(axes, key=lambda axis: tensor.shape[axis])
    other_axes = [axis for axis in axes if axis != longest]
    n, source_stride, target_stride = tensor.shape[longest], tensor.strides[longest], contiguous_strides[longest]
    for index in itertools.product(*(range(tensor.shape[axis]) for axis in other_axes)):
        source_start = sum(i * tensor.strides[axis] for i, axis in zip(index, other_axes, strict=True))
        target_start = sum(i * contiguous_strides[axis] for i, axis in zip(index, other_axes, strict=True))
        if source_stride:
            row = source[source_start : source_start + (n - 1) * source_stride + 1 : source_stride]
            target[target_start : target_start + (n - 1) * target_stride + 1 : target_stride] = row
        else:
            for i in range(n):
                target[target_start + i * target_stride] = source[source_start]
    yield target.cast("B")


def _as_integers(data: bytearray, size: int) -> memoryview[int]:
    """View bytes as unsigned integers of `size` bytes."""
    return memoryview(data).cast("B" if size == 1 else "H" if size == 2 else "I" if size == 4 else "Q")


def _to_float32(chunk: bytes | bytearray | memoryview, dtype: str) -> bytes:
    """Convert a chunk of BF16, F16 or F64 (rounded) to little-endian float32."""
    if dtype == "BF16":  # the upper half of a float32
        values = bytearray(2 * len(chunk))
        values[2::4], values[3::4] = chunk[0::2], chunk[1::2]
        return bytes(values)
    numel, code = len(chunk) // ITEM_BYTES[dtype], "e" if dtype == "F16" else "d"
    blocks = [
        array.array("f", struct.unpack_from(f"<{min(65536, numel - i)}{code}", chunk, i * ITEM_BYTES[dtype]))
        for i in range(0, numel, 65536)
    ]
    return b"".join(block.tobytes() for block in blocks)


def convert(settings: dict[str, object]) -> dict[str, object]:
    """Convert standard input to standard output; return the report. Raises RefusedError, MemoryError, OSError."""
    file, output = sys.stdin.buffer, sys.stdout.buffer
    size = os.fstat(file.fileno()).st_size
    checkpoint = read_checkpoint(file, size)
    tensors, dropped, key = find_state_dict(checkpoint, str(settings.get("key", "")))
    check_tensors(file, checkpoint, tensors, size)
    types = write(file, checkpoint.offsets, tensors, output, settings)
    more = [f"and {len(dropped) - MAX_LISTED} more"] if len(dropped) > MAX_LISTED else []
    return {
        "layout": checkpoint.layout,
        "key": printable(key),
        "tensors": len(tensors),
        "parameters": sum(tensor.numel for tensor in tensors.values()),
        "dtypes": dict(sorted(Counter(types.values()).items())),
        "dropped": [printable(name) for name in dropped[:MAX_LISTED]] + more,
        "globals": sorted(checkpoint.globals)[:MAX_LISTED],
    }


def main() -> None:
    """Run with the settings of the last argument: the arguments of `limit_process`, float32, key, metadata."""
    settings = json.loads(sys.argv[-1])
    limit_process(settings["max_memory_bytes"], settings["max_cpu_seconds"], settings["max_output_bytes"])
    report: dict[str, object]
    try:
        report = convert(settings)
    except RefusedError as error:
        report = {"refused": list(error.args)}
    except MemoryError:
        os.write(2, OUT_OF_MEMORY)
        os._exit(0)
    except RecursionError:
        report = {"refused": ["cannot be read: it is nested too deeply", "a checkpoint that torch.save wrote", ""]}
    except OSError as error:
        report = {"errno": error.errno}
    os.write(2, json.dumps(report).encode())
    os._exit(0)  # exit at once: no second flush of unwritable output, no deep recursive deallocation
