"""How a task head asks: cross-attention of queries on the latents, then an MLP (Perceiver IO's decoder, arXiv 2107.14795).

By default nothing of a query is added to what it attends to, as in Perceiver IO's decoder for dense outputs and in GPNA's text ("the
output of the cross attention mechanism is then passed through a MLP", 7.1.2): a query decides only where to look. `residual=True` adds it, so
that the MLP sees the query too.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from frontier.models.attention import padded_attention
from frontier.models.layers import MLP
from frontier.models.linear import Linear
from frontier.models.pointwise import LayerNorm, gelu
from frontier.models.presets import check_heads

KeysValues = tuple[Tensor, Tensor]
"""Keys and values [B, heads, M, head_dim] of the latents."""


class QueryAttention(nn.Module):
    """proj(attention(q(norm(queries)), kv(norm(latents)))), plus the queries if `residual`."""

    def __init__(self, width: int, heads: int, residual: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        check_heads(width, heads, "attention_heads of a task head")
        self.head_dim, self.residual = width // heads, residual
        self.norm_queries = LayerNorm(width, eps=eps)
        self.norm_latents = LayerNorm(width, eps=eps)
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)

    def keys_values(self, latents: Tensor) -> KeysValues:
        """latents [B, M, D] -> keys and values, made once for all chunks of queries."""
        kv = self.kv(self.norm_latents(latents)).unflatten(-1, (2, -1, self.head_dim))
        k, v = kv.transpose(1, 3).unbind(2)
        return k, v

    def forward(self, queries: Tensor, keys_values: KeysValues, pick: Tensor | None = None) -> Tensor:
        """queries [Q, D] shared by the samples, or [B, Q, D] -> [B, Q, D]; of shared ones those of index pick [B, m] alone: [B, m, D]."""
        k, v = keys_values
        q = self.q(self.norm_queries(queries))
        if pick is not None:
            q, queries = F.embedding(pick, q), F.embedding(pick, queries) if self.residual else queries
        q = q.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)
        attended = padded_attention(q.expand(k.shape[0], -1, -1, -1), k, v)
        out = self.proj(attended.transpose(1, 2).flatten(2))
        return queries + out if self.residual else out


class QueryDecoder(nn.Module):
    """Queries -> projection -> one or more cross-attentions on the latents -> MLP of two layers -> outputs.

    Args:
        width: of the latents and of everything inside, D.
        heads: attention heads; they divide `width`.
        outputs: values for each query; None: the hidden features of the MLP, for output layers of the caller.
        query_width: of the queries, projected to D; None: they have D already.
        hidden: units of the MLP; default D.
        layers: cross-attentions. After each but the last x + mlp(norm(x)), and those after the first add their queries, as
            there the queries carry what was attended before.
        residual: the first adds its queries too.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        outputs: int | None,
        *,
        query_width: int | None = None,
        hidden: int | None = None,
        layers: int = 1,
        residual: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        hidden = hidden or width
        self.embed = Linear(query_width, width) if query_width else None
        self.attention = nn.ModuleList(QueryAttention(width, heads, residual or i > 0, eps) for i in range(layers))
        self.between_norm = nn.ModuleList(LayerNorm(width, eps=eps) for _ in range(layers - 1))
        self.between = nn.ModuleList(MLP(width, hidden) for _ in range(layers - 1))
        self.norm = LayerNorm(width, eps=eps)
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, outputs) if outputs else None

    def keys_values(self, latents: Tensor) -> list[KeysValues]:
        """latents [B, M, D] -> keys and values of every cross-attention."""
        return [cast(QueryAttention, attention).keys_values(latents) for attention in self.attention]

    def decode(self, queries: Tensor, keys_values: list[KeysValues], pick: Tensor | None = None) -> Tensor:
        """queries [Q, Dq] or [B, Q, Dq], of any float type -> outputs [B, Q, K].

        pick [B, m] int64: each sample asks for m of Q shared queries, [B, m, K]. They are projected before they are picked or
        after, whichever is less work.
        """
        x = queries.to(self.fc1.weight.dtype)
        if pick is not None and pick.numel() < len(x):
            x, pick = x[pick], None
        if self.embed is not None:
            x = self.embed(x)
        for i, attention in enumerate(self.attention):
            x = attention(x, keys_values[i], pick if i == 0 else None)
            if i < len(self.between):
                x = x + self.between[i](self.between_norm[i](x))
        x = gelu(self.fc1(self.norm(x)))
        return x if self.fc2 is None else self.fc2(x)

    def forward(self, queries: Tensor, latents: Tensor) -> Tensor:
        """queries [Q, Dq] or [B, Q, Dq], latents [B, M, D] -> outputs [B, Q, K]."""
        return self.decode(queries, self.keys_values(latents))


def in_chunks(step: Callable[[int, int], Tensor], count: int, size: int) -> Tensor:
    """step(first, last) [B, last - first, K] of consecutive chunks of at most `size` queries, put together to [B, count, K].

    Where gradients are recorded and there is more than one chunk, the backward pass computes each chunk again: what is held is the
    outputs, and the activations of one chunk.
    """
    if count <= size:
        return step(0, count)
    chunks = [(first, min(first + size, count)) for first in range(0, count, size)]
    if not torch.is_grad_enabled():
        return torch.cat([step(*chunk) for chunk in chunks], dim=1)
    again = [checkpoint(step, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(again, dim=1)
