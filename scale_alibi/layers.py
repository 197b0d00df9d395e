"""Transformer blocks whose attention knows how far apart tokens are. Single-device maths.

A block is that of CROMA's released weights: pre-norm, projections to queries, keys and values without bias, an MLP of four widths with the
exact GELU, layer norms with an epsilon of 1e-5. A block of a cross-encoder has three steps: self-attention, cross-attention to the
context, MLP; one norm serves queries and context.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from frontier.models.attention import padded_attention
from frontier.models.layers import MLP, TensorPlan
from frontier.models.linear import Linear
from frontier.models.pointwise import LayerNorm
from scale_alibi import geometry
from scale_alibi.attention import attend

EPS = 1e-5


@cache
@torch.inference_mode(False)  # what inference made could not be kept for a later backward pass
def kept_slopes(heads: int, first: int, count: int, device: torch.device) -> Tensor:
    """Slopes of heads `first` to `first + count - 1` of `heads` [count], on `device`: sent there once."""
    return geometry.slopes(heads)[first : first + count].to(device)


@torch.compiler.assume_constant_result  # compilers would look past the cache, and warn of it
def slopes_of(heads: int, first: int, count: int, device: torch.device) -> Tensor:
    """As `kept_slopes`."""
    return kept_slopes(heads, first, count, device)


class Heads(nn.Module):
    """What self- and cross-attention share: which heads are held here, and how they look.

    Args:
        power: of the distance in the bias, 1 or 2; 0: no bias, places are not looked at.
        backend: see `scale_alibi.attention.attend`.
    """

    def __init__(self, width: int, heads: int, power: int, backend: str) -> None:
        super().__init__()
        self.heads, self.head_dim, self.power, self.backend = heads, width // heads, power, backend
        self.held = (0, heads)

    def split(self, rank: int, ranks: int) -> None:
        """Hold the heads of rank `rank` of a tensor group of `ranks`."""
        count = self.heads // ranks
        self.held = (rank * count, count)

    def look(self, q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor) -> Tensor:
        """q [B, H, N, d], k and v [B, H, M, d] of the heads held, places [B, N, 2] and [B, M, 2] -> [B, N, H * d]."""
        if self.power:
            slopes = slopes_of(self.heads, *self.held, q.device)
            out = attend(q, k, v, q_at, k_at, slopes, power=self.power, backend=self.backend)
        else:
            out = padded_attention(q, k, v)
        return out.transpose(1, 2).flatten(2)


class SelfAttention(Heads):
    """Rows of `qkv` are laid out [heads, 3, head_dim], as in `frontier.models.layers.Attention`."""

    def __init__(self, width: int, heads: int, power: int, backend: str) -> None:
        super().__init__(width, heads, power, backend)
        self.tensor_plan = TensorPlan(("qkv",), ("proj",), {"heads": heads})
        self.qkv = Linear(width, 3 * width, bias=False)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        """Tokens [B, N, D] at places [B, N, 2] -> [B, N, D]."""
        qkv = self.qkv(x).unflatten(-1, (-1, 3, self.head_dim))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(-2))
        return self.proj(self.look(q, k, v, at, at))


class CrossAttention(Heads):
    """Queries of one token stream, keys and values of another. Rows of `kv` are laid out [heads, 2, head_dim]."""

    def __init__(self, width: int, heads: int, power: int, backend: str) -> None:
        super().__init__(width, heads, power, backend)
        self.tensor_plan = TensorPlan(("q", "kv"), ("proj",), {"heads": heads})
        self.q = Linear(width, width, bias=False)
        self.kv = Linear(width, 2 * width, bias=False)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, at: Tensor, context_at: Tensor) -> Tensor:
        """x [B, N, D] at [B, N, 2], context [B, M, D] at [B, M, 2] -> [B, N, D]."""
        q = self.q(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        kv = self.kv(context).unflatten(-1, (-1, 2, self.head_dim))
        k, v = (t.transpose(1, 2) for t in kv.unbind(-2))
        return self.proj(self.look(q, k, v, at, context_at))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, power: int, backend: str) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=EPS)
        self.attn = SelfAttention(width, heads, power, backend)
        self.norm2 = LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        """Tokens [B, N, D] at places [B, N, 2] -> [B, N, D]."""
        x, normed = self.norm1.with_sum(x)
        x, normed = self.norm2.with_sum(x, self.attn(normed, at))
        return x + self.mlp(normed)


class CrossBlock(nn.Module):
    """Self-attention among x, attention of x to a context, MLP."""

    def __init__(self, width: int, heads: int, power: int, backend: str) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=EPS)
        self.attn = SelfAttention(width, heads, power, backend)
        self.norm_cross = LayerNorm(width, eps=EPS)
        self.cross = CrossAttention(width, heads, power, backend)
        self.norm2 = LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor, context: Tensor, at: Tensor, context_at: Tensor) -> Tensor:
        """x [B, N, D] at [B, N, 2], context [B, M, D] at [B, M, 2] -> [B, N, D]."""
        x, normed = self.norm1.with_sum(x)
        x, normed = self.norm_cross.with_sum(x, self.attn(normed, at))
        x, normed = self.norm2.with_sum(x, self.cross(normed, self.norm_cross(context), at, context_at))
        return x + self.mlp(normed)
