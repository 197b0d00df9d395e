"""What a loss that compares the samples of a global batch needs of the other ranks."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class Peers(Protocol):
    """The ranks among which the samples of a step are shared out.

    Attributes:
        count: of them; rank: which of them this is.
    """

    count: int
    rank: int

    def gather(self, rows: Tensor) -> Tensor:
        """[B, ...] of this rank -> [count * B, ...] of all, in the order of ranks, without gradients. Collective."""
        ...


class Alone:
    """One device holds all samples."""

    count, rank = 1, 0

    def gather(self, rows: Tensor) -> Tensor:
        return rows.detach()


@runtime_checkable
class ComparesSamples(Protocol):
    """A module whose loss compares each sample with all others of the global batch, not of the micro-batch.

    Where a step has several micro-batches, each first goes through `forward(**inputs, embed_only=True)` without gradients,
    `compare` is given what came out, and what it returns is handed to the second forward pass of each, with gradients.

    Attributes:
        peers: set by the trainer.
    """

    peers: Peers

    def compare(self, embedded: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
        """Of all micro-batches of this rank, in order: what was embedded -> further keyword arguments of each one's forward."""
        ...
