"""Distributed asynchronous checkpoints: every process writes its shard as safetensors while training goes on.

A folder `step-N` holds the files of torch's distributed checkpoint (its safetensors format, no pickles) and, written
last, `checkpoint.json` with the SHA-256 of each: a folder without it was not finished. Any number of processes can
read it.
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
DAMAGED = "damaged: it has another SHA-256 than when it was written"


class Writer:
    """Write checkpoints in the background, one at a time. Collective: every process creates and calls one."""

    def __init__(self) -> None:
        try:
            from torch.distributed.checkpoint import hf_storage
            from torch.distributed.checkpoint.api import CheckpointException
            from torch.distributed.checkpoint.state_dict_saver import async_save
        except ImportError as error:
            found = f"checkpoints of divided models need a newer torch than {torch.__version__}"
            raise RecipeError("loop.parallel", found, "ddp", "pip install -U torch") from error
        self._storage, self._failure, self._save = hf_storage, CheckpointException, async_save
        self._group = dist.new_group(backend="gloo")  # separate from the collectives of the training
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._path = Path()

    def write(
        self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], then: Callable[[], None]
    ) -> None:
        """Copy the tensors to the host and write them in the background; at the end the first process calls `then`.

        Raises:
            RunError: the checkpoint before this one could not be written.
        """
        self.finish()
        self._path = path
        distributed.on_rank_zero(lambda: _empty(path))
        writer = self._storage.HuggingFaceStorageWriter(str(path), save_distributed=True)
        try:
            copied: Any = self._save(dict(tensors), storage_writer=writer, process_group=self._group)
        except (OSError, RuntimeError, self._failure) as error:
            raise _unwritable(path, error) from error
        self._thread = threading.Thread(target=self._commit, args=(path, dict(metadata), copied, then), daemon=True)
        self._thread.start()

    def _commit(self, path: Path, metadata: dict[str, Any], copied: Future[Any], then: Callable[[], None]) -> None:
        digests: list[dict[str, str] | None] = [None] * dist.get_world_size(self._group)
        own: dict[str, str] | None = None
        try:
            copied.result()
            number = f"shard-{distributed.rank() + 1:05d}-"
            own = {file.name: sha256_of(file) for file in sorted(path.glob(f"{number}*"))}
        except Exception as error:  # raised by `finish`
            self._error = error
        try:
            dist.all_gather_object(digests, own, group=self._group)
            if distributed.rank() == 0 and all(part is not None for part in digests):
                files = {name: value for part in digests for name, value in (part or {}).items()}
                write_text(path / INDEX, json.dumps({**metadata, "files": files}))
                then()
        except Exception as error:  # as above
            self._error = self._error or error

    def finish(self) -> None:
        """Wait for the checkpoint that is being written. Raises RunError in every process where one failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        distributed.raise_on_all_ranks(None if error is None else _unwritable(self._path, error))


def _unwritable(path: Path, error: BaseException) -> RunError:
    reason = str(error).strip().splitlines()
    hint = "free space or choose another folder, then resume"
    return RunError(path, f"cannot be written: {reason[-1] if reason else type(error).__name__}", "", hint)


def _empty(path: Path) -> None:
    """Create the folder of a checkpoint without the files of a killed session."""
    try:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def is_finished(path: Path) -> bool:
    """Return whether a folder is a complete checkpoint."""
    return (path / INDEX).is_file()


def read_index(path: Path) -> dict[str, Any]:
    """Read checkpoint.json. Raises WeightsError."""
    try:
        index = dict(untrusted.read_json(path / INDEX, finite=False))
        if not all(isinstance(name, str) and Path(name).name == name for name in dict(index["files"])):
            raise ValueError("files of other folders")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(path / INDEX, f"cannot be read: {error}", "as it was written", "copy it again") from error
    return index


def check(path: Path) -> None:
    """Compare this process's share of the files with their SHA-256. Raises WeightsError."""
    files: dict[str, str] = read_index(path)["files"]
    names = sorted(files)
    for name in names[distributed.rank() :: distributed.world_size()]:
        try:
            found = sha256_of(path / name)
            safetensors_metadata(path / name)  # within the limits of files that others wrote
        except (OSError, ValueError) as error:
            raise WeightsError(path / name, f"cannot be read: {error}", "a whole file", "copy it again") from error
        if found != files[name]:
            raise WeightsError(path / name, DAMAGED, "the file as it was written", "copy it again")
    if unlisted := sorted(file.name for file in path.glob("*.safetensors") if file.name not in files):
        raise WeightsError(path / unlisted[0], "is not a file of this checkpoint", "", "remove it")


def shapes(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of every tensor in a checkpoint, by name."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    stored: dict[str, Any] = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    return {name: (entry.size, entry.properties.dtype) for name, entry in stored.items()}


def read(path: Path, tensors: dict[str, Tensor], *, alone: bool = False) -> None:
    """Fill tensors, divided or whole, by name. Collective, unless one process reads `alone`. Raises WeightsError."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # where one process reads alone
            load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=alone)
    except (OSError, ValueError, RuntimeError, CheckpointException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise WeightsError(path, f"cannot be read: {reason}", "a whole one", "copy it again") from error


def read_whole(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Read the whole tensors whose names start with one of the prefixes, in one process. Raises WeightsError."""
    stored = shapes(path)
    tensors = {n: torch.empty(size, dtype=dtype) for n, (size, dtype) in stored.items() if n.startswith(prefixes)}
    read(path, tensors, alone=True)
    return tensors
