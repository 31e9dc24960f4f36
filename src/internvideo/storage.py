"""Files that are never half written, and the only place that writes and reads weights.

A reader of a folder sees the old file or the new one, also after a crash or on a full disk.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from internvideo.errors import RunError, WeightsError

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""How torch's files are called and how they begin."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it becomes `path`, otherwise it is removed.

    The content reaches the disk (fsync) before the name does. Missing folders are made.

    Raises:
        RunError: the disk is full or the folder cannot be written; an earlier file of that name is untouched.
    """
    final = Path(path)
    # The process id keeps two writers apart; the suffix stays, because some writers choose the format by it.
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.partial{final.suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(final)
        _sync(final.parent)
    except OSError as error:
        raise RunError(
            final,
            f"cannot be written: {error.strerror or error}",
            "",
            "free space or choose another folder, then resume",
        ) from error
    finally:
        with suppress(OSError):  # gone already, or its folder could not be made
            temporary.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically, file names that are none as `errors.as_text` shows them. Raises RunError."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors and text metadata as one safetensors file, atomically.

    Tensors of any device and layout; two names of one storage are written twice.

    Raises:
        RunError: the disk is full or the folder cannot be written; an earlier file is kept.
    """
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        storage = flat.untyped_storage().data_ptr()
        plain[name] = flat.clone() if storage in seen else flat  # the format knows no shared storages
        seen.add(storage)
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata=dict(metadata or {}))
        except SafetensorError as error:  # its text carries the operating system's reason
            raise OSError(str(error)) from error


def read_safetensors(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file.

    Raises:
        WeightsError: no such file, or not a whole safetensors file.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(file, "no such file", "a .safetensors file", "check the path")
    try:
        with safe_open(file, framework="pt", device=str(device)) as handle:
            names: list[str] = list(handle.keys())
            return {name: handle.get_tensor(name) for name in names}, dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> WeightsError:
    """The reason in words: torch's own files are pickles, which run what they say, and are never opened here."""
    with suppress(OSError), file.open("rb") as handle:
        if file.suffix in PICKLES or handle.read(4) in PICKLE_STARTS:
            names = shlex.join([str(file), "-o", str(file.with_suffix(".safetensors"))])
            return WeightsError(
                file, "no safetensors file but a pickle", "a .safetensors file", f"run: internvideo convert {names}"
            )
    return WeightsError(file, f"cannot be read: {error}", "a whole .safetensors file", "copy it again")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text metadata alone, without reading a tensor. Raises WeightsError as `read_safetensors`."""
    file = Path(path)
    if not file.is_file():
        raise WeightsError(file, "no such file", "a .safetensors file", "check the path")
    try:
        with safe_open(file, framework="pt") as handle:
            return dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
