"""Convert checkpoints of other programs to safetensors without executing code from them.

A .pth, .pt, .bin or .ckpt file is a pickle, and unpickling may run any code. Here a sandboxed subprocess reads it as
data (unpickle.py) and writes the tensors as a safetensors file; a manifest is written beside it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from internvideo import __version__, untrusted
from internvideo.errors import WeightsError
from internvideo.storage import atomic_path, read_metadata, read_safetensors, write_safetensors, write_text
from internvideo.weights.fetch import sha256_of
from internvideo.weights.layouts import OVERRIDES

PROGRAM = "import sys; sys.path.append(sys.argv[1]); from internvideo.weights.unpickle import main; main()"
PICKLE_SUFFIXES = ".pth, .pt, .bin or .ckpt"


@dataclass(frozen=True)
class Conversion:
    """Report of a conversion, also written as the manifest.

    Attributes:
        layout: "zip", "torchscript" or "legacy" of a torch checkpoint; "safetensors" if only settings or tensors were
            added to such a file.
        key: key of the state dict in the source, "" for none.
        tensors, parameters: number of tensors, and total number of their elements.
        dtypes: safetensors dtype -> number of tensors.
        dropped: names of other content of the source.
        globals: globals that the pickle refers to, all of them allowed.
    """

    source: Path
    output: Path
    manifest: Path
    source_sha256: str
    output_sha256: str
    layout: str
    key: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    dropped: list[str]
    globals: list[str]


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    memory_gb: float = 4.0,
    seconds: int = 600,
    float32: bool = False,
    key: str = "",
    overrides: Mapping[str, object] | None = None,
    add: str | os.PathLike[str] | None = None,
) -> Conversion:
    """Convert a torch checkpoint to safetensors, in a subprocess and without executing code from the file.

    Args:
        source: file written by torch.save or torch.jit.save.
        output: the .safetensors file; by default beside the source. Its manifest has the same name with .json.
        memory_gb: memory limit of the subprocess, in 10^9 bytes; tensors are streamed, so 0.5 suffices for most files.
        seconds: time limit of the subprocess.
        float32: convert half and double precision to float32; by default every tensor keeps its dtype.
        key: dotted path of the state dict to take ("model_ema"); "" searches for it.
        overrides: model settings that cannot be derived from its tensors, such as heads, nested as in `create_model`;
            they are stored in the file, and `internvideo.load` builds the model with them.
        add: if `source` is a .safetensors file: a second one, whose tensors replace those of the same name or are
            added (some models are published as changes to the weights of another one).

    Raises:
        WeightsError: not a checkpoint, a damaged one, or a pickle that refers to more than tensors. Nothing is written.
        RunError: the output cannot be written.
    """
    source = Path(source)
    output = source.with_suffix(".safetensors") if output is None else Path(output)
    if output.suffix != ".safetensors":
        raise WeightsError(output, "the output has another ending", ".safetensors", "change --output")
    if add is not None and source.suffix != ".safetensors":
        raise WeightsError(source, "--add needs a converted source", ".safetensors", "convert both files, then add")
    inputs = [source, *([] if add is None else [Path(add)])]
    if (overrides or add is not None) and output.resolve() in [path.resolve() for path in inputs]:
        raise WeightsError(output, "would be replaced", "another file", "name one with --output")
    manifest = output.with_suffix(".json")
    if manifest.exists() and not _is_manifest(manifest):
        found = "would be overwritten by the manifest of the conversion, but is no such manifest"
        raise WeightsError(manifest, found, "", "change --output")
    if source.is_dir() and any(source.glob("*.distcp")):
        command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {source} FILE.pth"
        found, hint = "is a distributed checkpoint, whose tensors are sharded", f"run {command}, and convert that"
        raise WeightsError(source, found, "one file", hint)
    if not source.is_file():
        found = "is a folder" if source.is_dir() else "is not a regular file" if source.exists() else "no such file"
        raise WeightsError(source, found, f"a {PICKLE_SUFFIXES} file")
    if source.suffix == ".safetensors" and not overrides and add is None:
        read_metadata(source)
        hint = "use it as it is; only settings (--set) or tensors (--add) are added to such a file"
        raise WeightsError(source, "is a safetensors file already: nothing to convert", "", hint)
    try:
        file = source.open("rb")
    except OSError as error:
        raise WeightsError(source, f"cannot be read: {error.strerror}", f"a {PICKLE_SUFFIXES} file") from error
    with file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        metadata = {"format": "pt", "source": ascii(source.name)[1:-1], "source_sha256": digest}
        if overrides:
            metadata[OVERRIDES] = json.dumps(overrides)
        if source.suffix == ".safetensors":
            report = _copy_with_changes(source, output, metadata, None if add is None else Path(add))
        else:
            settings: dict[str, Any] = {"max_memory_bytes": int(memory_gb * 1e9), "max_cpu_seconds": seconds}
            settings |= {"max_output_bytes": 8 * source.stat().st_size + (1 << 27)}
            settings |= {"float32": float32, "key": key, "metadata": metadata}
            with atomic_path(output) as temporary:
                with temporary.open("wb") as target:
                    report = _run_subprocess(file, target, settings, source)
                read_metadata(temporary)  # checks that the safetensors library reads the header
    conversion = Conversion(source, output, manifest, digest, sha256_of(output), **report)
    record = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(conversion).items()}
    record |= {"program": f"internvideo {__version__}", "date": datetime.now(UTC).isoformat(timespec="seconds")}
    write_text(manifest, json.dumps(record, indent=2) + "\n")
    return conversion


def _copy_with_changes(source: Path, output: Path, metadata: dict[str, str], add: Path | None) -> dict[str, Any]:
    """Copy a safetensors file with additional metadata, and the tensors of `add`. Raises WeightsError.

    Returns: the fields of `Conversion` from `layout` on.
    """
    state, source_metadata = read_safetensors(source)
    if add is not None:
        changes, _ = read_safetensors(add)
        if not changes.keys() & state.keys():
            raise WeightsError(add, f"shares no tensor name with {source}", "changed tensors of that model")
        for name in sorted(changes.keys() & state.keys()):
            if changes[name].shape != state[name].shape:
                found, expected = (str(tuple(of[name].shape)) for of in (changes, state))
                raise WeightsError(add, f"{name}: mis-shaped: {found}", f"{expected}, as in {source}")
        state |= changes
        metadata |= {"added": ascii(add.name)[1:-1], "added_sha256": sha256_of(add)}
    write_safetensors(output, state, {**source_metadata, **metadata})
    types = Counter(str(value.dtype).removeprefix("torch.") for value in state.values())
    numel = sum(value.numel() for value in state.values())
    report = {"layout": "safetensors", "key": "", "tensors": len(state), "parameters": numel}
    return {**report, "dtypes": dict(types), "dropped": [], "globals": []}


def _is_manifest(path: Path) -> bool:
    """Return whether a file is the manifest of an earlier conversion."""
    try:
        content = untrusted.read_json(path, untrusted.MAX_SETTINGS_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"source_sha256", "output_sha256"} <= content.keys()


WINDOWS_VARIABLES = ("SYSTEMROOT",)
"""Environment variables that a Python process needs on Windows."""


def _run_subprocess(file: BinaryIO, target: BinaryIO, settings: dict[str, Any], source: Path) -> dict[str, Any]:
    """Run the subprocess and return its report. Raises WeightsError, or OSError if the disk is full."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-I", "-S", "-B", "-c", PROGRAM, str(root), json.dumps(settings)]
    seconds = settings["max_cpu_seconds"]
    hint = "if you trust the file, give it more with --seconds"
    timeout_error = WeightsError(source, f"took longer than {seconds} s to read", "", hint)
    try:
        process = subprocess.run(
            command,
            stdin=file,
            stdout=target,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in WINDOWS_VARIABLES if name in os.environ},
            cwd="/",
            timeout=seconds + 1,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise timeout_error from error
    if hasattr(signal, "SIGXCPU") and process.returncode == -signal.SIGXCPU:
        raise timeout_error
    expected = f"a {PICKLE_SUFFIXES} file"
    try:
        report: dict[str, Any] = untrusted.parse_json(process.stderr)
    except ValueError as error:
        found = f"cannot be read: the reading process ended with {process.returncode}"
        raise WeightsError(source, found, expected) from error
    if "refused" in report:
        raise WeightsError(source, *report["refused"])
    if "memory" in report:
        found = f"needs more than {settings['max_memory_bytes'] / 1e9:g} GB to read"
        raise WeightsError(source, found, "", "if you trust the file, give it more with --memory")
    if report.get("errno") in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # of the output
        raise OSError(report["errno"], os.strerror(report["errno"]))
    if "errno" in report:
        raise WeightsError(source, f"cannot be read: {os.strerror(report['errno'])}", expected)
    return report
