"""Tensor parallelism of transformer blocks (Megatron-LM, arXiv 1909.08053), with sequence parallelism along the batch.

Every module with a `tensor_plan` (attention, MLP) is split over the T ranks of a tensor group: `column` linear layers keep
1/T of their output features, `row` layers 1/T of their input features, so whole heads and whole hidden units stay together and one
exchange enters the module and one leaves it. Parameters are DTensors on the "tensor" axis, so FSDP, checkpoints and initial weights
see ordinary sharded tensors; inside the module the maths is that of one device on local tensors.

With sequence parallelism (arXiv 2205.05198) what lies between these modules, norms and residuals, embeddings, loss, is
split as well. That paper splits tokens; here the *samples* of the micro-batch are split, because nothing between the modules
mixes samples either: any token count divides (1 + 64 or 1 + 256 do not split in two), the pieces are contiguous, and a tensor
group is to the data pipeline just T data ranks. The traffic is the same: an all-gather in, a reduce-scatter out, and the
reverse in the backward pass. Without it every rank of the group works on the same samples: all-reduces instead, and T times the
activations between the modules; it needs only one sample a group instead of one a rank.

What every rank of the group holds whole (norms, biases of row layers, embeddings) sees different samples under sequence
parallelism, so its gradients are summed over the group once a step (`replicated_parameters`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from frontier.errors import UserError
from frontier.models.layers import TensorPlan
from frontier.models.linear import linear

# Their names changed in PyTorch 2.13.
_all_gather = getattr(funcol, "all_gather_single", None) or funcol.all_gather_tensor
_reduce_scatter = getattr(funcol, "reduce_scatter_single", None) or funcol.reduce_scatter_tensor


def planned_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module, TensorPlan]]:
    """(name, module, plan) of every module that says how it is split."""
    for name, part in module.named_modules():
        plan = getattr(part, "tensor_plan", None)
        if plan is not None:
            yield name, part, plan


def check_divides(module: nn.Module, tensor: int) -> None:
    """Raises UserError where heads or hidden units do not divide over `tensor` ranks, naming the degrees that do."""
    counts = {
        f"{name}.{what}": count for name, _, plan in planned_modules(module) for what, count in plan.counts.items()
    }
    if not counts:
        raise UserError(f"parallel.tensor={tensor}: {type(module).__name__} has no module that can be split; use 1")
    bad = next((name for name, count in counts.items() if count % tensor), None)
    if bad is not None:
        fit = [d for d in range(1, min(counts.values()) + 1) if all(c % d == 0 for c in counts.values())]
        raise UserError(
            f"parallel.tensor={tensor} does not divide the {counts[bad]} {bad.rsplit('.', 1)[1]} of "
            f"{bad.rsplit('.', 1)[0]}: this model takes {', '.join(map(str, fit))}"
        )


class _Enter(torch.autograd.Function):
    """The same value on every rank of the group; their gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return funcol.wait_tensor(funcol.all_reduce(grad.contiguous(), "sum", ctx.group)), None


class _Leave(torch.autograd.Function):
    """The sum over the group, on every rank; its gradient is everybody's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return funcol.wait_tensor(funcol.all_reduce(x.contiguous(), "sum", group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gather(torch.autograd.Function):
    """[B, …] of each rank -> [T * B, …], samples in the order of ranks; gradients are summed and split."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return funcol.wait_tensor(_all_gather(x.contiguous(), 0, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return funcol.wait_tensor(_reduce_scatter(grad.contiguous(), "sum", 0, ctx.group)), None


class _Scatter(torch.autograd.Function):
    """[T * B, …] partial sums -> this rank's [B, …] of the total; gradients are gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return funcol.wait_tensor(_reduce_scatter(x.contiguous(), "sum", 0, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return funcol.wait_tensor(_all_gather(grad.contiguous(), 0, ctx.group)), None


def _local(parameter: Tensor | None) -> Tensor | None:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _column(layer: nn.Linear, x: Tensor) -> Tensor:
    """This rank's output features."""
    weight = _local(layer.weight)
    assert weight is not None
    return linear(x, weight, _local(layer.bias))


def _row(layer: nn.Linear, leave: Any, x: Tensor) -> Tensor:
    """From this rank's input features: partial sums that leave the module, and the bias once."""
    weight = _local(layer.weight)
    assert weight is not None
    out = leave(linear(x, weight, None))
    return out if layer.bias is None else out + layer.bias


def _split(layer: nn.Linear, name: str, dim: int, mesh: DeviceMesh) -> None:
    parameter = getattr(layer, name)
    if parameter is not None:
        # Nothing is sent: the parameters are on meta here.
        split = distribute_tensor(parameter.detach(), mesh, [Shard(dim)], src_data_rank=None)
        setattr(layer, name, nn.Parameter(split, requires_grad=parameter.requires_grad))


def tensor_parallel(module: nn.Module, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    """Split every planned module of `module` (parameters on `meta`) over the 1-D `mesh`, in place."""
    group = mesh.get_group()
    entering, leaving = (_Gather, _Scatter) if sequence_parallel else (_Enter, _Leave)

    def enter(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(entering.apply(a, group) if isinstance(a, Tensor) else a for a in args)

    def leave(x: Tensor) -> Tensor:
        return leaving.apply(x, group)

    for _, part, plan in planned_modules(module):
        for name in plan.column:
            layer = getattr(part, name)
            if layer is not None:
                _split(layer, "weight", 0, mesh)
                _split(layer, "bias", 0, mesh)
                layer.forward = partial(_column, layer)
        for name in plan.row:
            layer = getattr(part, name)
            _split(layer, "weight", 1, mesh)
            layer.forward = partial(_row, layer, leave)
        split = getattr(part, "split", None)
        if split is not None:
            split(mesh.get_local_rank(), mesh.size())
        part.register_forward_pre_hook(enter)


def is_split(parameter: Tensor) -> bool:
    """Whether `parameter` is cut over the tensor axis (by `tensor_parallel`)."""
    return isinstance(parameter, DTensor) and "tensor" in (parameter.device_mesh.mesh_dim_names or ())


def replicated_parameters(module: nn.Module) -> list[nn.Parameter]:
    """What every rank of a tensor group holds whole."""
    return [p for p in module.parameters() if not is_split(p)]
