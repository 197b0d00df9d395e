"""A gather over the data ranks that carries gradients, for losses that compare samples of the whole global batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        pieces = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, rows.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows_of_all_ranks(rows: Tensor) -> Tensor:
    """[B, …] of every rank -> [ranks x B, …] in rank order, the same on all ranks.

    Each rank computes the same loss L of the result. The backward pass sums the ranks' gradients, so a rank gets
    ranks x dL/d(its rows); averaging parameter gradients over ranks, as data parallelism does, then gives those of L.
    """
    return rows if dist.get_world_size() == 1 else _GatherRows.apply(rows)
