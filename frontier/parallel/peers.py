"""The ranks of a mesh as `frontier.models.peers.Peers`."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from frontier.launch.mesh import ParallelDims


class DataRanks:
    """The data ranks of a mesh. Ranks of a tensor group that hold the same samples count once: what the first of them has stands for all."""

    def __init__(self, dims: ParallelDims, rank: int) -> None:
        self.count, self.rank = dims.data_ranks, dims.data_rank(rank)
        self._same = dims.world_size // dims.data_ranks

    def gather(self, rows: Tensor) -> Tensor:
        rows = rows.detach().contiguous()
        pieces = [torch.empty_like(rows) for _ in range(self.count * self._same)]
        dist.all_gather(pieces, rows)
        return torch.cat(pieces[:: self._same])
