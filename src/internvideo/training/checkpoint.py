"""Checkpoints for bit-exact resume on the same machine: one safetensors file, or a folder with a shard per process.

Names of the tensors:
    model/NAME            stage.state_dict()
    ema/NAME              moving averages of the trainable parameters
    optimizer/NAME/KEY    optimizer state of parameter NAME
    random/RANK/KIND      RNG states of each process: cpu, cuda, stage, numpy
    history/losses        loss of every step so far, float64
The metadata key "internvideo" is JSON: format, step, epoch, position, seconds, clips, processes, recipe, torch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from internvideo import distributed, untrusted
from internvideo.errors import RunError, WeightsError
from internvideo.storage import read_safetensors, write_safetensors
from internvideo.terminal import LOGGER
from internvideo.training import sharded_checkpoint
from internvideo.training.ema import Ema
from internvideo.training.run_folder import CHECKPOINT_FOLDER, checkpoints
from internvideo.training.run_folder import init_run_dir as init_run_dir
from internvideo.training.run_folder import newest as newest
from internvideo.training.sharding import shard_like
from internvideo.weights.state import match_scalar_shapes

FORMAT = 1


@dataclass
class RunState:
    """Mutable state of a run.

    Attributes:
        stage, optimizer, ema, generator: objects whose state is saved.
        step: number of optimizer steps made.
        epoch, position: epoch and batch index of the next batch.
        losses: loss of every step.
        seconds, clips: training time without interruptions, and number of clips, over all processes.
        batches_per_step: batches per process and optimizer step, with `loop.global_batch_size`; None without it.
    """

    stage: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    generator: torch.Generator
    step: int = 0
    epoch: int = 0
    position: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    clips: float = 0.0
    batches_per_step: int | None = None


class Saver:
    """Write the checkpoints of a run; those of a sharded stage in the background, one shard per process."""

    def __init__(self, *, sharded: bool) -> None:
        self._writer = sharded_checkpoint.Writer() if sharded else None

    def save(self, folder: Path, state: RunState, recipe: Mapping[str, Any], max_to_keep: int) -> Path:
        """Write a checkpoint as `save`; for a sharded stage return before it is complete."""
        if self._writer is None:
            return save(folder, state, recipe, max_to_keep)
        path = folder / CHECKPOINT_FOLDER / f"step-{state.step:08d}"
        tensors = _tensors(state, [])
        rng_states = {
            f"random/{distributed.rank()}/{kind}": value for kind, value in _rng_states(state.generator).items()
        }
        self._writer.write(
            path, {**tensors, **rng_states}, _metadata(state, recipe), lambda: _prune(folder, max_to_keep)
        )
        return path

    def finish(self) -> None:
        """Wait until the last checkpoint is complete. Raises RunError if it could not be written."""
        if self._writer is not None:
            self._writer.finish()


def _prune(folder: Path, max_to_keep: int) -> None:
    for old in checkpoints(folder)[:-max_to_keep]:
        if old.is_dir():
            (old / sharded_checkpoint.INDEX).unlink()  # first: without it the folder does not count as a checkpoint
            shutil.rmtree(old)
        else:
            old.unlink()


def save(folder: Path, state: RunState, recipe: Mapping[str, Any], max_to_keep: int) -> Path:
    """Write the checkpoint of this step and delete all but the newest `max_to_keep`.

    Collective: all processes must call it; rank 0 writes.

    Raises:
        RunError: the disk is full or the folder is not writable; earlier checkpoints are kept.
    """
    path = folder / CHECKPOINT_FOLDER / f"step-{state.step:08d}.safetensors"
    random = distributed.all_gather_objects(_rng_states(state.generator))
    error: RunError | None = None
    if distributed.rank() == 0:
        try:
            write_safetensors(path, _tensors(state, random), {"internvideo": json.dumps(_metadata(state, recipe))})
            _prune(folder, max_to_keep)
        except RunError as found:
            error = found
    distributed.raise_on_all_ranks(error)
    return path


def resume(folder: Path, state: RunState) -> Path | None:
    """Load the newest intact checkpoint of an initialized run folder into `state`.

    Corrupt checkpoints are reported on stderr and renamed. Collective: all processes load the same checkpoint, of
    those that rank 0 lists.

    Returns:
        The path of the checkpoint; None if the folder has none.

    Raises:
        RunError: the checkpoint was written by another number of processes.
        WeightsError: every checkpoint is corrupt, or the checkpoint is of another stage.
    """
    damaged: list[Path] = []
    names: list[str] = distributed.all_gather_objects([path.name for path in checkpoints(folder)])[0]
    for name in reversed(names):
        path, failure = folder / CHECKPOINT_FOLDER / name, ""
        _check_shared(path)
        loaded: tuple[dict[str, Tensor], dict[str, str]] | None = None
        try:
            if path.is_dir():
                sharded_checkpoint.verify(path)
            else:
                loaded = read_safetensors(path)
        except WeightsError as error:
            failure = str(error)
        failures = [text for text in distributed.all_gather_objects(failure) if text]
        if not failures:
            distributed.on_rank_zero(lambda: _rename_damaged(damaged))
            if loaded is None:
                _load_sharded(path, state)
            else:
                _load_state(path, loaded[0], _read_metadata(path, loaded[1]), state)
            return path
        if distributed.rank() == 0:
            LOGGER.warning(f"{failures[0]}; resuming from the checkpoint before it")
        damaged.append(path)
    if damaged:
        where, hint = folder / CHECKPOINT_FOLDER, "copy one again, or choose another output folder"
        raise WeightsError(where, f"none of {len(damaged)} checkpoints can be read", "an intact one", hint)
    return None


def _check_shared(path: Path) -> None:
    """Raise RunError in every process if only some of them see the checkpoint: then they do not share the folder."""
    exists = distributed.all_gather_objects(path.exists())
    if not all(exists):
        missing = ", ".join(str(rank) for rank, present in enumerate(exists) if not present)
        found = f"exists for process 0, but not for process {missing}"
        raise RunError(path, found, "one folder that all processes share", "give a folder on a shared file system")


def _rename_damaged(damaged: list[Path]) -> None:
    for path in damaged:
        try:
            path.rename(path.with_suffix(".damaged"))
        except OSError as error:
            found = f"cannot be renamed: {error.strerror or error}"
            raise RunError(path, found, "", "remove it, then resume") from error


def _load_sharded(path: Path, state: RunState) -> None:
    """Load this process's shard of the state from a checkpoint that any number of processes wrote."""
    targets: dict[str, dict[str, Tensor]] = {
        "model": state.stage.state_dict(),
        "ema": {} if state.ema is None else state.ema.averages,
        "optimizer": {name: parameter.detach() for name, parameter in state.stage.named_parameters()},
    }
    tensors: dict[str, Tensor] = {}
    for name, (size, dtype) in sharded_checkpoint.tensor_shapes(path).items():
        kind, _, rest = name.partition("/")
        target = targets.get(kind, {}).get(rest.rpartition("/")[0] if kind == "optimizer" else rest)
        of_other_rank = kind == "random" and rest.partition("/")[0] not in (str(distributed.rank()), "0")
        if of_other_rank or (kind == "ema" and target is None):
            continue
        if target is not None and target.shape == size:
            tensors[name] = torch.zeros_like(target, dtype=dtype)
        else:
            tensors[name] = torch.zeros(size, dtype=dtype)
    sharded_checkpoint.read(path, tensors)
    _load_state(path, tensors, sharded_checkpoint.read_index(path), state)


def _load_state(path: Path, tensors: Mapping[str, Tensor], saved: Mapping[str, Any], state: RunState) -> None:
    _check_processes(path, saved, state)
    _load_stage(path, state.stage, strip_prefix(tensors, "model"))
    _load_optimizer(state, strip_prefix(tensors, "optimizer"))
    if state.ema is not None:
        averages = strip_prefix(tensors, "ema")  # earlier versions also saved averages of frozen parameters
        averages = shard_like(state.ema.averages, match_scalar_shapes(state.ema.averages, averages))
        state.ema.load({name: averages[name] for name in state.ema.averages if name in averages})
    random = strip_prefix(tensors, f"random/{distributed.rank()}")
    if random:
        _set_rng_states(state.generator, random)
    else:  # a process that the saved run did not have: seeded anew, but for the generator that all processes share
        state.generator.set_state(tensors["random/0/stage"])
    state.losses = tensors["history/losses"].tolist()
    state.step, state.epoch, state.position = saved["step"], saved["epoch"], saved["position"]
    if state.batches_per_step is not None and saved.get("batches_per_step"):
        state.position = saved["position"] // saved["batches_per_step"] * state.batches_per_step
    state.seconds, state.clips = saved["seconds"], saved["clips"]


def _check_processes(path: Path, saved: Mapping[str, Any], state: RunState) -> None:
    """Raise RunError if the number of processes has changed in a run without a fixed global batch size."""
    fixed_batch = state.batches_per_step is not None and saved.get("batches_per_step")
    if saved["processes"] != distributed.world_size() and not fixed_batch:
        found = f"written by {saved['processes']} processes, now there are {distributed.world_size()}"
        hint = "start torchrun with the same number; runs with loop.global_batch_size may be resumed with another"
        raise RunError(path, found, "the same number, because the data is divided among them", hint)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the stage's state dict from a checkpoint, with the moving averages in place of their parameters.

    Raises:
        WeightsError: not a checkpoint.
    """
    if path.is_dir():
        sharded_checkpoint.read_index(path)
        tensors = sharded_checkpoint.read_full_tensors(path, ("model/", "ema/"))
    else:
        tensors, metadata = read_safetensors(path)
        _read_metadata(path, metadata)
    weights, averages = strip_prefix(tensors, "model"), strip_prefix(tensors, "ema")
    return {name: averages[name].to(tensor.dtype) if name in averages else tensor for name, tensor in weights.items()}


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix/`, without that prefix."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + "/")}


def _tensors(state: RunState, random: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in state.stage.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in state.ema.averages.items()}
    for name, parameter in state.stage.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = value
    for rank, states in enumerate(random):
        tensors |= {f"random/{rank}/{kind}": tensor for kind, tensor in states.items()}
    tensors["history/losses"] = torch.tensor(state.losses, dtype=torch.float64)
    return tensors


def _metadata(state: RunState, recipe: Mapping[str, Any]) -> dict[str, Any]:
    counters = ("step", "epoch", "position", "seconds", "clips", "batches_per_step")
    return {
        "format": FORMAT,
        **{name: getattr(state, name) for name in counters},
        "processes": distributed.world_size(),
        "torch": torch.__version__,
        "recipe": untrusted.parse_json(json.dumps(recipe, default=str), finite=False),
    }


def _read_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = untrusted.parse_json(metadata["internvideo"], finite=False)
        version = saved["format"]
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(path, "is not a checkpoint of a run", "a file written by `internvideo train`") from error
    if version != FORMAT:
        raise WeightsError(path, f"is of checkpoint format {version}", str(FORMAT), "use the version that wrote it")
    return saved


def _load_stage(path: Path, stage: nn.Module, weights: Mapping[str, Tensor]) -> None:
    expected = stage.state_dict()
    weights = shard_like(expected, match_scalar_shapes(expected, weights))
    missing, unused = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    shapes = sorted(name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape)
    for kind, names in (("misses", missing), ("has the unknown", unused), ("has another shape of", shapes)):
        if names:
            raise WeightsError(path, f"{kind} {', '.join(names[:3])} ({len(names)} tensors)", "this stage's tensors")
    # Not strict: a stage's state dict may omit frozen submodules that are loaded separately.
    stage.load_state_dict(weights, strict=False)


def _load_optimizer(state: RunState, saved: Mapping[str, Tensor]) -> None:
    for name, parameter in state.stage.named_parameters():
        entries = strip_prefix(saved, name)
        if entries:
            # A copy, because the optimizer writes into its state while the file may still be mapped.
            entries = {key: value.to(parameter.device, copy=True) for key, value in entries.items()}
            targets = {key: parameter.detach() for key in entries if key != "step"}
            state.optimizer.state[parameter] = shard_like(targets, match_scalar_shapes(targets, entries))


def _rng_states(generator: torch.Generator) -> dict[str, Tensor]:
    numpy = np.random.get_state(legacy=False)
    if numpy["bit_generator"] != "MT19937":
        raise ValueError(f"numpy's generator is {numpy['bit_generator']}, expected MT19937")
    numpy_state = [*numpy["state"]["key"].tolist(), numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]]
    states = {
        "cpu": torch.get_rng_state(),
        "stage": generator.get_state(),
        "numpy": torch.tensor(numpy_state, dtype=torch.float64),  # exact: the integers are below 2 ** 32
    }
    if generator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(generator.device)
    return states


def _set_rng_states(generator: torch.Generator, states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    generator.set_state(states["stage"])
    *keys, position, has_gauss, gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), int(position), int(has_gauss), gauss))
    if "cuda" in states and generator.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], generator.device)
