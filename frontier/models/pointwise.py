"""Layer norm, with the residual sum before it, and exact GELU: on a CPU by our operators, elsewhere PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from frontier.models.attention import meant_device
from frontier.models.cpu.operators import LANES, suits

_ops = torch.ops.frontier


class SumNorm(torch.autograd.Function):
    """(x, norm(x)), or with a branch (x + branch, norm(x + branch)): one pass forward, and one back for what flows through both."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, y, mean, inverse = _ops.cpu_norm(x, branch, weight, bias, eps)
        if branch is None:
            total = x
        ctx.save_for_backward(total, weight, mean, inverse)
        ctx.has_branch = branch is not None
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, through: Tensor | None, grad: Tensor | None) -> Any:
        total, weight, mean, inverse = ctx.saved_tensors
        if grad is None:
            return through, through if ctx.has_branch else None, None, None, None
        grad_x, sums = _ops.cpu_norm_backward(grad, through, total, weight, mean, inverse)
        grad_weight, grad_bias = sums[0].to(weight.dtype)
        return grad_x, grad_x if ctx.has_branch else None, grad_weight, grad_bias, None


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last dimension, with the sum that comes before it in a residual network."""

    def forward(self, x: Tensor) -> Tensor:
        return self.with_sum(x)[1]

    def with_sum(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x + branch, norm(x + branch)), all of one shape; without a branch (x, norm(x)): take this x on, and the gradients
        of both uses meet inside the norm's backward pass.
        """
        weight, bias = self.weight, self.bias
        if suits(meant_device(x), x.shape[-1], x, weight, bias, *(() if branch is None else (branch,))):
            return SumNorm.apply(x, branch, weight, bias, self.eps)
        total = x if branch is None else x + branch
        return total, F.layer_norm(total, self.normalized_shape, weight, bias, self.eps)


class GELU(torch.autograd.Function):
    """x Phi(x); the derivative Phi(x) + x phi(x) is made in the same pass and kept instead of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, slopes = _ops.cpu_gelu(x, True)
        ctx.save_for_backward(slopes)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slopes,) = ctx.saved_tensors
        return _ops.cpu_multiply(grad, slopes)


def gelu(x: Tensor) -> Tensor:
    """`F.gelu`, exact."""
    if suits(meant_device(x), LANES, x):  # of any width
        return GELU.apply(x) if torch.is_grad_enabled() and x.requires_grad else _ops.cpu_gelu(x, False)[0]
    return F.gelu(x)
