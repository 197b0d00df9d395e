"""Some samples of a split as a split of their own: few-label comparisons, learning curves, quick trials."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from frontier.data.shards import ShardSet
from frontier.errors import UserError


class Subset(ShardSet):
    """`count` samples of the split that `shards` is opened on, drawn at random by `seed`, in stored order.

    Every smaller count with the same seed is a part of every larger one. Reads go sample by sample: meant for small parts.
    """

    def __init__(self, shards: ShardSet, count: int, seed: int) -> None:
        if not 1 <= count <= len(shards):
            raise UserError(f"{count} samples of {shards.path} asked for: its split {shards.split} has {len(shards)}")
        self.__dict__.update(shards.__dict__)
        self.whole = shards
        drawn = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, len(shards)]))).permutation(
            len(shards)
        )
        self.rows: np.ndarray = np.sort(drawn[:count])
        self.shard_starts = np.array([0, count], np.int64)
        told = f"{shards.fingerprint} {count} {seed}"
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()

    def read(
        self,
        column: str,
        start: int,
        stop: int,
        out: np.ndarray | None = None,
        places: np.ndarray | None = None,
    ) -> np.ndarray:
        """As `ShardSet.read`, of the subset's samples."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"samples {start}:{stop} of {len(self)}")
        if places is None:
            return self.whole.take(column, self.rows[start:stop], out)
        if out is None or len(places) != stop - start:
            raise ValueError("places need out, and one place a sample")
        out[places] = self.whole.take(column, self.rows[start:stop])
        return out

    def take(self, column: str, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """As `ShardSet.take`, of the subset's samples."""
        return self.whole.take(column, self.rows[np.asarray(indices, np.int64).reshape(-1)], out)

    def column(self, name: str) -> np.ndarray:
        """As `ShardSet.column`, of the subset's samples."""
        return self.whole.column(name)[self.rows]
