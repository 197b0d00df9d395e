"""The pre-norm block, and its MLP alone, as one function each on a CPU: the operators of `Block` and `MLP`, to the same bits.

Between the operators of a step the other cores wait while one walks through modules and graph nodes, a tenth of the time of a small
model's step. One function has one node and no modules, and it may write over what nobody else sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from frontier.models.attention import meant_device
from frontier.models.cpu.operators import LANES, suits
from frontier.models.linear import linear_gelu, parameter_gradients, plain_linear, scale_by_product_, times

_ops = torch.ops.frontier


def mlp_backward(grad: Tensor, saved: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of x, W1, b1, W2, b2 of y = gelu(h) W2^T + b2 with h = x W1^T + b1, given grad = dL/dy; rows are [n, width].
    saved: x, slopes, hidden = gelu(h), W1, W2.

    slopes = gelu'(h) becomes dL/dh = (grad W2) * gelu'(h): a graph is walked back once (PyTorch says so where it is tried twice).
    """
    x, slopes, hidden, w1, w2 = saved
    second = parameter_gradients(grad, hidden, *needs[3:])
    scale_by_product_(slopes, grad, w2)
    torch.autograd.graph.increment_version(slopes)
    return times(slopes, w1) if needs[0] else None, *parameter_gradients(slopes, x, *needs[1:3]), *second


class MLPFunction(torch.autograd.Function):
    """fc2(gelu(fc1(x))) of rows x [n, D]; GELU's derivative is kept instead of the result of fc1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden, slopes = linear_gelu(x, w1, b1)
        ctx.save_for_backward(x, slopes, hidden, w1, w2)
        return plain_linear(hidden, w2, b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return mlp_backward(grad.contiguous(), ctx.saved_tensors, ctx.needs_input_grad)


class BlockFunction(torch.autograd.Function):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), of x [B, N, D] -> [B, N - first_query, D]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, heads: int, first_query: int, epsilons: tuple[float, float], *parameters: Tensor
    ) -> Tensor:
        """parameters: weights and biases of norm1, qkv, proj, norm2, fc1, fc2."""
        g1, c1, w_qkv, b_qkv, w_proj, b_proj, g2, c2, w1, b1, w2, b2 = parameters
        _, normed1, *moments1 = _ops.cpu_norm(x, None, g1, c1, epsilons[0])
        qkv = plain_linear(normed1, w_qkv, b_qkv).unflatten(-1, (heads, 3, -1))
        read, p = _ops.cpu_attention(qkv, first_query, True)
        branch = plain_linear(read, w_proj, b_proj)
        total, normed2, *moments2 = _ops.cpu_norm(x[:, first_query:], branch, g2, c2, epsilons[1])
        hidden, slopes = linear_gelu(normed2, w1, b1)
        ctx.save_for_backward(
            x, g1, *moments1, normed1, w_qkv, qkv, p, read, w_proj, total, g2, *moments2, normed2, slopes, hidden, w1, w2
        )  # fmt: skip
        ctx.first_query = first_query
        return plain_linear(hidden, w2, b2, total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, g1, mean1, inverse1, normed1, w_qkv, qkv, p, read, w_proj, total, g2, mean2, inverse2, *mlp) = ctx.saved_tensors  # fmt: skip
        needs = ctx.needs_input_grad[4:]
        grad = grad.contiguous()
        rows, *mlp = (t.flatten(0, -2) for t in (grad, *mlp))
        through, *of_mlp = mlp_backward(rows, mlp, (True, *needs[8:]))
        assert through is not None
        through, norm2 = _ops.cpu_norm_backward(through.view_as(grad), grad, total, g2, mean2, inverse2)
        rows = through.flatten(0, -2)
        of_proj = parameter_gradients(rows, read.flatten(0, -2), *needs[4:6])
        of_qkv = _ops.cpu_attention_backward(qkv, p, times(rows, w_proj).view_as(read), ctx.first_query).flatten(-3)
        rows = of_qkv.flatten(0, -2)
        if ctx.first_query:
            through = F.pad(through, (0, 0, ctx.first_query, 0))
        of_x, norm1 = _ops.cpu_norm_backward(times(rows, w_qkv).view_as(x), through, x, g1, mean1, inverse1)
        return (
            of_x if ctx.needs_input_grad[0] else None, None, None, None,
            *norm1[0].to(g1.dtype), *parameter_gradients(rows, normed1.flatten(0, -2), *needs[2:4]), *of_proj,
            *norm2[0].to(g2.dtype), *of_mlp,
        )  # fmt: skip


def are_plain(*modules: nn.Module) -> bool:
    """Whether calling these modules is nothing but their maths: no hooks, as ZeRO-3 gathers weights in, and no other forward, as a
    layer that is split over ranks has.
    """
    return not any(
        "forward" in m.__dict__
        or m._forward_hooks
        or m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        for m in modules
    )


def fits(modules: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether a function may stand for the layers and norms among `modules`, in their order, applied to x."""
    parameters = [p for m in modules if isinstance(m, nn.Linear | nn.LayerNorm) for p in (m.weight, m.bias)]
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and are_plain(*modules)
        and all(p is not None and p.shape[0] % LANES == 0 for p in parameters)
        and suits(meant_device(x), x.shape[-1], x, *parameters)
    )
