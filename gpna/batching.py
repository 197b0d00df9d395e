"""Batches of samples with different numbers of tokens: clusters of similar length, and their index tensors.

The paper (7.2) pads inside clusters that DBSCAN finds on the token counts, with the largest padding as DBSCAN's eps. That alone bounds
nothing: DBSCAN chains, so lengths 1, 61, 121, …, 14941 are one cluster at eps = 64. `cluster` therefore cuts its clusters further, so that
the longest sample of each is at most `max_padding` tokens longer than the shortest. All of it is host work in NumPy.

Which cuts: a dynamic programme over the sorted lengths finds, among all that keep the bounds, those with the least
padding + `cluster_cost` x (number of clusters) ("dbscan"); "greedy" takes the fewest clusters that keep the bounds. The bounds forbid a cluster over a gap
wider than `max_padding`, which are just the gaps where DBSCAN cuts, so both refine DBSCAN's clusters. `benchmarks/gpna_batching.py` measures
them: at equal bounds the programme leaves a fraction of greedy's padding, as it cuts right behind the lengths that many samples share.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from frontier.errors import UserError

Method = Literal["dbscan", "greedy", "one", "each"]

MAX_PADDING = 0.1
CLUSTER_COST = 0.0003


def dbscan(lengths: np.ndarray, eps: float) -> list[np.ndarray]:
    """DBSCAN with min_samples = 1 on numbers: sample indices of every cluster, from the shortest on.

    With min_samples = 1 every sample is a core sample, so clusters are the connected components of "at most eps apart", which for numbers
    are the runs of the sorted list without a gap above eps. The same clusters as scikit-learn's, whose neighbour lists take
    0.1 to 2.1 s for 20,000 distinct lengths (eps 64 to 4,096), and gigabytes for equal ones.
    """
    order = np.argsort(lengths, kind="stable")
    cuts = np.flatnonzero(np.diff(lengths[order]) > eps) + 1
    return np.split(order, cuts) if len(order) else []


def padding_bound(lengths: np.ndarray, max_padding: int | float) -> int:
    """`max_padding` in tokens: itself, or, below 1, that share of the mean number of tokens of the samples that have any, rounded down."""
    if isinstance(max_padding, (int, np.integer)) and not isinstance(max_padding, bool) and max_padding >= 0:
        return int(max_padding)
    if not isinstance(max_padding, float) or not 0 < max_padding < 1:
        raise UserError(
            f"max_padding is {max_padding!r}: give a number of tokens (0, 1, 2, …) or a share of the mean token count between 0 and 1"
        )
    real = lengths[lengths > 0]
    return int(max_padding * real.mean()) if len(real) else 0


def cluster(
    lengths: np.ndarray,
    max_padding: int | float = MAX_PADDING,
    max_tokens: int | None = None,
    method: Method = "dbscan",
    cluster_cost: float = CLUSTER_COST,
) -> list[np.ndarray]:
    """Split samples into clusters to be padded to their longest member; deterministic, by length alone (ties by index).

    Args:
        lengths: tokens of each sample, [samples] of integers >= 0.
        max_padding: most padding of a sample: a number of tokens, or below 1 a share of the mean token count. A share p bounds the waste of
            the batch too: at most p tokens of padding per real one, whatever the lengths.
        max_tokens: most tokens of a cluster with its padding; a longer sample stands alone. None is no limit.
        method: "dbscan": least padding + cost of clusters; "greedy": fewest clusters; "one": a single padded batch; "each": every sample
            alone. The last two know no bounds.
        cluster_cost: what one more cluster costs, as a share of the batch's real tokens, at least one token ("dbscan" only). The default wastes at
            most 1.1 % on the mixes of the benchmark; where starting kernels costs more than their work (small models on GPUs), 0.002 takes
            up to 40 % fewer clusters and wastes up to 2.4 %.

    Returns:
        Index arrays (int64), the shortest samples first; samples without tokens are a cluster of their own, the first.

    Raises:
        UserError: an unknown method, or a bound that is none.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    bound = padding_bound(lengths, max_padding)
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}: give at least 1, or null for no limit")
    if cluster_cost < 0:
        raise UserError(f"cluster_cost is {cluster_cost}: give a share of the batch's tokens, 0 or more")
    if method not in ("dbscan", "greedy", "one", "each"):
        raise UserError(f"clusters by {method!r} are unknown: choose dbscan, greedy, one or each")
    order = np.argsort(lengths, kind="stable")
    empty = int(np.searchsorted(lengths[order], 1))
    head, order = order[:empty], order[empty:]
    ordered = lengths[order]
    if method == "one" or not len(order):
        starts = [0]
    elif method == "each":
        starts = list(range(len(order)))
    elif method == "greedy":
        starts = fewest_clusters(ordered, bound, max_tokens)
    else:
        starts = least_cost(ordered, bound, max_tokens, max(1, round(cluster_cost * int(ordered.sum()))))
    stops = [*starts[1:], len(order)]
    found = [head] + [order[a:b] for a, b in zip(starts, stops, strict=True)]
    return [rows for rows in found if len(rows)]


def fewest_clusters(ordered: np.ndarray, bound: int, max_tokens: int | None) -> list[int]:
    """First positions of the fewest clusters of sorted lengths > 0: each takes all it may, from the shortest on.

    This is optimal: parts of an allowed cluster are allowed, and any allowed clusters can be exchanged into runs of the sorted list.
    """
    cap = max_tokens or int(ordered[-1]) * len(ordered)
    starts: list[int] = []
    low = count = 0
    for position, length in enumerate(ordered.tolist()):
        if not starts or length - low > bound or (count + 1) * length > cap:
            starts.append(position)
            low, count = length, 0
        count += 1
    return starts


def least_cost(ordered: np.ndarray, bound: int, max_tokens: int | None, cost: int) -> list[int]:
    """First positions of the runs of sorted lengths > 0 with the least padding + cost x runs that keep the bounds; exact, in integers.

    best(j) = min over i of best(i) + length(j) (count(j) - count(i)) + cost, where i opens the run that ends with j and count(i) samples come before it;
    the sum of the lengths themselves is left out, as no choice changes it. The price is Monge, also where the bounds make it infinite, so the best i only grows with j:
    a queue holds the openings that are still to have their turn, each with the first j at which it beats the one before.
    O(n log n) for n items: distinct lengths, as equal ones stay together, or samples where `max_tokens` may part equal ones.
    """
    if max_tokens is None:
        lengths, firsts = np.unique(ordered, return_index=True)
    else:
        lengths, firsts = ordered, np.arange(len(ordered))
    opens = np.searchsorted(lengths, lengths - bound)  # the first i that may open a run ending with j
    if max_tokens is not None:
        opens = np.maximum(opens, np.arange(1, len(lengths) + 1) - np.maximum(max_tokens // lengths, 1))
    until = np.searchsorted(opens, np.arange(len(lengths)), "right").tolist()  # the first j for which i is too far
    values, count = lengths.tolist(), [*firsts.tolist(), len(ordered)]
    best, choice = [0], []
    queue: list[int] = []
    turns: list[int] = []
    head = 0
    for j, value in enumerate(values):
        turn = j
        while len(queue) > head:
            last = queue[-1]
            # j beats `last` from the length at which its run, with fewer samples to pad, makes up for what came before
            even = -((best[last] - best[j]) // (count[j] - count[last]))
            turn = max(j, min(until[last], bisect_left(values, even, j)))
            if turn > turns[-1]:
                break
            queue.pop()
            turns.pop()
        queue.append(j)
        turns.append(turn)
        while head + 1 < len(queue) and turns[head + 1] <= j:
            head += 1
        i = queue[head]
        best.append(best[i] + value * (count[j + 1] - count[i]) + cost)
        choice.append(i)
    starts = []
    end = len(values)
    while end:
        end = choice[end - 1]
        starts.append(count[end])
    return starts[::-1]


def waste(lengths: np.ndarray, clusters: Sequence[np.ndarray]) -> float:
    """Padding tokens per real token."""
    lengths = np.asarray(lengths, dtype=np.int64)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in clusters)
    return padded / max(int(lengths.sum()), 1) - 1 if padded else 0.0


@dataclass(frozen=True)
class Cluster:
    """Samples that are padded to one length.

    Attributes:
        samples: [n] int64, their places in the batch.
        tokens: [n, length] int64, rows of the flat token buffer; 0 where there is padding.
        there: [n, length] bool, False at padding; None where there is none.
        start: first row, where the tokens are one unbroken run of the buffer without padding, so that a view will do; else None.
    """

    samples: Tensor
    tokens: Tensor
    there: Tensor | None = None
    start: int | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Cluster:
        """The same on `device`."""
        there = None if self.there is None else self.there.to(device, non_blocking=non_blocking)
        samples = self.samples.to(device, non_blocking=non_blocking)
        return Cluster(samples, self.tokens.to(device, non_blocking=non_blocking), there, self.start)

    def plain(self) -> dict[str, Any]:
        """What a forward pass needs: samples and either start (int) and length (int) of a run, or tokens and, where needed, there."""
        if self.start is not None:
            return {"samples": self.samples, "start": self.start, "length": self.tokens.shape[1]}
        found = {"samples": self.samples, "tokens": self.tokens}
        return found if self.there is None else found | {"there": self.there}


@dataclass(frozen=True)
class Packing:
    """A batch of `samples` samples in clusters; every sample is in one of them."""

    samples: int
    clusters: list[Cluster]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Packing:
        """The same on `device`."""
        return Packing(self.samples, [part.to(device, non_blocking) for part in self.clusters])

    def plain(self) -> list[dict[str, Any]]:
        """The clusters as plain dicts of tensors and numbers (`Cluster.plain`): what engines let through to a sharded module."""
        return [part.plain() for part in self.clusters]


def pack(index_of_tokens: Sequence[np.ndarray], clusters: Sequence[np.ndarray]) -> Packing:
    """The index tensors of a batch, on the host.

    Args:
        index_of_tokens: of each sample, the rows of its tokens in the flat buffer, in the order the sample shall have; tokens that are
            missing are left out.
        clusters: sample indices, as `cluster` gives for the lengths of `index_of_tokens`.

    Raises:
        UserError: a sample is in no cluster or in two, or a token is in two samples.
    """
    lengths = np.fromiter((len(rows) for rows in index_of_tokens), np.int64, len(index_of_tokens))
    members = np.concatenate([np.asarray(rows, np.int64) for rows in clusters]) if len(clusters) else np.empty(0, int)
    if not np.array_equal(np.sort(members), np.arange(len(lengths))):
        raise UserError(f"{len(members)} members of clusters for {len(lengths)} samples: each must be in one cluster")
    flat = np.concatenate([np.empty(0, np.int64), *index_of_tokens]).astype(np.int64, copy=False)
    if len(flat) and np.bincount(flat).max() > 1:
        raise UserError("a token is in two samples: give each row of the flat buffer once")
    starts = np.cumsum(lengths) - lengths
    # Samples without tokens stand apart, so that no row of a mask is all padding.
    split = [part for rows in clusters for part in (rows[lengths[rows] == 0], rows[lengths[rows] > 0]) if len(part)]
    return Packing(len(lengths), [_pack_one(flat, starts[rows], lengths[rows], rows) for rows in split])


def _pack_one(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> Cluster:
    """The cluster of samples `rows`, whose tokens are flat[starts:starts + lengths]."""
    position = np.arange(lengths.max())
    there = position < lengths[:, None]
    tokens = np.where(there, flat[np.where(there, starts[:, None] + position, 0)] if len(flat) else 0, 0)
    full = bool(there.all())
    run = (
        full
        and tokens.size > 0
        and tokens[-1, -1] - tokens[0, 0] + 1 == tokens.size
        and bool((np.diff(tokens.ravel()) == 1).all())
    )
    return Cluster(
        torch.from_numpy(np.array(rows, np.int64)),
        torch.from_numpy(tokens),
        None if full else torch.from_numpy(there),
        int(tokens[0, 0]) if run else None,
    )
