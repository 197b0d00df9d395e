"""Clusters against classes. See `frontier.metrics`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bootstrap import RESAMPLES, Values, over, with_intervals


def clustering(clusters: ArrayLike, classes: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """`nmi` and `ari` of cluster numbers [n] and class numbers [n], neither negative.

    `nmi`: mutual information over the arithmetic mean of the two entropies. `ari`: the adjusted Rand index, the share of pairs
    of samples that both partitions treat alike, less what chance gives, over the most that could be (Hubert and Arabie 1985).
    Both are lifted by resampling, so their intervals are centred: see `bootstrap.interval`. They tell what other samples of
    equal number would give; of few samples `nmi` is above that of many.
    """
    c, t = np.asarray(clusters), np.asarray(classes)
    table = contingency(c, t)
    cells = np.zeros((len(c), table.size))
    cells[np.arange(len(c)), c * table.shape[1] + t] = 1

    def values(sums: NDArray[np.float64]) -> Values:
        return _agreement(sums.reshape(*sums.shape[:-1], *table.shape))

    return with_intervals(cells, values, None, seed, resamples, centred=True)


def contingency(clusters: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.int64]:
    """[clusters, classes] samples of each pair of numbers."""
    rows, columns = int(clusters.max(initial=-1)) + 1, int(classes.max(initial=-1)) + 1
    return np.bincount(clusters * columns + classes, minlength=rows * columns).reshape(rows, columns)


def best_assignment(clusters: NDArray[Any], classes: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The class [count] of each cluster: the one-to-one assignment that makes most samples right (the Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    table = np.zeros((count, count), np.int64)
    found = contingency(clusters, classes)
    table[: found.shape[0], : found.shape[1]] = found
    return linear_sum_assignment(table, maximize=True)[1]


def _agreement(table: NDArray[np.float64]) -> Values:
    rows, columns, n = table.sum(-1), table.sum(-2), table.sum((-1, -2))
    of_rows, of_columns = _entropy(rows, n), _entropy(columns, n)
    joint = _entropy(table.reshape(*table.shape[:-2], -1), n)
    mean = (of_rows + of_columns) / 2
    pairs = [_pairs(part).sum(-1) for part in (table.reshape(*table.shape[:-2], -1), rows, columns)]
    chance = over(pairs[1] * pairs[2], _pairs(n))
    most = (pairs[1] + pairs[2]) / 2
    # Two partitions into one part each are the same partition.
    return {
        "nmi": np.where(mean > 0, over(of_rows + of_columns - joint, mean), 1.0),
        "ari": np.where(most != chance, over(pairs[0] - chance, most - chance), 1.0),
    }


def _entropy(counts: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of shares counts [..., m] / n [...], in nats."""
    share = over(counts, n[..., None])
    return -(share * np.log(np.where(share > 0, share, 1))).sum(-1)


def _pairs(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return counts * (counts - 1) / 2
