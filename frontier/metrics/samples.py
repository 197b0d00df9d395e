"""Metrics of one answer, or one answer a label, for each sample. See `frontier.metrics`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bootstrap import RESAMPLES, Values, known_groups, mean_where, of_weights, over, same_shape, with_intervals


def regression(
    predicted: ArrayLike,
    truth: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`pearson_r2`, `r2`, `rmse`, `mae` of predictions [n] of `truth` [n], in the truth's units; NaN truth is missing.

    Raises ValueError where a prediction that has a label is not finite.
    """
    p, t = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    same_shape(p, t)
    known = ~np.isnan(t)
    p, t = p[known], t[known]
    if not np.isfinite(p).all():
        raise ValueError(f"{int((~np.isfinite(p)).sum())} of {len(p)} predictions are NaN or infinite")
    # Moments about the mean and in the spread of each lose no digits to an offset or a scale.
    (ps, _), (ts, spread) = _standard(p), _standard(t)
    error = (p - t) / spread
    sums = np.stack([np.ones_like(t), ps, ts, ps * ps, ts * ts, ps * ts, np.abs(error), error**2], axis=1)

    def values(s: NDArray[np.float64]) -> Values:
        n, sp, st, spp, stt, spt, sa, se = np.moveaxis(s, -1, 0)
        vp, vt, c = spp - over(sp * sp, n), stt - over(st * st, n), spt - over(sp * st, n)
        tiny = 1e-12 * n  # what rounding leaves of the variance of a constant
        vp, vt = np.where(vp > tiny, vp, 0), np.where(vt > tiny, vt, 0)
        return {
            "pearson_r2": over(c * c, vp * vt),
            "r2": 1 - over(se, vt),
            "rmse": np.sqrt(over(se, n)) * spread,
            "mae": over(sa, n) * spread,
        }

    return with_intervals(sums, values, known_groups(groups, known), seed, resamples)


def classification(
    predicted: ArrayLike,
    truth: ArrayLike,
    *,
    train: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`accuracy`, `macro_f1`, `kappa`, and with the labels of the training split `majority_rate`, of classes [n].

    Negative truth is missing. `macro_f1` averages over the classes that occur in the truth or in the predictions; `kappa` is
    Cohen's. `majority_rate` is the accuracy of always answering the commonest class of `train`.
    """
    p, t = np.asarray(predicted, np.int64), np.asarray(truth, np.int64)
    same_shape(p, t)
    known = t >= 0
    p, t = p[known], t[known]
    seen = np.unique(np.concatenate([p, t]))
    hit = np.zeros((len(t), 1), bool)
    if train is not None:
        labels = np.asarray(train, np.int64)
        labels = labels[labels >= 0]
        if not labels.size:
            raise ValueError("no label in the training split")
        hit = (t == np.bincount(labels).argmax())[:, None]
    said, true = p[:, None] == seen, t[:, None] == seen
    sums = np.concatenate([said & true, said, true, hit], axis=1).astype(np.float64)
    count = len(seen)

    def values(s: NDArray[np.float64]) -> Values:
        both, answered, actual = (s[..., part * count : (part + 1) * count] for part in range(3))
        n, right = actual.sum(-1), both.sum(-1)
        chance = over((answered * actual).sum(-1), n * n)
        accuracy = over(right, n)
        out = {
            "accuracy": accuracy,
            "macro_f1": mean_where(over(2 * both, answered + actual), answered + actual > 0),
            "kappa": over(accuracy - chance, 1 - chance),
        }
        return out | ({} if train is None else {"majority_rate": over(s[..., -1], n)})

    return with_intervals(sums, values, known_groups(groups, known), seed, resamples)


def binary(
    scores: ArrayLike,
    truth: ArrayLike,
    *,
    threshold: float = 0.5,
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`auc`, and at `threshold` `precision`, `recall`, `f1` of class 1; scores [n] and truth [n] of 0 and 1, else missing.

    `auc` is the area under the ROC curve: the chance that a positive scores above a negative, ties counting half.
    """
    s, t = np.asarray(scores, np.float64), np.asarray(truth)
    same_shape(s, t)
    known = (t == 0) | (t == 1)
    s, t = s[known], t[known] == 1
    if np.isnan(s).any():
        raise ValueError(f"{int(np.isnan(s).sum())} of {len(s)} scores are NaN")
    said = s >= threshold
    order = np.argsort(s, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(s[order]) > 0]) if len(s) else np.zeros(0, np.int64)
    sums = np.stack([said & t, said, t], axis=1).astype(np.float64)

    def values(weights: NDArray[np.float64]) -> Values:
        both, answered, actual = np.moveaxis(weights @ sums, -1, 0)
        return {
            "auc": _area(weights[..., order], t[order], starts),
            "precision": over(both, answered),
            "recall": over(both, actual),
            "f1": over(2 * both, answered + actual),
        }

    return of_weights(len(t), values, known_groups(groups, known), seed, resamples)


def multilabel(
    predicted: ArrayLike,
    truth: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`micro_f1` and `macro_f1` of answers [n, K] of 0 and 1; truth that is neither is missing, label by label."""
    p, t = np.asarray(predicted), np.asarray(truth)
    same_shape(p, t)
    known = (t == 0) | (t == 1)
    said, true = (p == 1) & known, (t == 1) & known
    count = t.shape[1]
    sums = np.concatenate([said & true, said, true], axis=1).astype(np.float64)

    def values(s: NDArray[np.float64]) -> Values:
        both, answered, actual = (s[..., part * count : (part + 1) * count] for part in range(3))
        total = answered + actual
        return {
            "micro_f1": over(2 * both.sum(-1), total.sum(-1)),
            "macro_f1": mean_where(over(2 * both, total), total > 0),
        }

    some = known.any(1)
    return with_intervals(sums[some], values, known_groups(groups, some), seed, resamples)


def _standard(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """(values less their mean, in units of their deviation; the deviation, 1 for constants)."""
    if not len(values):
        return values, 1.0
    mean, deviation = float(values.mean()), float(values.std())
    deviation = deviation if deviation > 1e-12 * abs(mean) else 1.0
    return (values - mean) / deviation, deviation


def _area(weights: NDArray[np.float64], positive: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area under the ROC curve for weights [..., n] of samples in the order of their scores; ties begin at `starts`."""
    if not len(starts):
        return np.full(weights.shape[:-1], np.nan)
    up = np.add.reduceat(weights * positive, starts, axis=-1)
    down = np.add.reduceat(weights * ~positive, starts, axis=-1)
    below = np.cumsum(down, axis=-1) - down
    return over((up * (below + down / 2)).sum(-1), up.sum(-1) * down.sum(-1))
