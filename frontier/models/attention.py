"""softmax(q k^T / sqrt(head_dim)) v, through the kernel that suits device, precision and length."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from frontier.models.cpu.operators import suits

SAVED_OPERATORS: set[str] = {"frontier::attention_on_meta", "frontier::cpu_attention"}
"""Names of attention operators beyond PyTorch's, whose results selective checkpointing keeps. A family adds its own where it defines them."""

KERNEL_MAX_TOKENS = 256
"""Longest sequence for our CPU operators, whose heads must fit the caches."""

PRODUCTS_MAX_TOKENS = 512
"""Longest sequence whose probabilities are kept: beyond it their memory outweighs the speed."""


def attention_padding(head_dim: int, device_type: str) -> int:
    """Zero columns to append to q, k and v: fused GPU kernels want a head dim that is a multiple of 8."""
    return 0 if device_type == "cpu" else -head_dim % 8


def padded_attention(q: Tensor, k: Tensor, v: Tensor, padding: int | None = None) -> Tensor:
    """PyTorch's attention for [batch, heads, tokens, head_dim], with `padding` zero columns if asked.

    The result is that without padding: zeros add nothing to the product of a query and a key, the scale is that
    of the true head dim, and the padded columns of the output are dropped. The cost is the attention kernel's
    only: head dim 105 becomes 112, 6.7 % more work there. None pads by what the device wants.
    """
    head_dim = q.shape[-1]
    if q.device.type == "meta" and _fused_on_meta.get():
        return AttentionOnMeta.apply(q, k, v)
    if padding is None:
        padding = attention_padding(head_dim, q.device.type)
    if padding == 0:
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (F.pad(t, (0, padding)) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=head_dim**-0.5)[..., :head_dim]


_fused_on_meta: ContextVar[str] = ContextVar("fused_on_meta", default="")


@contextmanager
def fused_on_meta(device_type: str = "cuda") -> Iterator[None]:
    """Count memory on meta as the kernels of such a device use it: fused ones (`AttentionOnMeta`), or what `self_attention` takes
    on a CPU. Without it PyTorch's unfused maths is traced.
    """
    token = _fused_on_meta.set(device_type)
    try:
        yield
    finally:
        _fused_on_meta.reset(token)


def counted_on_meta() -> str:
    """The type of the device whose kernels `fused_on_meta` counts now; empty outside it."""
    return _fused_on_meta.get()


def meant_device(x: Tensor) -> str:
    """The type of the device of x; of a tensor on meta the one that `fused_on_meta` counts, empty outside it."""
    return x.device.type if x.device.type != "meta" else _fused_on_meta.get()


@torch.library.custom_op("frontier::attention_on_meta", mutates_args=())
def attention_on_meta(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The shape of the result, laid out as fused kernels do: tokens outside, heads inside."""
    batch, heads, tokens, dim = q.shape
    return q.new_empty(batch, tokens, heads, dim).transpose(1, 2)


@attention_on_meta.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, tokens, dim = q.shape
    return q.new_empty(batch, tokens, heads, dim).transpose(1, 2)


class AttentionOnMeta(torch.autograd.Function):
    """Attention that computes nothing and keeps what fused kernels keep, and `more` tensors: counting on meta would otherwise
    meet PyTorch's unfused one, which keeps the probabilities.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        out = torch.ops.frontier.attention_on_meta(q, k, v)
        ctx.save_for_backward(q, k, v, out, *more)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, _, *more = ctx.saved_tensors  # read once: checkpointing makes them then
        return grad.new_empty(q.shape), grad.new_empty(k.shape), grad.new_empty(v.shape), *(None for _ in more)


class ProductAttention(torch.autograd.Function):
    """Attention as batched matrix products that keep the probabilities P for the backward pass.

    Forward: P = softmax(s Q K^T), O = P V with s = 1 / sqrt(head_dim). Backward of dO: dV = P^T dO,
    dS = P * (dO V^T - rowsum(O * dO)), dQ = s dS K, dK = s dS^T Q, as rowsum(P * dP) = rowsum(O * dO). One copy brings q, k and v into
    [3, batch * heads, tokens, head_dim], one brings their gradients back.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, first_query: int) -> Tensor:
        """qkv [B, N, H, 3, d] -> [B, N - first_query, H * d]."""
        batch, tokens, heads, _, dim = qkv.shape
        packed = qkv.permute(3, 0, 2, 1, 4).reshape(3, batch * heads, tokens, dim)
        q, k, v = packed.unbind(0)
        q = q[:, first_query:]
        scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=dim**-0.5)
        p = torch.softmax(scores, -1)
        out = torch.bmm(p, v)
        ctx.save_for_backward(packed, p, out)
        ctx.sizes = batch, tokens, heads, dim, first_query
        out = out.view(batch, heads, tokens - first_query, dim)
        return out.transpose(1, 2).reshape(batch, tokens - first_query, heads * dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        batch, tokens, heads, dim, first_query = ctx.sizes
        packed, p, out = ctx.saved_tensors
        q, k, v = packed.unbind(0)
        q = q[:, first_query:]
        queries, scale, none = tokens - first_query, dim**-0.5, grad.new_empty(())
        grad = grad.view(batch, queries, heads, dim).transpose(1, 2).reshape(batch * heads, queries, dim)
        delta = (grad * out).sum(-1, keepdim=True)
        ds = torch.baddbmm(delta, grad, v.transpose(1, 2), beta=-1).mul_(p)
        dq = torch.baddbmm(none, ds, k, beta=0, alpha=scale)
        if first_query:
            dq = F.pad(dq, (0, 0, first_query, 0))
        dk = torch.baddbmm(none, ds.transpose(1, 2), q, beta=0, alpha=scale)
        packed_grad = torch.stack([dq, dk, torch.bmm(p.transpose(1, 2), grad)])
        shape = (3, batch, heads, tokens, dim)
        return packed_grad.view(shape).permute(1, 3, 2, 0, 4).contiguous(), None


class KernelAttention(torch.autograd.Function):
    """Attention by our CPU operators: as `ProductAttention`, one head at a time within the caches, without a copy of q, k and v."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, first_query: int) -> Tensor:
        """qkv [B, N, H, 3, d] -> [B, N - first_query, H * d]."""
        out, p = torch.ops.frontier.cpu_attention(qkv, first_query, True)
        ctx.save_for_backward(qkv, p)
        ctx.first_query = first_query
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        qkv, p = ctx.saved_tensors
        return torch.ops.frontier.cpu_attention_backward(qkv, p, grad, ctx.first_query), None


def self_attention(qkv: Tensor, first_query: int = 0) -> Tensor:
    """qkv [B, N, H, 3, d] -> [B, N - first_query, H * d]: tokens from `first_query` on ask, all answer.

    On a CPU in bf16 the fused kernel's backward pass is slower than batched products by 2.5 to 7 times (17 to
    197 tokens), so short sequences take `ProductAttention` there; everything else takes PyTorch's kernels.
    """
    device_type = meant_device(qkv)
    if qkv.shape[1] <= KERNEL_MAX_TOKENS and suits(device_type, qkv.shape[-1], qkv):
        if torch.is_grad_enabled() and qkv.requires_grad:
            return KernelAttention.apply(qkv, first_query)
        return torch.ops.frontier.cpu_attention(qkv, first_query, False)[0]
    if device_type == "cpu" and qkv.dtype == torch.bfloat16 and qkv.shape[1] <= PRODUCTS_MAX_TOKENS:
        return ProductAttention.apply(qkv, first_query)
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(-2))
    return padded_attention(q[:, :, first_query:], k, v).transpose(1, 2).flatten(2)
