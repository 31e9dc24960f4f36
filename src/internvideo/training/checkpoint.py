"""Checkpoints: one safetensors file with everything that a run needs to go on bit for bit on the same machine.

Names of the tensors:
    model/NAME            what stage.state_dict() says
    ema/NAME              averages of the learning parameters
    optimizer/NAME/KEY    state of the optimizer for parameter NAME
    random/RANK/KIND      random generators of each process: cpu, cuda, stage, numpy
    history/losses        loss of every step so far, float64
The metadata key "internvideo" is JSON: format, step, epoch, position, seconds, clips, processes, recipe, torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from internvideo import distributed, untrusted
from internvideo.errors import RunError, WeightsError
from internvideo.storage import read_metadata, read_safetensors, write_safetensors
from internvideo.terminal import say
from internvideo.training.ema import Ema
from internvideo.training.run_folder import FOLDER, checkpoints
from internvideo.training.run_folder import claim as claim
from internvideo.training.run_folder import newest as newest
from internvideo.training.run_folder import same_recipe as same_recipe

FORMAT = 1


@dataclass
class RunState:
    """All that changes while a run goes on.

    Attributes:
        stage, optimizer, ema, generator: what learns and draws.
        step: optimizer steps made.
        epoch, position: where the loader is: the next batch is number `position` of epoch `epoch`.
        losses: loss of every step.
        seconds, clips: spent and seen so far, over all processes, interruptions not counted.
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


def save(folder: Path, state: RunState, recipe: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of this step and remove all but the newest `keep`. All processes call it, rank 0 writes.

    Raises:
        RunError: full disk or unwritable folder; the earlier checkpoints are kept.
    """
    path = folder / FOLDER / f"step-{state.step:08d}.safetensors"
    random = distributed.collect(_random_states(state.generator))
    error: RunError | None = None
    if distributed.rank() == 0:
        try:
            write_safetensors(path, _tensors(state, random), {"internvideo": json.dumps(_description(state, recipe))})
            for old in checkpoints(folder)[:-keep]:
                old.unlink()
        except RunError as found:
            error = found
    distributed.raise_together(error)
    return path


def restore(path: Path, state: RunState, recipe: Mapping[str, Any], may_differ: Collection[str] = ()) -> None:
    """Put everything in `state` where the checkpoint left it.

    Args:
        path: the checkpoint.
        state: freshly built from the same recipe; changed in place.
        recipe: the resolved recipe of this run.
        may_differ: dotted keys whose values (and everything below them) may be others than in the checkpoint.

    Raises:
        RunError: the checkpoint belongs to another recipe or number of processes.
        WeightsError: it is damaged, or not a checkpoint of this stage.
    """
    tensors, metadata = read_safetensors(path)
    same_recipe(path, _read_description(path, metadata)["recipe"], recipe, may_differ)
    _put_back(path, tensors, metadata, state)


def resume(folder: Path, state: RunState) -> Path | None:
    """Go on from the newest whole checkpoint of a run folder that was claimed; None where there is no checkpoint.

    Damaged ones are told on stderr and set aside under another name. All processes call it together and take the same
    one, of those that rank 0 sees.

    Raises:
        RunError, WeightsError: as `restore`; or every checkpoint is damaged.
    """
    damaged: list[Path] = []
    names: list[str] = distributed.collect([path.name for path in checkpoints(folder)])[0]
    for name in reversed(names):
        path, fault = folder / FOLDER / name, ""
        try:
            found = read_safetensors(path)
        except WeightsError as error:
            fault = str(error)
        faults = [text for text in distributed.collect(fault) if text]
        if not faults:
            distributed.first_alone(lambda: _set_aside(damaged))
            _put_back(path, *found, state)
            return path
        if distributed.rank() == 0:
            say(f"{faults[0]}; going on from the checkpoint before it", err=True)
        damaged.append(path)
    if damaged:
        where, do = folder / FOLDER, "copy one again, or choose another output folder"
        raise WeightsError(where, f"not one of {len(damaged)} checkpoints can be read", "a whole one", do)
    return None


def _set_aside(damaged: list[Path]) -> None:
    for path in damaged:
        try:
            path.rename(path.with_suffix(".damaged"))
        except OSError as error:
            raise RunError(
                path, f"cannot be renamed: {error.strerror or error}", "", "remove it, then resume"
            ) from error


def _put_back(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], state: RunState) -> None:
    described = _read_description(path, metadata)
    if described["processes"] != distributed.world_size():
        raise RunError(
            path,
            f"written by {described['processes']} processes, now there are {distributed.world_size()}",
            "the same number, because each has its own share of the data",
            "start torchrun with the same number",
        )
    _load_stage(path, state.stage, part(tensors, "model"))
    _load_optimizer(state, part(tensors, "optimizer"))
    if state.ema is not None:
        averages = part(tensors, "ema")  # earlier versions also averaged what is frozen now
        state.ema.load({name: averages[name] for name in state.ema.averages if name in averages})
    _set_random_states(state.generator, part(tensors, f"random/{distributed.rank()}"))
    state.losses = tensors["history/losses"].tolist()
    state.step, state.epoch, state.position = described["step"], described["epoch"], described["position"]
    state.seconds, state.clips = described["seconds"], described["clips"]


def read_weights(path: Path, *, ema: bool = True) -> dict[str, Tensor]:
    """Stage weights of a checkpoint by the stage's names; averages in place of parameters where it has them.

    Raises:
        WeightsError: not a checkpoint.
    """
    tensors, metadata = read_safetensors(path)
    _read_description(path, metadata)
    weights, averages = part(tensors, "model"), part(tensors, "ema") if ema else {}
    return {name: averages[name].to(tensor.dtype) if name in averages else tensor for name, tensor in weights.items()}


def read_recipe(path: Path) -> dict[str, Any]:
    """The resolved recipe that a checkpoint carries. Raises WeightsError."""
    recipe: dict[str, Any] = _read_description(path, read_metadata(path))["recipe"]
    return recipe


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix/`, by the rest of their names."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + "/")}


def _tensors(state: RunState, random: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in state.stage.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in state.ema.averages.items()}
    for name, parameter in state.stage.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = value
    for number, states in enumerate(random):
        tensors |= {f"random/{number}/{kind}": tensor for kind, tensor in states.items()}
    tensors["history/losses"] = torch.tensor(state.losses, dtype=torch.float64)
    return tensors


def _description(state: RunState, recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": state.step,
        "epoch": state.epoch,
        "position": state.position,
        "seconds": state.seconds,
        "clips": state.clips,
        "processes": distributed.world_size(),
        "torch": torch.__version__,
        "recipe": untrusted.parse_json(json.dumps(recipe, default=str), finite=False),
    }


def _read_description(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        described: dict[str, Any] = untrusted.parse_json(metadata["internvideo"], finite=False)
        found = described["format"]
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(path, "is not a checkpoint of a run", "a file written by `internvideo train`") from error
    if found != FORMAT:
        raise WeightsError(path, f"is of checkpoint format {found}", str(FORMAT), "use the version that wrote it")
    return described


def _load_stage(path: Path, stage: nn.Module, weights: Mapping[str, Tensor]) -> None:
    expected = stage.state_dict()
    missing, unused = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    shapes = sorted(name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape)
    for kind, names in (("misses", missing), ("has the unknown", unused), ("has another shape of", shapes)):
        if names:
            raise WeightsError(path, f"{kind} {', '.join(names[:3])} ({len(names)} tensors)", "this stage's tensors")
    # Not strict, because a stage may say less than it has (frozen parts that come from elsewhere).
    stage.load_state_dict(weights, strict=False)


def _load_optimizer(state: RunState, saved: Mapping[str, Tensor]) -> None:
    for name, parameter in state.stage.named_parameters():
        entries = part(saved, name)
        if entries:
            # A copy, because the optimizer writes into its state while the file may still be mapped.
            state.optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True) for key, value in entries.items()
            }


def _random_states(generator: torch.Generator) -> dict[str, Tensor]:
    numpy = np.random.get_state(legacy=False)
    if numpy["bit_generator"] != "MT19937":
        raise ValueError(f"numpy draws with {numpy['bit_generator']}")
    numbers = [*numpy["state"]["key"].tolist(), numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]]
    states = {
        "cpu": torch.get_rng_state(),
        "stage": generator.get_state(),
        "numpy": torch.tensor(numbers, dtype=torch.float64),  # exact: the integers are below 2 ** 32
    }
    if generator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(generator.device)
    return states


def _set_random_states(generator: torch.Generator, states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    generator.set_state(states["stage"])
    *keys, position, has_gauss, gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), int(position), int(has_gauss), gauss))
    if "cuda" in states and generator.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], generator.device)
