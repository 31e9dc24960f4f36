"""Convert checkpoints of other programs to safetensors without executing code from them.

A .pth, .pt, .bin or .ckpt file is a pickle, and unpickling runs what the file says. Here another process reads it as
data (unpickle.py), and only tensors come back, as a safetensors file with a manifest beside it.
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
PICKLES = ".pth, .pt, .bin or .ckpt"


@dataclass(frozen=True)
class Conversion:
    """Report of a conversion, also written as the manifest.

    Attributes:
        layout: "zip", "torchscript", "legacy", or "safetensors" that settings or tensors were added to.
        key: key of the state dict in the source, "" for none.
        tensors, parameters: number of tensors, and of numbers in them.
        dtypes: safetensors dtype -> number of tensors.
        dropped: names of other content of the source.
        globals: globals that the pickle refers to; all of them are allowed ones.
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
    """Convert a torch checkpoint to safetensors, in another process and without executing code from it.

    Args:
        source: file written by torch.save or torch.jit.save.
        output: the .safetensors file; by default beside the source. Its manifest has the same name with .json.
        memory_gb: memory limit of the process; tensors are streamed, so a few hundred MB suffice for most files.
        seconds: time limit.
        float32: convert half and double precision to float32; by default every tensor keeps its dtype.
        key: dotted path of the state dict to take ("model_ema"); "" searches for the model's own.
        overrides: model settings that cannot be derived from its tensors, such as heads, nested as in `create_model`;
            they are stored in the file, and `internvideo.load` builds the model with them.
        add: a second .safetensors file, whose tensors replace those of the same name in `source`, which is one too:
            what a training changed and published without the rest.

    Raises:
        WeightsError: not a checkpoint, a damaged one, or one with other globals than tensors. Nothing is written.
        RunError: the output cannot be written.
    """
    source = Path(source)
    output = source.with_suffix(".safetensors") if output is None else Path(output)
    if output.suffix != ".safetensors":
        raise WeightsError(output, "the output has another ending", ".safetensors", "change --output")
    if add is not None and source.suffix != ".safetensors":
        raise WeightsError(source, "a file to add to is converted first", ".safetensors", "convert both, then add")
    inputs = [source, *([] if add is None else [Path(add)])]
    if (overrides or add is not None) and output.resolve() in [path.resolve() for path in inputs]:
        raise WeightsError(output, "would be replaced", "another file", "name one with --output")
    manifest = output.with_suffix(".json")
    if manifest.exists() and not _is_manifest(manifest):
        found = "would be replaced by the manifest of the conversion, and is something else"
        raise WeightsError(manifest, found, "", "change --output")
    if source.is_dir() and any(source.glob("*.distcp")):
        command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {source} FILE.pth"
        found, hint = "is a distributed checkpoint, whose tensors are sharded", f"run {command}, and convert that"
        raise WeightsError(source, found, "one file", hint)
    if not source.is_file():
        odd = "is a folder" if source.is_dir() else "is no ordinary file" if source.exists() else "no such file"
        raise WeightsError(source, odd, f"a {PICKLES} file")
    if source.suffix == ".safetensors" and not overrides and add is None:
        read_metadata(source)
        hint = "use it as it is; only settings (--set) or tensors (--add) are added to such a file"
        raise WeightsError(source, "is a safetensors file already: nothing to convert", "", hint)
    try:
        file = source.open("rb")
    except OSError as error:
        raise WeightsError(source, f"cannot be read: {error.strerror}", f"a {PICKLES} file") from error
    with file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        metadata = {"format": "pt", "source": ascii(source.name)[1:-1], "source_sha256": digest}
        if overrides:
            metadata[OVERRIDES] = json.dumps(overrides)
        if source.suffix == ".safetensors":
            report = _with_more(source, output, metadata, None if add is None else Path(add))
        else:
            written = 8 * source.stat().st_size + (1 << 27)
            settings: dict[str, Any] = {"memory": int(memory_gb * 1e9), "seconds": seconds, "written": written}
            settings |= {"float32": float32, "key": key, "metadata": metadata}
            with atomic_path(output) as temporary:
                with temporary.open("wb") as target:
                    report = _run(file, target, settings, source)
                read_metadata(temporary)  # the library itself reads the header
    conversion = Conversion(source, output, manifest, digest, sha256_of(output), **report)
    record = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(conversion).items()}
    record |= {"program": f"internvideo {__version__}", "date": datetime.now(UTC).isoformat(timespec="seconds")}
    write_text(manifest, json.dumps(record, indent=2) + "\n")
    return conversion


def _with_more(source: Path, output: Path, metadata: dict[str, str], add: Path | None) -> dict[str, Any]:
    """Copy the tensors of a safetensors file with further metadata and tensors. Raises WeightsError.

    Returns: the remaining fields of `Conversion`.
    """
    state, own_metadata = read_safetensors(source)
    if add is not None:
        changed, _ = read_safetensors(add)
        if not changed.keys() & state.keys():
            raise WeightsError(add, f"no tensor has a name that {source} has", "changes to that model")
        for name in sorted(changed.keys() & state.keys()):
            if changed[name].shape != state[name].shape:
                found, expected = (str(tuple(of[name].shape)) for of in (changed, state))
                raise WeightsError(add, f"{name}: mis-shaped: {found}", f"{expected}, as in {source}")
        state |= changed
        metadata |= {"added": ascii(add.name)[1:-1], "added_sha256": sha256_of(add)}
    write_safetensors(output, state, {**own_metadata, **metadata})
    types = Counter(str(value.dtype).removeprefix("torch.") for value in state.values())
    numbers = sum(value.numel() for value in state.values())
    report = {"layout": "safetensors", "key": "", "tensors": len(state), "parameters": numbers}
    return {**report, "dtypes": dict(types), "dropped": [], "globals": []}


def _is_manifest(path: Path) -> bool:
    """Return whether a file is the manifest of an earlier conversion."""
    try:
        content = untrusted.read_json(path, untrusted.MAX_SETTINGS_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"source_sha256", "output_sha256"} <= content.keys()


NEEDED = ("SYSTEMROOT",)
"""Environment variables that a Python process needs on Windows."""


def _run(file: BinaryIO, target: BinaryIO, settings: dict[str, Any], source: Path) -> dict[str, Any]:
    """Start the process and wait for its report. Raises WeightsError, or OSError if the disk is full."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-I", "-S", "-B", "-c", PROGRAM, str(root), json.dumps(settings)]
    hint = "if you trust the file, give it more with --seconds"
    slow = WeightsError(source, f"took longer than {settings['seconds']} s to read", "", hint)
    try:
        done = subprocess.run(
            command,
            stdin=file,
            stdout=target,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in NEEDED if name in os.environ},
            cwd="/",
            timeout=settings["seconds"] + 1,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise slow from error
    if hasattr(signal, "SIGXCPU") and done.returncode == -signal.SIGXCPU:
        raise slow
    kind = f"a {PICKLES} file"
    try:
        report: dict[str, Any] = untrusted.parse_json(done.stderr)
    except ValueError as error:
        found = f"cannot be read: the reading process ended with {done.returncode}"
        raise WeightsError(source, found, kind) from error
    if "refused" in report:
        raise WeightsError(source, *report["refused"])
    if "memory" in report:
        found = f"needs more than {settings['memory'] / 1e9:g} GB to read"
        raise WeightsError(source, found, "", "if you trust the file, give it more with --memory")
    if report.get("errno") in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # of the output
        raise OSError(report["errno"], os.strerror(report["errno"]))
    if "errno" in report:
        raise WeightsError(source, f"cannot be read: {os.strerror(report['errno'])}", kind)
    return report
