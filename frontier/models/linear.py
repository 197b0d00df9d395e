"""The linear layer, with matrix products of our own or oneDNN's where PyTorch would take a slower library.

PyTorch's float32 products on x86 go to MKL. On an AMD core with AVX-512 oneDNN's were measured 2.1 to 2.4 times as
fast (88 against 209 GFLOP/s at 2048^3), in the same precision. On an Intel core MKL's are the faster ones, most of all
for the gradients of weights, as MKL takes transposed matrices without a copy: the step of
benchmarks/results/training_step_intel.md went from 0.95 to 1.01 times its best rival's rate. In bf16 PyTorch's are
oneDNN's too; there the gain is that the bias is added inside the product instead of by a copy before it.

Where our own operators are (models/cpu) and oneDNN would be taken, they are, up to `MOST_WEIGHTS` (gradients of weights:
`MOST_SUMS`): for a small model's layers and thousands of rows they are the faster ones (benchmarks/cpu_products.py), and
a bias, a residual sum, GELU and the sums of a bias's gradient need no passes of their own. Not in bf16 with AMX.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from frontier.models.attention import meant_device
from frontier.models.cpu.operators import MOST_SUMS, multiplies, suits
from frontier.processor import processor

_ops = torch.ops.frontier

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


def _by_onednn(x: Tensor) -> bool:
    return HAS_ONEDNN and x.device.type == "cpu" and x.dtype in ONEDNN_TYPES


def _ours(x: Tensor, m: int, k: int, *more: Tensor | None) -> bool:
    """Whether our operators multiply x, with `more` of its type, by a matrix of [m, k] weights."""
    present = [t for t in more if t is not None]
    return HAS_ONEDNN and x.dtype in ONEDNN_TYPES and multiplies(meant_device(x), m, k, x, *present)


def times(a: Tensor, weight: Tensor) -> Tensor:
    """a [..., m] times weight [m, k], without derivatives."""
    if _ours(a, *weight.shape, weight):
        return _ops.cpu_by_weights(a, weight, True, None, None)
    # In bf16 torch.mm is oneDNN's already, and takes transposed matrices without a copy.
    return product(a, weight.t()) if a.dtype == torch.float32 and _by_onednn(a) else torch.matmul(a, weight)


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None = None) -> Tensor:
    """`F.linear`, plus `added`, without derivatives."""
    if _ours(x, *weight.shape, weight, bias, added):
        return _ops.cpu_by_weights(x, weight, False, bias, added)
    y = product(x, weight, bias) if _by_onednn(x) else F.linear(x, weight, bias)
    return y if added is None else y.add_(added)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(h) of h = x W^T + bias, and gelu'(h), without derivatives, where the other operators are ours."""
    if _ours(x, *weight.shape, weight, bias):
        return _ops.cpu_linear_gelu(x, weight, bias)
    slopes = plain_linear(x, weight, bias)
    return _ops.cpu_gelu_(slopes), slopes


def scale_by_product_(other: Tensor, grad: Tensor, weight: Tensor) -> None:
    """other *= grad W, where the other operators are ours."""
    if _ours(grad, *weight.shape, weight, other):
        _ops.cpu_scale_by_weights_(grad, weight, other)
    else:
        _ops.cpu_multiply_(times(grad, weight), other)


def column_sums(x: Tensor) -> Tensor:
    """x [rows, n] -> [n]."""
    return _ops.cpu_column_sums(x) if suits(meant_device(x), x.shape[-1], x) else x.sum(0)


def _transposed_mm(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a.t(), b)


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    return product(a.t(), b.t())


def parameter_gradients(grad: Tensor, x: Tensor, weight: bool, bias: bool) -> tuple[Tensor | None, Tensor | None]:
    """grad^T x of [rows, n] and [rows, k] -> [n, k], and the sums of grad's columns -> [n], those that are wanted."""
    m, k = grad.shape[1], x.shape[1]
    if weight and m * k <= MOST_SUMS and _ours(grad, m, k, x):
        of_weight, of_bias = _ops.cpu_weight_gradient(grad, x, bias)
        return of_weight, of_bias if bias else None
    of_weight = None
    if weight:  # the narrower matrix goes first: measured up to twice as fast as the other way round
        multiply = _transposed_product if grad.dtype == torch.float32 and _by_onednn(grad) else _transposed_mm
        of_weight = multiply(grad, x) if m <= k else multiply(x, grad).t()
    return of_weight, column_sums(grad) if bias else None


class LinearFunction(torch.autograd.Function):
    """F.linear whose three products are ours or oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return plain_linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = times(grad, weight) if ctx.needs_input_grad[0] else None
        return grad_x, *parameter_gradients(grad.flatten(0, -2), x.flatten(0, -2), *ctx.needs_input_grad[1:])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, through `LinearFunction` for plain tensors of `ONEDNN_TYPES` that are not empty on a CPU with AVX-512."""
    plain = type(x) is Tensor and type(weight) in (Tensor, nn.Parameter)  # no sharded or fake tensors
    if _by_onednn(x) and plain and x.dtype == weight.dtype and x.numel() and not torch.is_autocast_enabled("cpu"):
        return LinearFunction.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
