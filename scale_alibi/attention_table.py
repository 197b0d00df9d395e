"""Attention with a distance bias by tables of biases: a whole one (`eager`, the reference), or one of a chunk of queries at a time
given to PyTorch's fused kernels as a mask (`sdpa`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frontier.models.attention import attention_padding
from scale_alibi.geometry import distances, squared_distances

MASK_BYTES = 2**26
"""Largest mask of a chunk of queries. Sequences whose whole mask is no larger go through the fused kernel at once."""


def biases(q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int) -> Tensor:
    """-m_h g_ij^power [B or 1, H, N, M] in float32, for places [B or 1, N, 2] and [B or 1, M, 2]."""
    table = (distances if power == 1 else squared_distances)(q_at, k_at)
    return table[:, None] * -slopes[:, None, None]


def eager(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int) -> Tensor:
    """The formula of `attend`, word for word, scores and probabilities in float32 (float64 for float64)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * q.shape[-1] ** -0.5
    p = torch.softmax(scores + biases(q_at, k_at, slopes, power), -1)
    return (p @ v.to(dtype)).to(q.dtype)


def mask_dtype(q: Tensor, device_type: str) -> torch.dtype:
    """GPU kernels want the mask in the precision of the queries; those of a CPU take float32."""
    return torch.float32 if device_type == "cpu" else q.dtype


def chunk_length(q: Tensor, k: Tensor, device_type: str) -> int:
    """Queries whose mask for all samples and heads has at most `MASK_BYTES`; at least one, at most all."""
    batch, heads, queries, _ = q.shape
    row = batch * heads * k.shape[2] * mask_dtype(q, device_type).itemsize
    return min(queries, max(MASK_BYTES // row, 1))


def row_length(keys: int) -> int:
    """Elements from a row of a mask to the next: fused kernels want rows that begin at multiples of 8."""
    return keys + -keys % 8


def mask(q: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int) -> Tensor:
    """The biases [B, H, N, M] as the fused kernels want them."""
    table = biases(q_at, k_at, slopes, power).to(mask_dtype(q, q.device.type)).expand(q.shape[0], -1, -1, -1)
    keys = k_at.shape[1]
    return F.pad(table, (0, row_length(keys) - keys))[..., :keys] if keys % 8 else table


def masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's attention with a mask, head dims padded where the device wants it."""
    dim = q.shape[-1]
    padding = attention_padding(dim, q.device.type)
    if padding:
        q, k, v = (F.pad(t, (0, padding)) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=dim**-0.5)[..., :dim]


class SdpaInChunks(torch.autograd.Function):
    """`masked` for a chunk of queries at a time. The backward pass makes each chunk's mask and its forward pass again, so that nothing
    but q, k, v and the places is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, q_at, k_at, slopes)
        ctx.power = power
        length, out = chunk_length(q, k, q.device.type), torch.empty_like(q)
        for x, at, part in zip(q.split(length, 2), q_at.split(length, 1), out.split(length, 2), strict=True):
            part.copy_(masked(x, k, v, mask(x, at, k_at, slopes, power)))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, q_at, k_at, slopes = ctx.saved_tensors
        length, dq = chunk_length(q, k, q.device.type), torch.empty_like(q)
        sums = [torch.zeros_like(t, dtype=torch.float32) for t in (k, v)]
        k, v = (t.detach().requires_grad_() for t in (k, v))
        chunks = (t.split(length, 2) for t in (q, grad, dq))
        for (x, grad_x, dx), at in zip(zip(*chunks, strict=True), q_at.split(length, 1), strict=True):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                out = masked(x, k, v, mask(x, at, k_at, slopes, ctx.power))
            part, *others = torch.autograd.grad(out, (x, k, v), grad_x)
            dx.copy_(part)
            for total, other in zip(sums, others, strict=True):
                total += other
        dk, dv = (total.to(q.dtype) for total in sums)
        return dq, dk, dv, None, None, None, None


@torch.compiler.disable
def _in_chunks(*args: Any) -> Tensor:
    """Left out of compiled graphs: compilers do not follow the pass inside its backward pass."""
    return SdpaInChunks.apply(*args)


def sdpa(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int) -> Tensor:
    """`attend` by PyTorch's fused kernels with masks of at most `MASK_BYTES`."""
    if chunk_length(q, k, q.device.type) == q.shape[2]:
        return masked(q, k, v, mask(q, q_at, k_at, slopes, power))
    return _in_chunks(q, k, v, q_at, k_at, slopes, power)
