"""Shard a stage over processes with FSDP2: parameters, gradients and optimizer state, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from internvideo import distributed
from internvideo.errors import RecipeError
from internvideo.models.block import Block
from internvideo.models.caption_decoder import CaptionLayer

if TYPE_CHECKING:  # imported where needed, because commands that train nothing start without them
    from torch.distributed.device_mesh import DeviceMesh

Parallel = Literal["ddp", "fsdp", "hsdp"]
LAYERS = (Block, CaptionLayer)
"""Repeated modules, each gathered, freed and compiled separately."""
ENTRIES = ("attention_branch", "feed_forward_branch", "mean")
"""Methods of a `Block` that are called besides its forward."""


def layers(stage: nn.Module) -> list[nn.Module]:
    """List the layers of a stage, in the order of its modules."""
    return [module for module in stage.modules() if isinstance(module, LAYERS)]


def is_sharded(parallel: Parallel) -> bool:
    """Return whether a run shards its parameters: with several processes, unless `parallel` is "ddp"."""
    return parallel != "ddp" and distributed.world_size() > 1


def builds_on_meta(parallel: Parallel) -> bool:
    """Return whether this process builds the model without values, to receive those of the first process."""
    return is_sharded(parallel) and distributed.rank() > 0


def shard(stage: nn.Module, parallel: Parallel, device: torch.device, *, reshard_after_forward: bool = True) -> None:
    """Shard a stage, in place; on the meta device it receives the values of the first process, shard by shard.

    Args:
        stage: the same in all processes; with values in every one, or on the meta device in all but the first.
        parallel: "fsdp" shards over all processes, "hsdp" over those of a machine, with a replica per machine.
        device: of this process. reshard_after_forward: free a layer's gathered parameters until its backward pass.

    Raises:
        RecipeError: the stage leaves some parameters without gradient in some steps, or the machines differ.
    """
    if getattr(stage, "unused_parameters", False):
        raise RecipeError("loop.parallel", f"'{parallel}', but a step of this stage uses only some parameters", "ddp")
    if any("whole_weight" in dict(module.named_buffers(recurse=False)) for module in stage.modules()):
        raise RecipeError("settings.vocabulary", f"'occurring' with loop.parallel={parallel}", "all")
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = _mesh(parallel, device)
    on_meta = any(tensor.is_meta for tensor in (*stage.parameters(), *stage.buffers()))
    send = any(distributed.all_gather_objects(on_meta))
    values = dict(stage.state_dict()) if distributed.rank() == 0 else {}
    for layer in layers(stage):
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
        for entry in ENTRIES:
            if hasattr(layer, entry):
                register_fsdp_forward_method(layer, entry)
    fully_shard(stage, mesh=mesh)
    if on_meta:
        stage.to_empty(device=device)
    stage.to(device)
    if send:
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(stage, values, options=options)
        for buffer in stage.buffers():  # also those that are in no state dict
            dist.broadcast(buffer, 0)


def _mesh(parallel: Parallel, device: torch.device) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    world, local = distributed.world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    if parallel == "fsdp":
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    if world % local:
        found = f"'hsdp' with {local} of {world} processes on this machine"
        raise RecipeError("loop.parallel", found, "as many processes on every machine, or fsdp")
    return init_device_mesh(device.type, (world // local, local), mesh_dim_names=("replicate", "shard"))


def synchronize_gradients(stage: nn.Module, synchronize: bool) -> None:
    """Sum gradients over the processes in the backward pass, or only accumulate them."""
    cast(Any, stage).set_requires_gradient_sync(synchronize)


def divided_as(like: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shard full tensors, which every process has, as those of the same names in `like`."""
    sharded = dict(tensors)
    for name, tensor in tensors.items():
        other = cast(Any, like.get(name))
        if distributed.is_sharded(other) and not distributed.is_sharded(tensor):
            from torch.distributed.tensor import distribute_tensor

            sharded[name] = distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return sharded
