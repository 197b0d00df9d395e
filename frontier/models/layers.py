"""The pre-norm transformer block and its parts. Single-device maths: no collectives here.

Tokens are [batch, tokens, width]. Linear layers are called as modules, so that a tensor-parallel plan may
shard them (`qkv`, `fc1`, `gate` by output, `proj`, `fc2` by input): the rows of `qkv` are laid out [heads, 3,
head_dim], so a slice of its output holds whole heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.models.presets import MLPKind


def attention_padding(head_dim: int, device_type: str) -> int:
    """Zero columns to append to q, k and v: fused GPU kernels want a head dim that is a multiple of 8."""
    return 0 if device_type == "cpu" else -head_dim % 8


def scaled_attention(q: Tensor, k: Tensor, v: Tensor, padding: int | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v for [batch, heads, tokens, head_dim].

    `padding` zero columns (None: what the device wants) leave the result unchanged: they add 0 to each
    product of a query and a key, the scale is that of the true head dim, and the padded columns of the output
    are dropped. The cost is the attention kernel's only: head dim 105 becomes 112, 6.7 % more work there.
    """
    head_dim = q.shape[-1]
    if padding is None:
        padding = attention_padding(head_dim, q.device.type)
    if padding == 0:
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (F.pad(t, (0, padding)) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=head_dim**-0.5)[..., :head_dim]


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, first_query: int = 0) -> Tensor:
        """[B, N, D] -> [B, N - first_query, D]: only tokens from `first_query` on ask, all of them answer."""
        qkv = self.qkv(x).unflatten(-1, (-1, 3, self.head_dim))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(-2))
        out = scaled_attention(q[:, :, first_query:], k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), or, gated, fc2(silu(gate(x)) * fc1(x)) (SwiGLU, arXiv 2002.05202). GELU is the exact one."""

    def __init__(self, width: int, hidden: int, kind: MLPKind = "plain") -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden) if kind == "gated" else None
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.fc2(F.gelu(self.fc1(x)))
        return self.fc2(F.silu(self.gate(x)) * self.fc1(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, mlp: MLPKind = "plain", eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, mlp)

    def forward(self, x: Tensor, first_query: int = 0) -> Tensor:
        """[B, N, D] -> [B, N - first_query, D]: with `first_query` the leading tokens are keys and values
        only.
        """
        x = x[:, first_query:] + self.attn(self.norm1(x), first_query)
        return x + self.mlp(self.norm2(x))


def gather_rows(x: Tensor, ids: Tensor) -> Tensor:
    """x [B, L, D], ids [B, K] -> [B, K, D]."""
    return torch.gather(x, 1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
