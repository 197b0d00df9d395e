"""The pre-norm transformer block and its parts. Single-device maths: no collectives here.

Tokens are [batch, tokens, width]. Linear layers are called as modules, so that a tensor-parallel plan may
shard them (`qkv`, `fc1`, `gate` by output, `proj`, `fc2` by input): the rows of `qkv` are laid out [heads, 3,
head_dim], so a slice of its output holds whole heads.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.models.attention import KERNEL_MAX_TOKENS, self_attention
from frontier.models.block_function import BlockFunction, MLPFunction, fits
from frontier.models.cpu.operators import LANES
from frontier.models.linear import Linear
from frontier.models.pointwise import LayerNorm, gelu
from frontier.models.presets import MLPKind


@dataclass(frozen=True)
class TensorPlan:
    """How a module is split over the ranks of a tensor group (`frontier.parallel.tensor`).

    The module's tensor arguments are [samples, ...]. What else it has by head or unit it cuts in a method `split(rank, ranks)`.

    Attributes:
        column: names of its linear layers that are cut by output features; they see the module's input.
        row: those cut by input features; they make its output.
        counts: what must divide by the number of ranks, by name.
    """

    column: tuple[str, ...]
    row: tuple[str, ...]
    counts: dict[str, int]


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.tensor_plan = TensorPlan(("qkv",), ("proj",), {"heads": heads})
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, first_query: int = 0) -> Tensor:
        """[B, N, D] -> [B, N - first_query, D]: only tokens from `first_query` on ask, all of them answer."""
        qkv = self.qkv(x).unflatten(-1, (-1, 3, self.head_dim))
        return self.proj(self_attention(qkv, first_query))


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), or, gated, fc2(silu(gate(x)) * fc1(x)) (SwiGLU, arXiv 2002.05202). The GELU is exact.

    Attributes:
        as_one: whether both layers may run as one function; not where results of single operators are kept (selective checkpointing).
    """

    def __init__(self, width: int, hidden: int, kind: MLPKind = "plain") -> None:
        super().__init__()
        self.as_one = True
        self.tensor_plan = TensorPlan(("fc1", "gate"), ("fc2",), {"hidden units": hidden})
        self.fc1 = Linear(width, hidden)
        self.gate = Linear(width, hidden) if kind == "gated" else None
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            if self.as_one and fits((self.fc1, self.fc2), x):
                fc1, fc2 = self.fc1, self.fc2
                out = MLPFunction.apply(x.flatten(0, -2), fc1.weight, fc1.bias, fc2.weight, fc2.bias)
                return out.unflatten(0, x.shape[:-1])
            return self.fc2(gelu(self.fc1(x)))
        return self.fc2(F.silu(self.gate(x)) * self.fc1(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, mlp: MLPKind = "plain", eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, mlp)

    def forward(self, x: Tensor, first_query: int = 0) -> Tensor:
        """[B, N, D] -> [B, N - first_query, D]: with `first_query` the leading tokens are keys and values
        only.
        """
        if self.runs_as_one(x):
            attn, mlp = self.attn, self.mlp
            layers = self.norm1, attn.qkv, attn.proj, self.norm2, mlp.fc1, mlp.fc2
            parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
            heads, epsilons = attn.qkv.out_features // (3 * attn.head_dim), (self.norm1.eps, self.norm2.eps)
            return BlockFunction.apply(x, heads, first_query, epsilons, *parameters)
        x, normed = self.norm1.with_sum(x)
        x, normed = self.norm2.with_sum(x[:, first_query:], self.attn(normed, first_query))
        return x + self.mlp(normed)

    def runs_as_one(self, x: Tensor) -> bool:
        attn, mlp = self.attn, self.mlp
        return (
            mlp.gate is None
            and mlp.as_one
            and x.shape[1] <= KERNEL_MAX_TOKENS
            and attn.head_dim % LANES == 0
            and fits((self.norm1, self.norm2, attn, attn.qkv, attn.proj, mlp, mlp.fc1, mlp.fc2), x)
        )


def gather_rows(x: Tensor, ids: Tensor) -> Tensor:
    """x [B, L, D], ids [B, K] -> [B, K, D]."""
    first = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    return x.flatten(0, 1).index_select(0, (ids + first[:, None]).flatten()).unflatten(0, ids.shape)
