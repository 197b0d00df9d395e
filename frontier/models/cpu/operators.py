"""The functions of kernels.cpp as PyTorch operators `frontier::cpu_*`, for float32 and bfloat16, with their shapes on meta.

Operators, not bare calls: whoever watches operators (FLOP counters, selective checkpointing, memory counted on meta) sees them.
They have no derivatives of their own; `pointwise`, `attention`, `linear` and `block_function` of `frontier.models` pair them.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from frontier.models.cpu.build import library, unavailable
from frontier.processor import processor

LANES = 16
"""Values that one register holds: widths and head dims must be multiples of it."""

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_operators = torch.library.Library("frontier", "FRAGMENT")


def suits(device_type: str, width: int, *tensors: Tensor) -> bool:
    """Whether these operators take dense `tensors` of rows of `width` values, on a device of this type ("cpu": also meant by meta)."""
    first = tensors[0]
    return (
        device_type == "cpu"
        and first.dtype in _NAMES
        and width % LANES == 0
        and first.numel() > 0
        and all(t.dtype == first.dtype and type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # Inductor fuses these with their neighbours
        and not unavailable()
    )


_C_TYPES = {"n": ctypes.c_int64, "x": ctypes.c_float, "p": ctypes.c_void_p}
_SIGNATURES = {
    "norm_forward": "nnpppppxppp",
    "norm_backward": "nnpppppppp",
    "gelu_forward": "nppp",
    "multiply": "nppp",
    "weight_gradient": "nnnpppp",
    "by_weights": "nnnppnpnpp",
    "column_sums": "nnppp",
    "attention_forward": "nnnnnppp",
    "attention_backward": "nnnnnpppp",
}
"""Arguments of the functions of kernels.cpp: integers, floats, pointers; the number of threads comes last."""


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(library(), f"{name}_{_NAMES[dtype]}")
    function.argtypes = [*(_C_TYPES[kind] for kind in _SIGNATURES[name]), ctypes.c_int]
    function.restype = None
    return function


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call a function of kernels.cpp; a tensor is its memory, None a null pointer."""
    plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    _function(name, dtype)(*plain, torch.get_num_threads())


def _operator(schema: str, shapes: Any, run: Any) -> None:
    """Define an operator: `shapes` makes its results, empty; `run` fills them."""

    def on_cpu(*arguments: Any) -> Any:
        dense = [a.contiguous() if isinstance(a, Tensor) else a for a in arguments]
        results = shapes(*dense)
        run(*dense, *(results if isinstance(results, tuple) else (results,)))
        return results

    _operators.define(schema)
    name = schema.split("(")[0]
    _operators.impl(name, on_cpu, "CPU")
    _operators.impl(name, shapes, "Meta")


def _dense_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _norm_shapes(x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    rows = x.numel() // x.shape[-1]
    total = x.new_empty(0) if branch is None else _dense_like(x)
    return total, _dense_like(x), x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.float32)


def _norm(x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *results: Tensor) -> None:
    total, y, mean, inverse = results
    width = x.shape[-1]
    sizes = x.numel() // width, width
    _call("norm_forward", x.dtype, *sizes, x, branch, total, weight, bias, eps, y, mean, inverse)


_operator("cpu_norm(Tensor x, Tensor? branch, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor, Tensor)", _norm_shapes, _norm)  # fmt: skip


def _norm_backward_shapes(grad: Tensor, through: Tensor | None, x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _dense_like(x), x.new_empty(torch.get_num_threads(), 2, x.shape[-1], dtype=torch.float32)


def _norm_backward(
    grad: Tensor, through: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, *results: Tensor
) -> None:
    width = x.shape[-1]
    _call("norm_backward", x.dtype, x.numel() // width, width, grad, through, x, weight, mean, inverse, *results)


_operator("cpu_norm_backward(Tensor grad, Tensor? through, Tensor x, Tensor weight, Tensor mean, Tensor inverse) -> (Tensor, Tensor)", _norm_backward_shapes, _norm_backward)  # fmt: skip


def _gelu_shapes(x: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
    return _dense_like(x), _dense_like(x) if slopes else x.new_empty(0)


def _gelu(x: Tensor, slopes: bool, y: Tensor, slope: Tensor) -> None:
    _call("gelu_forward", x.dtype, x.numel(), x, y, slope if slopes else None)


_operator("cpu_gelu(Tensor x, bool slopes) -> (Tensor, Tensor)", _gelu_shapes, _gelu)


def _gelu_(x: Tensor, y: Tensor) -> None:
    _call("gelu_forward", x.dtype, x.numel(), x, y, x)


_operator("cpu_gelu_(Tensor(a!) x) -> Tensor", _dense_like, _gelu_)
"""gelu(x); x becomes the derivative there. x is dense."""


def _multiply(a: Tensor, b: Tensor, c: Tensor) -> None:
    _call("multiply", a.dtype, a.numel(), a, b, c)


_operator("cpu_multiply(Tensor a, Tensor b) -> Tensor", lambda a, b: _dense_like(a), _multiply)


def _multiply_(a: Tensor, b: Tensor, space: Tensor) -> None:
    _multiply(a, b, b)


_operator("cpu_multiply_(Tensor a, Tensor(a!) b) -> Tensor", lambda a, b: b.new_empty(0), _multiply_)
"""b *= a. b is dense."""


def _column_sums(x: Tensor, sums: Tensor) -> None:
    width = x.shape[-1]
    space = x.new_empty(torch.get_num_threads(), width, dtype=torch.float32)
    _call("column_sums", x.dtype, x.numel() // width, width, x, sums, space)


_operator("cpu_column_sums(Tensor x) -> Tensor", lambda x: x.new_empty(x.shape[-1]), _column_sums)


MOST_WEIGHTS = 2**22
"""Of a matrix that our products take, which keep it in caches."""

MOST_SUMS = 2**20
"""Of a matrix whose gradient is ours: its float32 sums stay in caches. Beyond it oneDNN's was measured 10 to 20 % faster."""


@functools.cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Not in bfloat16 on a processor without its dot product, nor on one with matrix tiles (AMX), which oneDNN makes use of."""
    tiles = "amx_bf16" in (processor("flags") or "").split()
    return hasattr(library(), f"by_weights_{_NAMES[dtype]}") and not (dtype == torch.bfloat16 and tiles)


def multiplies(device_type: str, m: int, k: int, *tensors: Tensor) -> bool:
    """Whether our products take these on a device of this type, and a matrix of [m, k] weights."""
    lanes = LANES * 4 // tensors[0].element_size()  # pairs of bfloat16 go together
    return (
        m * k <= MOST_WEIGHTS
        and m % lanes == k % lanes == 0
        and suits(device_type, m, *tensors)
        and _multiplies(tensors[0].dtype)
    )


_NOTHING, _ADDING, _GELU, _SCALING = range(4)
"""`Following` of kernels.cpp."""


def _by_weights(x: Tensor, weight: Tensor, turned: bool, bias: Tensor | None, added: Tensor | None, y: Tensor) -> None:
    sizes = x.numel() // x.shape[-1], x.shape[-1], y.shape[-1]
    _call("by_weights", x.dtype, *sizes, x, weight, turned, bias, _NOTHING if added is None else _ADDING, y, added)


_operator(
    "cpu_by_weights(Tensor x, Tensor weight, bool turned, Tensor? bias, Tensor? added) -> Tensor",
    lambda x, weight, turned, bias, added: x.new_empty(*x.shape[:-1], weight.shape[turned]),
    _by_weights,
)
"""x [..., k] W^T + bias + added of W [m, k]; turned: x W + ... of W [k, m]."""


def _linear_gelu_shapes(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    shape = *x.shape[:-1], weight.shape[0]
    return x.new_empty(shape), x.new_empty(shape)


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, slopes: Tensor) -> None:
    sizes = x.numel() // x.shape[-1], x.shape[-1], y.shape[-1]
    _call("by_weights", x.dtype, *sizes, x, weight, False, bias, _GELU, y, slopes)


_operator("cpu_linear_gelu(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor)", _linear_gelu_shapes, _linear_gelu)  # fmt: skip
"""gelu(h) of h = x W^T + bias, and its derivative there."""


def _scale_by_weights_(grad: Tensor, weight: Tensor, other: Tensor, nothing: Tensor) -> None:
    sizes = grad.numel() // grad.shape[-1], grad.shape[-1], other.shape[-1]
    _call("by_weights", grad.dtype, *sizes, grad, weight, True, None, _SCALING, None, other)


_operator(
    "cpu_scale_by_weights_(Tensor grad, Tensor weight, Tensor(a!) other) -> Tensor",
    lambda grad, weight, other: other.new_empty(0),
    _scale_by_weights_,
)
"""other *= grad W. other is dense. Returns nothing of use: an operator returns something here."""


def _weight_gradient_shapes(grad: Tensor, x: Tensor, sums: bool) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape[1], x.shape[1]), grad.new_empty(grad.shape[1] if sums else 0)


def _weight_gradient(grad: Tensor, x: Tensor, sums: bool, made: Tensor, of_columns: Tensor) -> None:
    sizes = *grad.shape, x.shape[1]
    _call("weight_gradient", grad.dtype, *sizes, grad, x, made, of_columns if sums else None)


_operator("cpu_weight_gradient(Tensor grad, Tensor x, bool sums) -> (Tensor, Tensor)", _weight_gradient_shapes, _weight_gradient)  # fmt: skip
"""grad^T x of [n, m] and [n, k] -> [m, k], and the sums of grad's columns, [m], where asked."""


def _attention_shapes(qkv: Tensor, skip: int, keep: bool) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _, dim = qkv.shape
    padded = -(-tokens // LANES) * LANES
    out = qkv.new_empty(batch, tokens - skip, heads * dim)
    return out, qkv.new_empty(batch, heads, tokens - skip, padded) if keep else qkv.new_empty(0)


def _attention(qkv: Tensor, skip: int, keep: bool, out: Tensor, probabilities: Tensor) -> None:
    batch, tokens, heads, _, dim = qkv.shape
    kept = probabilities if keep else None
    _call("attention_forward", qkv.dtype, batch, tokens, heads, dim, skip, qkv, out, kept)


_operator("cpu_attention(Tensor qkv, int skip, bool keep) -> (Tensor, Tensor)", _attention_shapes, _attention)


def _attention_backward(qkv: Tensor, probabilities: Tensor, grad: Tensor, skip: int, grad_qkv: Tensor) -> None:
    batch, tokens, heads, _, dim = qkv.shape
    _call("attention_backward", qkv.dtype, batch, tokens, heads, dim, skip, qkv, probabilities, grad, grad_qkv)


_operator(
    "cpu_attention_backward(Tensor qkv, Tensor probabilities, Tensor grad, int skip) -> Tensor",
    lambda qkv, probabilities, grad, skip: _dense_like(qkv),
    _attention_backward,
)
