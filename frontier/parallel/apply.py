"""The ordered list that turns a single-device module on `meta` into a distributed one:
tensor -> activation checkpointing -> compile -> shard -> materialise and initialise.

FSDP is PyTorch's composable FSDP2; what each strategy word means in it:

| word          | mesh                       | weights between forward and backward | gradients, optimizer |
|---------------|----------------------------|--------------------------------------|----------------------|
| ddp           | replicate = world          | whole (DistributedDataParallel)      | whole                |
| no_shard      | replicate = world, shard 1 | whole                                | whole                |
| shard_grad_op | shard = world              | whole (reshard_after_forward=False)  | sharded (ZeRO-2)     |
| full_shard    | shard = world              | sharded                              | sharded (ZeRO-3)     |
| hybrid_k      | replicate = world/k, shard = k | sharded inside the group         | sharded inside the group |

`world` counts tensor groups where parallel.tensor > 1. docs/parallelism.md says what moves when.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from frontier.config.schema import ParallelConfig
from frontier.launch.mesh import ParallelDims
from frontier.models.attention import SAVED_OPERATORS
from frontier.models.layers import MLP
from frontier.parallel.materialise import materialise
from frontier.parallel.tensor import tensor_parallel


class ShardUnits(Protocol):
    """What a family's module offers the engine: its units of sharding, checkpointing and compilation."""

    def shard_units(self) -> list[nn.Module]: ...


SAVED_WHEN_SELECTIVE = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear",
    "mkldnn::_linear_pointwise", "frontier::product", "frontier::cpu_by_weights",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "_c10d_functional::all_gather_into_tensor", "_c10d_functional::reduce_scatter_tensor", "_c10d_functional::all_reduce",
)  # fmt: skip
"""Operators whose results are dear to compute: products, fused attention, and what crossed a network. With `SAVED_OPERATORS`, those of
families."""


def _selective_contexts() -> tuple[Any, Any]:
    def policy(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        # FlexAttention is a higher-order operator, which has a name but no schema.
        name = operator._schema.name if isinstance(operator, torch._ops.OpOverload) else operator.name()
        saved = name in SAVED_WHEN_SELECTIVE or name in SAVED_OPERATORS
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def checkpoint_activations(units: list[nn.Module], kind: str) -> None:
    """Recompute each unit's activations in the backward pass: all ("full"), or all but the results of
    `SAVED_WHEN_SELECTIVE` and `SAVED_OPERATORS` ("selective"). Parameter names stay as they are.
    """
    more: Any = {"context_fn": _selective_contexts} if kind == "selective" else {}
    for unit in units:
        for part in unit.modules():
            if isinstance(part, MLP):
                part.as_one = kind == "full"
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False, **more)


def compile_units(units: list[nn.Module]) -> None:
    """torch.compile of each unit in place: equal units share one compilation."""
    for unit in units:
        unit.compile(dynamic=False)


def shard(
    module: nn.Module,
    units: list[nn.Module],
    config: ParallelConfig,
    dims: ParallelDims,
    mesh: DeviceMesh,
    device: torch.device,
) -> None:
    """FSDP2 over the mesh: one communication group per unit, the rest in the root.

    Where nothing is shared there is nothing to overlap, so there the root holds everything: copies once a step instead of
    once a unit.
    """
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if config.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    common: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    if config.offload:
        common["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type != "cpu")
    wrapped = units if mesh.size() > 1 else []
    for unit in wrapped:
        fully_shard(unit, reshard_after_forward=dims.reshard_after_forward, **common)
    fully_shard(module, reshard_after_forward=False, **common)
    if config.prefetch != 1 and dims.reshard_after_forward:
        set_prefetch(cast(list[FSDPModule], wrapped), config.prefetch)


def stands_alone(config: ParallelConfig, dims: ParallelDims) -> bool:
    """Whether this rank is the only one and holds everything: nothing is wrapped then, and a bf16 policy is `WorkingCopies`'."""
    return dims.world_size == 1 and config.strategy != "ddp" and not config.offload


def set_prefetch(units: list[FSDPModule], depth: int) -> None:
    """Gather the weights of `depth` units ahead, in both passes; 0: each only when it is needed.

    FSDP2's own choice (depth 1) is what FSDP1 calls BACKWARD_PRE with limit_all_gathers. 0 comes to BACKWARD_POST: the next
    all-gather is issued after the gradient computation and runs beside the reduce-scatter only.
    """
    for place, unit in enumerate(units):
        if depth == 0:
            unit.set_modules_to_backward_prefetch([unit])  # itself: gathered already, so nothing more
        else:
            unit.set_modules_to_forward_prefetch(units[place + 1 : place + 1 + depth])
            unit.set_modules_to_backward_prefetch(units[max(0, place - depth) : place][::-1])


def parallelise(
    module: nn.Module, config: ParallelConfig, dims: ParallelDims, device: torch.device, seed: int
) -> tuple[nn.Module, dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """Apply the list to `module` (parameters on `meta`) and fill it with the weights of `seed`.

    Returns (the module to call: the same one, or its DistributedDataParallel wrapper; the group of the tensor axis, if any; that of
    the ranks that hold the same parts, if there are others).
    Weights are the same at every world size and strategy.
    """
    units = cast(ShardUnits, module).shard_units()
    mesh, across = dims.meshes(device.type) if config.strategy != "ddp" else (None, None)
    if across is not None:
        tensor_parallel(module, across, dims.sequence_parallel)
    if config.activation_checkpointing != "none":
        checkpoint_activations(units, config.activation_checkpointing)
    if config.compile:
        compile_units(units)
    if mesh is not None and not stands_alone(config, dims):
        shard(module, units, config, dims, mesh, device)
    materialise(module, device, torch.device("cpu") if config.offload else device, seed)
    if config.strategy == "ddp":
        wrapper = DistributedDataParallel(
            module, device_ids=None if device.type == "cpu" else [device.index], gradient_as_bucket_view=True
        )
        return wrapper, None, dist.group.WORLD if dims.replicate > 1 else None
    replicas = mesh.get_group("replicate") if mesh is not None and dims.replicate > 1 else None
    return module, None if across is None else across.get_group(), replicas


def unwrap(module: nn.Module) -> nn.Module:
    """The family's module under a DistributedDataParallel wrapper."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def set_gradient_sync(module: nn.Module, sync: bool) -> None:
    """Whether the next backward pass reduces gradients: only the last micro-batch of a step needs to."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(sync)
    elif isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = sync
