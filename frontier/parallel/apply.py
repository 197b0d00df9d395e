"""The ordered list that turns a single-device module on `meta` into a distributed one:
activation checkpointing -> compile -> shard -> materialise and initialise.

FSDP is PyTorch's composable FSDP2; what each strategy word means in it:

| word          | mesh                       | weights between forward and backward | gradients, optimizer |
|---------------|----------------------------|--------------------------------------|----------------------|
| ddp           | replicate = world          | whole (DistributedDataParallel)      | whole                |
| no_shard      | replicate = world, shard 1 | whole                                | whole                |
| shard_grad_op | shard = world              | whole (reshard_after_forward=False)  | sharded (ZeRO-2)     |
| full_shard    | shard = world              | sharded                              | sharded (ZeRO-3)     |
| hybrid_k      | replicate = world/k, shard = k | sharded inside the group         | sharded inside the group |
"""

from __future__ import annotations

from functools import partial
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from frontier.config.schema import ParallelConfig
from frontier.launch.mesh import ParallelDims
from frontier.parallel.materialise import materialise


class ShardUnits(Protocol):
    """What a family's module offers the engine: its units of sharding, checkpointing and compilation."""

    def shard_units(self) -> list[nn.Module]: ...


def checkpoint_activations(units: list[nn.Module]) -> None:
    """Recompute each unit's activations in the backward pass. Parameter names stay as they are."""
    for unit in units:
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)


def compile_units(units: list[nn.Module]) -> None:
    """torch.compile of each unit in place: equal units share one compilation."""
    for unit in units:
        unit.compile(dynamic=False)


def shard(
    module: nn.Module, units: list[nn.Module], config: ParallelConfig, dims: ParallelDims, device: torch.device
) -> None:
    """FSDP2 over the mesh: one communication group per unit, the rest in the root.

    A single rank has nothing to overlap, so there the root holds everything: copies once a step instead of once a unit.
    """
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if config.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = dims.mesh(device.type)
    for unit in units if dims.world_size > 1 else []:
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=dims.reshard_after_forward)
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def parallelise(
    module: nn.Module, config: ParallelConfig, dims: ParallelDims, device: torch.device, seed: int
) -> nn.Module:
    """Apply the list to `module` (parameters on `meta`) and fill it with the weights of `seed`.

    Returns the module to call: the same one, or its DistributedDataParallel wrapper. Weights are the same at every
    world size and strategy.
    """
    units = cast(ShardUnits, module).shard_units()
    if config.activation_checkpointing == "full":
        checkpoint_activations(units)
    if config.compile:
        compile_units(units)
    if config.strategy != "ddp":
        shard(module, units, config, dims, device)
    materialise(module, device, seed)
    if config.strategy == "ddp":
        return DistributedDataParallel(
            module, device_ids=None if device.type == "cpu" else [device.index], gradient_as_bucket_view=True
        )
    return module


def unwrap(module: nn.Module) -> nn.Module:
    """The family's module under a DistributedDataParallel wrapper."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def set_gradient_sync(module: nn.Module, sync: bool) -> None:
    """Whether the next backward pass reduces gradients: only the last micro-batch of a step needs to."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(sync)
    elif isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = sync


def total_norm(module: nn.Module) -> torch.Tensor:
    """Global 2-norm of all gradients, the same number on every rank.

    Squares are summed over the local pieces, then across shards in one reduction.
    """
    from torch.distributed.tensor import DTensor

    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    squares = torch.stack(torch._foreach_norm([g.detach().float() for g in local])).square().sum()
    sharded = [g for g in gradients if isinstance(g, DTensor)]
    if sharded:
        mesh = sharded[0].device_mesh
        group = mesh.get_group("shard") if mesh.ndim > 1 else mesh.get_group()
        if dist.get_world_size(group) > 1:
            dist.all_reduce(squares, group=group)
    return squares.sqrt()


def scale_gradients(module: nn.Module, factor: torch.Tensor) -> None:
    """Multiply every gradient by `factor` (a scalar tensor) in place."""
    from torch.distributed.tensor import DTensor

    local = [
        p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in module.parameters() if p.grad is not None
    ]
    torch._foreach_mul_(local, factor)
