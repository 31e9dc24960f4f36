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
FORWARD_METHODS = ("attention_branch", "feed_forward_branch", "forward_mean")
"""Methods of a `Block`, besides forward, that are called from outside."""


def layers(stage: nn.Module) -> list[nn.Module]:
    """List the layers of a stage, in the order of its modules."""
    return [module for module in stage.modules() if isinstance(module, LAYERS)]


def is_sharded(parallel: Parallel) -> bool:
    """Return whether the run shards its parameters: with "fsdp" or "hsdp" and several processes."""
    return parallel != "ddp" and distributed.world_size() > 1


def builds_on_meta(parallel: Parallel) -> bool:
    """Return whether this process builds the model on the meta device, without values, to receive those of rank 0."""
    return is_sharded(parallel) and distributed.rank() > 0


def shard(stage: nn.Module, parallel: Parallel, device: torch.device, *, reshard_after_forward: bool = True) -> None:
    """Shard a stage, in place; a stage on the meta device receives the values of rank 0, shard by shard.

    Args:
        stage: equal in all processes; on the meta device in all but rank 0, or in none.
        parallel: "fsdp" shards over all processes, "hsdp" over those of a machine, with a replica per machine.
        device: of this process. reshard_after_forward: free a layer's gathered parameters until its backward pass.

    Raises:
        RecipeError: some steps leave some parameters without gradient, the stage trains a subset of its vocabulary, or
            the machines have different numbers of processes.
    """
    if getattr(stage, "unused_parameters", False):
        raise RecipeError("loop.parallel", f"'{parallel}', but a step of this stage uses only some parameters", "ddp")
    if any("full_weight" in dict(module.named_buffers(recurse=False)) for module in stage.modules()):
        raise RecipeError("settings.vocabulary", f"'occurring' with loop.parallel={parallel}", "all")
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = _mesh(parallel, device)
    on_meta = any(tensor.is_meta for tensor in (*stage.parameters(), *stage.buffers()))
    broadcast = any(distributed.all_gather_objects(on_meta))
    values = dict(stage.state_dict()) if distributed.rank() == 0 else {}
    for layer in layers(stage):
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
        for method in FORWARD_METHODS:
            if hasattr(layer, method):
                register_fsdp_forward_method(layer, method)
    fully_shard(stage, mesh=mesh)
    if on_meta:
        stage.to_empty(device=device)
    stage.to(device)
    if broadcast:
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(stage, values, options=options)
        for buffer in stage.buffers():  # including those that are in no state dict
            dist.broadcast(buffer, 0)


def _mesh(parallel: Parallel, device: torch.device) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    num_processes, num_local = (
        distributed.world_size(),
        int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size())),
    )
    if parallel == "fsdp":
        return init_device_mesh(device.type, (num_processes,), mesh_dim_names=("shard",))
    if num_processes % num_local:
        found = f"'hsdp' with {num_local} of {num_processes} processes on this machine"
        raise RecipeError("loop.parallel", found, "as many processes on every machine, or fsdp")
    return init_device_mesh(device.type, (num_processes // num_local, num_local), mesh_dim_names=("replicate", "shard"))


def synchronize_gradients(stage: nn.Module, synchronize: bool) -> None:
    """Switch the sum of gradients over the processes in the next backward passes on or off."""
    cast(Any, stage).set_requires_gradient_sync(synchronize)


def shard_like(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shard full tensors, which every process has, like the tensors of the same names in `targets`."""
    sharded = dict(tensors)
    for name, tensor in tensors.items():
        target = cast(Any, targets.get(name))
        if distributed.is_sharded(target) and not distributed.is_sharded(tensor):
            from torch.distributed.tensor import distribute_tensor

            sharded[name] = distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements)
    return sharded
