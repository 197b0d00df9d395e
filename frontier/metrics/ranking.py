"""Average precision of scores of several labels. See `frontier.metrics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bootstrap import Values, mean_where, of_weights, over, same_shape

RESAMPLES = 500
"""Fewer than of other metrics: every resample is a pass over all answers in order of their scores."""


def average_precision(
    scores: ArrayLike, truth: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """`micro_map` and `macro_map` of scores [n, K] of labels [n, K] of 0 and 1, and `accuracy` of the answers score > 0.5.

    The average precision of a ranking is the sum over its distinct scores, from the highest, of the recall gained there times
    the precision so far (scikit-learn's, without interpolation). `macro_map` is the mean over the labels that any sample has;
    `micro_map` that of all n K answers as one ranking, and `accuracy` the share of these that is right.
    """
    s = np.asarray(scores)
    return of_weights(len(s), precisions(s, truth), None, seed, resamples, each=8 * s.shape[1], centred=True)


def precisions(scores: ArrayLike, truth: ArrayLike) -> Callable[[NDArray[np.float64]], Values]:
    """The metrics of `average_precision` as a function of how often each sample counts, [R, n] -> [R] each."""
    s, t = np.asarray(scores, np.float64), np.asarray(truth)
    same_shape(s, t)
    if s.ndim != 2 or not ((t == 0) | (t == 1)).all():
        raise ValueError(f"labels of shape {t.shape}, 0 and 1 for [samples, labels] are expected")
    if np.isnan(s).any():
        raise ValueError(f"{int(np.isnan(s).sum())} of {s.size} scores are NaN")
    true, count = t == 1, t.shape[1]
    right = ((s > 0.5) == true).mean(1)
    whole = _ranking(s.ravel(), true.ravel(), np.repeat(np.arange(len(s)), count))
    single = [_ranking(s[:, k], true[:, k], np.arange(len(s))) for k in range(count)]

    def values(weights: NDArray[np.float64]) -> Values:
        by_label = np.stack([label(weights) for label in single], -1)
        return {
            "micro_map": whole(weights),
            "macro_map": mean_where(by_label, ~np.isnan(by_label)),
            "accuracy": over(weights @ right, weights.sum(-1)),
        }

    return values


def _ranking(
    scores: NDArray[np.float64], true: NDArray[np.bool_], sample: NDArray[np.int64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Average precision [R] by weights [R, n] of samples; answer i is of `sample[i]`. NaN where nothing is true."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    sample, places = sample[order], np.flatnonzero(true[order])
    # Of each true answer: the last answer of its score, and the last true one up to there.
    last = ends[np.searchsorted(ends, places)]
    last_true = np.searchsorted(places, last, side="right") - 1

    def values(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        found = weights[:, sample[places]]
        answered = np.cumsum(weights[:, sample], -1)[:, last]
        precision = over(np.cumsum(found, -1)[:, last_true], answered)
        return over(np.where(found > 0, found * precision, 0).sum(-1), found.sum(-1))

    return values
