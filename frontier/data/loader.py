"""Batches of a rank: whole blocks read in order by background threads, a window ahead of the step."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from frontier.data.sampler import Block, Sampler
from frontier.data.shards import ShardSet


@dataclass(frozen=True)
class Batch:
    """What a rank trains on in one step.

    Attributes:
        images: [local_batch, C, H, W] as stored (integers or floats), on the host.
        members: [local_batch, 2] int64 (epoch, sample).
    """

    images: torch.Tensor
    members: torch.Tensor


class Loader:
    """Iterates over the batches of one rank from a given step on.

    A window's blocks stay in memory until its last batch: blocks_per_window / ranks x block x bytes of a sample,
    twice while the next window is being read.
    """

    def __init__(self, shards: ShardSet, column: str, sampler: Sampler, rank: int, ranks: int, workers: int) -> None:
        sampler.check_ranks(ranks)
        self.shards, self.column, self.sampler = shards, column, sampler
        self.rank, self.ranks = rank, ranks
        self._pool = ThreadPoolExecutor(workers, "shard-reader") if workers else None

    def _read(self, block: Block) -> np.ndarray:
        stop = block.start + self.sampler.block
        n = self.sampler.samples
        if stop <= n:
            return self.shards.read(self.column, block.start, stop)
        head = self.shards.read(self.column, block.start, n)
        return np.concatenate([head, self.shards.read(self.column, 0, stop - n)])

    def _start(self, window: int) -> tuple[list[Block], list[Future[np.ndarray] | None]]:
        blocks = self.sampler.blocks(window, self.rank, self.ranks)
        if self._pool is None:
            return blocks, [None] * len(blocks)
        return blocks, [self._pool.submit(self._read, block) for block in blocks]

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Endless; the caller stops asking."""
        sampler, step = self.sampler, first_step
        ahead = self._start(step // sampler.window)
        while True:
            window = step // sampler.window
            blocks, pending = ahead
            if self._pool is not None:
                ahead = self._start(window + 1)
            pieces = [
                future.result() if future is not None else self._read(block)
                for block, future in zip(blocks, pending, strict=True)
            ]
            while step // sampler.window == window:
                part = sampler.turn(step)
                images = np.concatenate([p[b.order[part]] for p, b in zip(pieces, blocks, strict=True)])
                members = np.concatenate([b.members[part] for b in blocks])
                yield Batch(torch.from_numpy(images), torch.from_numpy(members))
                step += 1
            if self._pool is None:
                ahead = self._start(step // sampler.window)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
