"""The linear layer, with oneDNN's matrix products where PyTorch would take a slower library.

PyTorch's float32 products on x86 go to MKL. On an AMD core with AVX-512 oneDNN's were measured 2.1 to 2.4 times as
fast (88 against 209 GFLOP/s at 2048^3), in the same precision. On an Intel core MKL's are the faster ones, most of all
for the gradients of weights, as MKL takes transposed matrices without a copy: the step of
benchmarks/results/training_step_intel.md went from 0.95 to 1.01 times its best rival's rate. In bf16 both are oneDNN's;
there the gain is that the bias is added inside the product instead of by a copy before it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.models.cpu.operators import suits
from frontier.processor import processor

HAS_ONEDNN: bool = (
    torch.backends.mkldnn.is_available()
    and "AVX512" in torch.backends.cpu.get_cpu_capability()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether this processor and build have oneDNN's AVX-512 kernels; never a matter of timing, so runs repeat."""


_MKL = torch.backends.mkl.is_available() and processor("vendor_id") == "GenuineIntel"
ONEDNN_TYPES: tuple[torch.dtype, ...] = (torch.bfloat16,) if _MKL else (torch.float32, torch.bfloat16)
"""Types whose products are oneDNN's; the others stay PyTorch's."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., k] times the transpose of weight [n, k], plus bias [n], by oneDNN."""
    if torch.compiler.is_compiling():  # Inductor's own lowering of the operator takes constant weights only
        return opaque_product(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.custom_op("frontier::product", mutates_args=())
def opaque_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`product` as an operator that compilers do not look into."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product a b by oneDNN."""
    return product(a, b.t())


def column_sums(x: Tensor) -> Tensor:
    """x [rows, n] -> [n]."""
    return torch.ops.frontier.cpu_column_sums(x) if suits(x.device.type, x.shape[-1], x) else x.sum(0)


class OneDNNLinear(torch.autograd.Function):
    """F.linear whose three products are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        rows, columns = grad.flatten(0, -2), x.flatten(0, -2)
        # In bf16 torch.mm is oneDNN's already, and takes transposed matrices without a copy.
        times = torch.mm if grad.dtype == torch.bfloat16 else _times
        grad_x = times(rows, weight).view_as(x) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            # The narrower matrix goes first: measured up to twice as fast as the other way round.
            if rows.shape[1] <= columns.shape[1]:
                grad_weight = times(rows.t(), columns)
            else:
                grad_weight = times(columns.t(), rows).t()
        grad_bias = column_sums(rows) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, through oneDNN for plain tensors of `ONEDNN_TYPES` that are not empty on a CPU with AVX-512."""
    plain = type(x) is Tensor and type(weight) in (Tensor, nn.Parameter)  # no sharded or fake tensors
    fits = x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in ONEDNN_TYPES
    if HAS_ONEDNN and plain and fits and x.numel() and not torch.is_autocast_enabled("cpu"):
        return OneDNNLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
