"""Atomic file writing, folder locks, and the only functions that write and read weights.

A reader sees the old file or the new one, also after a crash or on a full disk. Weights carry the SHA-256 of every
tensor, which every read verifies.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from internvideo.errors import RunError, WeightsError, unwritable
from internvideo.system import lock, sync
from internvideo.terminal import LOGGER
from internvideo.untrusted import parse_json, parse_json_entry
from internvideo.untrusted_arrays import safetensors_metadata

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""First bytes of torch's pickle files."""
DIGESTS = "internvideo_sha256"
"""Metadata key of a JSON object: name of a tensor -> SHA-256, and METADATA_DIGEST -> SHA-256 of the other metadata."""
METADATA_DIGEST = "__metadata__"
"""The safetensors format reserves this name, so no tensor has it."""
LOCK_FILE = ".writing"
"""Lock file in a folder that a process writes."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` if the block ends without error, else removed.

    The content is synced to disk (fsync) before the rename. Missing folders are created. Permissions follow the umask,
    whatever the writer in the block sets.
    Raises RunError: the disk is full or the folder cannot be written; an earlier file of that name is untouched.
    """
    final = Path(path)
    # The process id makes the name unique per writer; the suffix stays, because some libraries choose the format by it.
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.partial{final.suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode_of_new(temporary)
        yield temporary
        temporary.chmod(mode)
        sync(temporary)
        temporary.replace(final)
        sync(final.parent)
    except OSError as error:
        raise unwritable(final, error, "free space or choose another folder, then resume") from error
    finally:
        with suppress(OSError):  # gone already, or its folder could not be made
            temporary.unlink()


def _mode_of_new(path: Path) -> int:
    """Return the permissions of a new file; reading the umask itself would disturb other threads."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    path.unlink()
    return mode


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically; undecodable file names as in `errors.as_text`. Raises RunError."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


_LOCK_HANDLES: dict[Path, int] = {}
"""Folder locked by this process -> file descriptor of its lock file."""


def _drop_inherited_locks() -> None:
    """Close the lock files in a forked child, which would keep the locks of a parent that has ended."""
    for handle in _LOCK_HANDLES.values():
        os.close(handle)
    _LOCK_HANDLES.clear()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_drop_inherited_locks)


@contextmanager
def folder_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a folder against writers of other processes. It is created if absent, and removed if left empty.

    The lock is the operating system's, so it ends with this process in any case. A nested block of the same process
    and folder does nothing. File systems without locks give a warning on stderr.
    Raises RunError: another process writes there, or the folder cannot be written.
    """
    path = Path(os.path.realpath(folder))
    if path in _LOCK_HANDLES:
        yield
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        _LOCK_HANDLES[path] = _open_locked(path / LOCK_FILE)
    except BlockingIOError as error:
        with suppress(OSError):
            owner = (path / LOCK_FILE).read_text(encoding="utf-8").strip() or "another process"
            expected = "one writing process at a time"
            raise RunError(folder, f"{owner} writes there", expected, "wait, or choose another folder") from error
        raise RunError(folder, "another process wrote there until now", "", "start again") from error
    except OSError as error:
        raise unwritable(folder, error, "free space or choose another folder") from error
    try:
        yield
    finally:
        with suppress(OSError):
            (path / LOCK_FILE).unlink()  # before unlocking, so that no process waits for a deleted file
        os.close(_LOCK_HANDLES.pop(path))
        with suppress(OSError):
            if os.name == "nt":
                (path / LOCK_FILE).unlink()  # an open file cannot be removed there
        with suppress(OSError):
            path.rmdir()


def _open_locked(file: Path) -> int:
    """Open and lock a file; return its descriptor. Raises BlockingIOError if another process has the lock."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(handle)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(handle)
                raise
            LOGGER.warning(f"{file.parent}: no locks on this file system, two writers would go unnoticed")
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)  # its owner removed it between the calls of `open` and `lock`
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} of {socket.gethostname()}\n".encode())
    return handle


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors and text metadata as one safetensors file, atomically, with their SHA-256.

    Tensors may have any device and layout; storage that several tensors share is written once for each of them.
    Raises RunError: the disk is full or the folder cannot be written; an earlier file is kept.
    """
    storages: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        contiguous = tensor.detach().cpu().contiguous()
        storage = contiguous.untyped_storage().data_ptr()
        plain[name] = contiguous.clone() if storage in storages else contiguous  # safetensors refuses shared storage
        storages.add(storage)
    texts = {name: text for name, text in (metadata or {}).items() if name != DIGESTS}
    texts[DIGESTS] = json.dumps({METADATA_DIGEST: _text_digest(texts), **_digests(plain)})
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata=texts)
        except SafetensorError as error:  # `atomic_path` reports an OSError with its text, the system's reason
            raise OSError(str(error)) from error


def _text_digest(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode()).hexdigest()


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Hash dtype, shape and content of contiguous tensors on the CPU with SHA-256, by name."""
    if sum(tensor.nbytes for tensor in tensors.values()) < 2**20:
        return {name: _digest(tensor) for name, tensor in tensors.items()}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        return dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _verify_digests(
    file: Path, metadata: dict[str, str], tensors: Mapping[str, Tensor] | None = None
) -> dict[str, str]:
    """Verify the digests, if any, and return the metadata without them.

    Raises WeightsError: the metadata or a tensor differs from its digest.
    """
    if DIGESTS not in metadata:
        return metadata
    texts = {name: text for name, text in metadata.items() if name != DIGESTS}
    digests = {METADATA_DIGEST: _text_digest(texts), **_digests(tensors or {})}
    try:
        expected = dict(parse_json(metadata[DIGESTS]))
    except (ValueError, TypeError, RecursionError) as error:
        raise _damage_error(file, "the list of SHA-256") from error
    mismatches = [name for name in digests if digests[name] != expected.get(name)]
    mismatches += sorted(expected.keys() - digests.keys()) if tensors is not None else []
    if mismatches:
        more = f" and {len(mismatches) - 1} more" if len(mismatches) > 1 else ""
        first = mismatches[0]
        raise _damage_error(file, "the metadata" if first == METADATA_DIGEST else f"tensor '{first}'{more}")
    return texts


def _damage_error(file: Path, what: str) -> WeightsError:
    found = f"damaged: {what} has another SHA-256 than when it was written"
    hint = f"copy it again; if you changed it on purpose, remove the metadata '{DIGESTS}'"
    return WeightsError(file, found, "the file as it was written", hint)


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file.

    Raises WeightsError: no such file, an incomplete safetensors file, or content that differs from its digest.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(file, "no such file", "a .safetensors file", "check the path")
    try:
        metadata = safetensors_metadata(file)
        with safe_open(file, framework="pt") as handle:
            names: list[str] = list(handle.keys())
            tensors = {name: handle.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _unreadable_error(file, error) from error
    return tensors, _verify_digests(file, metadata, tensors)


def class_names(metadata: Mapping[str, str], where: object) -> tuple[str, ...]:
    """Read the class names from weights' metadata, () if absent. Raises WeightsError."""
    names = parse_json_entry(metadata, "classes", where, WeightsError, "a list of names", "[]")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WeightsError(where, "its metadata 'classes' is not a list of names", "a list of names")
    return tuple(names)


def _unreadable_error(file: Path, error: Exception) -> WeightsError:
    """Return the error for an unreadable file; a pickle can run code and is never opened."""
    with suppress(OSError), file.open("rb") as handle:
        if file.suffix in PICKLE_SUFFIXES or handle.read(4) in PICKLE_MAGIC:
            names = shlex.join([str(file), "-o", str(file.with_suffix(".safetensors"))])
            hint = f"run: internvideo convert {names}"
            return WeightsError(file, "a pickle, not a safetensors file", "a .safetensors file", hint)
    return WeightsError(file, f"cannot be read: {error}", "a complete .safetensors file", "copy it again")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the text metadata without the tensors. Raises WeightsError as `read_safetensors`."""
    file = Path(path)
    if not file.is_file():
        raise WeightsError(file, "no such file", "a .safetensors file", "check the path")
    try:
        metadata = safetensors_metadata(file)
        with safe_open(file, framework="pt"):  # it checks the offsets of the tensors
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable_error(file, error) from error
    return _verify_digests(file, metadata)
