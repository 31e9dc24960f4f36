"""Distributed asynchronous checkpoints: every process writes its shard as safetensors while training continues.

A folder `step-N` contains the files of torch's distributed checkpoint (safetensors, no pickles) and `checkpoint.json`
with the SHA-256 of each. The latter is written last, so a folder without it is incomplete. Any number of processes can
read a checkpoint.
"""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from internvideo import distributed, untrusted
from internvideo.errors import RecipeError, RunError, WeightsError
from internvideo.storage import write_text
from internvideo.untrusted_arrays import safetensors_metadata
from internvideo.weights.fetch import sha256_of

INDEX = "checkpoint.json"
DAMAGED = "damaged: its SHA-256 is not the one in checkpoint.json"


class Writer:
    """Write checkpoints in the background, one at a time. Collective: every process creates a writer and calls it."""

    def __init__(self) -> None:
        try:
            from torch.distributed.checkpoint import hf_storage
            from torch.distributed.checkpoint.api import CheckpointException
            from torch.distributed.checkpoint.state_dict_saver import async_save
        except ImportError as error:
            found = f"checkpoints of sharded models need a newer torch than {torch.__version__}"
            raise RecipeError("loop.parallel", found, "ddp", "pip install -U torch") from error
        self._storage, self._failure, self._save = hf_storage, CheckpointException, async_save
        self._group = dist.new_group(backend="gloo")  # separate from the collectives of the training
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._path = Path()

    def write(
        self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], on_complete: Callable[[], None]
    ) -> None:
        """Copy the tensors to the host and write them in the background; at the end rank 0 calls `on_complete`.

        Raises:
            RunError: the preceding checkpoint could not be written.
        """
        self.finish()
        self._path = path
        distributed.on_rank_zero(lambda: _make_empty_folder(path))
        writer = self._storage.HuggingFaceStorageWriter(str(path), save_distributed=True)
        try:
            copied: Any = self._save(dict(tensors), storage_writer=writer, process_group=self._group)
        except (OSError, RuntimeError, self._failure) as error:
            raise _write_error(path, error) from error
        self._thread = threading.Thread(
            target=self._commit, args=(path, dict(metadata), copied, on_complete), daemon=True
        )
        self._thread.start()

    def _commit(
        self, path: Path, metadata: dict[str, Any], copied: Future[Any], on_complete: Callable[[], None]
    ) -> None:
        gathered: list[dict[str, str] | None] = [None] * dist.get_world_size(self._group)
        digests: dict[str, str] | None = None
        try:
            copied.result()
            digests = {file.name: sha256_of(file) for file in path.glob(f"shard-{distributed.rank() + 1:05d}-*")}
        except Exception as error:  # raised by `finish`
            self._error = error
        try:
            dist.all_gather_object(gathered, digests, group=self._group)
            if distributed.rank() == 0 and all(of_rank is not None for of_rank in gathered):
                files = {name: digest for of_rank in gathered for name, digest in sorted((of_rank or {}).items())}
                write_text(path / INDEX, json.dumps({**metadata, "files": files}))
                on_complete()
        except Exception as error:  # as above
            self._error = self._error or error

    def finish(self) -> None:
        """Wait for the checkpoint that is being written. Raises RunError in every process if any process failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        distributed.raise_on_all_ranks(None if error is None else _write_error(self._path, error))


def _write_error(path: Path, error: BaseException) -> RunError:
    reason = str(error).strip().splitlines()
    hint = "free space or choose another folder, then resume"
    return RunError(path, f"cannot be written: {reason[-1] if reason else type(error).__name__}", "", hint)


def _make_empty_folder(path: Path) -> None:
    """Create the folder of a checkpoint, and delete the files of a killed session in it."""
    try:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    except OSError as error:
        raise _write_error(path, error) from error


def is_finished(path: Path) -> bool:
    """Return whether a folder is a complete checkpoint."""
    return (path / INDEX).is_file()


def read_index(path: Path) -> dict[str, Any]:
    """Read checkpoint.json. Raises WeightsError."""
    try:
        index = dict(untrusted.read_json(path / INDEX, finite=False))
        if not all(isinstance(name, str) and Path(name).name == name for name in dict(index["files"])):
            raise ValueError("it names files of other folders")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(path / INDEX, f"cannot be read: {error}", "an intact file", "copy it again") from error
    return index


def verify(path: Path) -> None:
    """Compare the SHA-256 of the files with checkpoint.json; each process checks some. Raises WeightsError."""
    files: dict[str, str] = read_index(path)["files"]
    names = sorted(files)
    for name in names[distributed.rank() :: distributed.world_size()]:
        try:
            found = sha256_of(path / name)
            safetensors_metadata(path / name)  # checks the limits of untrusted files
        except (OSError, ValueError) as error:
            raise WeightsError(path / name, f"cannot be read: {error}", "an intact file", "copy it again") from error
        if found != files[name]:
            raise WeightsError(path / name, DAMAGED, "an intact file", "copy it again")
    if unlisted := sorted(file.name for file in path.glob("*.safetensors") if file.name not in files):
        raise WeightsError(path / unlisted[0], "is not a file of this checkpoint", "", "remove it")


def tensor_shapes(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of every tensor in a checkpoint, by name."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    stored: dict[str, Any] = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    return {name: (entry.size, entry.properties.dtype) for name, entry in stored.items()}


def read(path: Path, tensors: dict[str, Tensor], *, no_dist: bool = False) -> None:
    """Read tensors, DTensors included, in place by name.

    Collective, unless `no_dist`: then one process reads alone.

    Raises:
        WeightsError: the checkpoint cannot be read.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # with no_dist
            load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=no_dist)
    except (OSError, ValueError, RuntimeError, CheckpointException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise WeightsError(path, f"cannot be read: {reason}", "an intact checkpoint", "copy it again") from error


def read_full_tensors(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Read the tensors whose names start with one of the prefixes, unsharded, in one process. Raises WeightsError."""
    stored = tensor_shapes(path)
    tensors = {n: torch.empty(size, dtype=dtype) for n, (size, dtype) in stored.items() if n.startswith(prefixes)}
    read(path, tensors, no_dist=True)
    return tensors
