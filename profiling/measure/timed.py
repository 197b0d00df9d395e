"""Statistics of timed steps: the median, its spread and its confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

WARM_UP = 5


@dataclass(frozen=True)
class Timed:
    """Seconds of a step over `count` timed ones."""

    median: float
    p10: float
    p90: float
    ci95: tuple[float, float] | None
    """Of the median; None below six steps, from which no 95 % interval can be had."""
    count: int


def after_warm_up(starts: np.ndarray) -> np.ndarray:
    """Mask [n] of the steps that count. `starts` [n]: the start of the run that each logged step belongs to.

    Of every start the first `WARM_UP` steps are dropped, at most a fifth of them, rounded up: compilation, cold caches, memory that still
    grows. The only step of a start is warm-up.
    """
    keep = np.ones(len(starts), dtype=bool)
    for value in np.unique(starts):
        own = np.flatnonzero(starts == value)
        keep[own[: min(WARM_UP, math.ceil(len(own) / 5))]] = False
    return keep


def median_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % confidence interval of the median by order statistics: no distribution is assumed, and nothing is drawn.

    The k-th smallest and k-th largest of n values hold the median with probability 1 - 2 P(Binomial(n, 1/2) < k); k is the largest
    for which that is at least 95 % (Conover, Practical Nonparametric Statistics, 3.2). None below n = 6. It takes the values
    as independent: slow drifts of a machine make it too narrow.
    """
    n, below, k = len(values), 0.0, 0
    while 2 * (below + math.comb(n, k) / 2**n) <= 0.05:
        below += math.comb(n, k) / 2**n
        k += 1
    if k == 0:
        return None
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[n - k])


def timed(seconds: np.ndarray) -> Timed | None:
    """None where no value is finite."""
    finite = seconds[np.isfinite(seconds)]
    if not finite.size:
        return None
    p10, median, p90 = (float(value) for value in np.percentile(finite, [10, 50, 90]))
    return Timed(median, p10, p90, median_interval(finite), int(finite.size))
