"""The squared distance without a table: further dims of q and k on plain fused attention.

Of -m |x_i - x_j|^2 = 2 m x_i.x_j - m |x_j|^2 - m |x_i|^2 the last term is the same for all keys and leaves the softmax as it is. With
z = sqrt(2 m / s) x, of s = 1 / sqrt(d), what remains is s (z_i.z_j - |z_j|^2 / 2): three more dims of q and k, at the kernel's own scale.

A bf16 number has 8 bits, too few for z. So z is rounded to the sum of two bf16 numbers, high + low, and only that sum is used: the result
is the exact bias of places moved by at most 2^-17 of their size. Four products an axis give z_i.z_j, and |z_j|^2 / 2 goes in as three bf16
numbers, its 24 bits: 11 dims. GPUs take these in float32 as well, where products may be rounded to TF32's 11 bits. Places are centred first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _parts(x: Tensor, count: int) -> list[Tensor]:
    """x in float32 as a sum of so many bf16 numbers, greatest first, in float32."""
    parts = []
    for _ in range(count):
        part = x.bfloat16().float()
        parts.append(part)
        x = x - part
    return parts


def extra_dims(q_at: Tensor, k_at: Tensor, slopes: Tensor, head_dim: int, split: bool) -> tuple[Tensor, Tensor]:
    """Dims to append to q and k [B or 1, H, N or M, 3, or 11 if `split`], in float32."""
    centre = (k_at.amax(1, keepdim=True) + k_at.amin(1, keepdim=True)) / 2
    factors = (2 * slopes * head_dim**0.5).sqrt()[:, None, None]
    q_z, k_z = ((at - centre)[:, None] * factors for at in (q_at, k_at))
    if not split:
        half = k_z.square().sum(-1, keepdim=True) / 2
        return torch.cat([q_z, -torch.ones_like(q_z[..., :1])], -1), torch.cat([k_z, half], -1)
    (q_high, q_low), (k_high, k_low) = _parts(q_z, 2), _parts(k_z, 2)
    halves = _parts((k_high + k_low).square().sum(-1, keepdim=True) / 2, 3)
    minus = -torch.ones_like(q_z[..., :1])
    return (
        torch.cat([q_high, q_high, q_low, q_low, minus, minus, minus], -1),
        torch.cat([k_high, k_low, k_high, k_low, *halves], -1),
    )


def with_extra_dims(
    q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, device_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v for plain attention of scale 1 / sqrt(d): with the dims of `extra_dims`, as kernels of the device want them."""
    batch, dim = q.shape[0], q.shape[-1]
    split = device_type != "cpu" or q.dtype != torch.float32
    more = extra_dims(q_at, k_at, slopes, dim, split)
    q, k = (
        torch.cat([x, extra.to(x.dtype).expand(batch, -1, -1, -1)], -1) for x, extra in zip((q, k), more, strict=True)
    )
    padding = -q.shape[-1] % 16
    if padding:
        q, k = F.pad(q, (0, padding)), F.pad(k, (0, padding))
    return q, k, F.pad(v, (0, q.shape[-1] - dim))


def augmented(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, slopes: Tensor, power: int) -> Tensor:
    """`attend` of power 2 by plain fused attention."""
    assert power == 2, "only the squared distance has a finite rank"
    dim = q.shape[-1]
    q, k, v = with_extra_dims(q, k, v, q_at, k_at, slopes, q.device.type)
    return F.scaled_dot_product_attention(q, k, v, scale=dim**-0.5)[..., :dim]
