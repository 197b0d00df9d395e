"""Test metrics under names that say what they are, each with a bootstrap interval.

`pearson_r2` is the square of Pearson's correlation, blind to scale and offset: predictions that are off by any factor keep
theirs. `r2` is the coefficient of determination, 1 - (sum of squared errors) / (sum of squared deviations from the mean),
which is negative for what is worse than the mean. Papers report either as "r²", so both are always here. `accuracy` comes
with `majority_rate`: what always answering the training split's commonest class scores. `dice` is the F1 score of class 1
over all pixels of all images together, not the mean of the images' own. Metrics of density maps are of pixels, those
called `count_…` of the counts of whole images.

Every function returns a flat dict: `n`, the metrics as floats, and for each `{metric}_ci95` = [low, high], the percentile
interval of resampling samples, or whole `groups` of them (sites), with replacement. Undefined values are NaN (Pearson's
correlation of constant predictions), and so are intervals of fewer than two units. Labels that are missing (NaN, -1, or
255 for pixels) are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = dict[str, NDArray[np.float64]]
RESAMPLES = 1000
_CHUNK = 1 << 22
"""Weights of resamples held at once."""


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
    _same_shape(p, t)
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
        vp, vt, c = spp - _over(sp * sp, n), stt - _over(st * st, n), spt - _over(sp * st, n)
        tiny = 1e-12 * n  # what rounding leaves of the variance of a constant
        vp, vt = np.where(vp > tiny, vp, 0), np.where(vt > tiny, vt, 0)
        return {
            "pearson_r2": _over(c * c, vp * vt),
            "r2": 1 - _over(se, vt),
            "rmse": np.sqrt(_over(se, n)) * spread,
            "mae": _over(sa, n) * spread,
        }

    return _with_intervals(sums, values, _known_groups(groups, known), seed, resamples)


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
    _same_shape(p, t)
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
        chance = _over((answered * actual).sum(-1), n * n)
        accuracy = _over(right, n)
        out = {
            "accuracy": accuracy,
            "macro_f1": _mean_where(_over(2 * both, answered + actual), answered + actual > 0),
            "kappa": _over(accuracy - chance, 1 - chance),
        }
        return out | ({} if train is None else {"majority_rate": _over(s[..., -1], n)})

    return _with_intervals(sums, values, _known_groups(groups, known), seed, resamples)


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
    _same_shape(s, t)
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
            "precision": _over(both, answered),
            "recall": _over(both, actual),
            "f1": _over(2 * both, answered + actual),
        }

    return _of_weights(len(t), values, _known_groups(groups, known), seed, resamples)


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
    _same_shape(p, t)
    known = (t == 0) | (t == 1)
    said, true = (p == 1) & known, (t == 1) & known
    count = t.shape[1]
    sums = np.concatenate([said & true, said, true], axis=1).astype(np.float64)

    def values(s: NDArray[np.float64]) -> Values:
        both, answered, actual = (s[..., part * count : (part + 1) * count] for part in range(3))
        total = answered + actual
        return {
            "micro_f1": _over(2 * both.sum(-1), total.sum(-1)),
            "macro_f1": _mean_where(_over(2 * both, total), total > 0),
        }

    some = known.any(1)
    return _with_intervals(sums[some], values, _known_groups(groups, some), seed, resamples)


def segmentation_counts(predicted: ArrayLike, truth: ArrayLike, classes: int, missing: int = 255) -> NDArray[np.int64]:
    """[n, 3, K] pixels of each image [n, H, W] by class: rightly answered, answered, and true; missing ones nowhere.

    Images may be counted in any pieces; the counts of all, one after the other, are what `segmentation` takes.
    Raises ValueError for a class outside 0 … K - 1.
    """
    p, t = np.asarray(predicted).astype(np.int64), np.asarray(truth).astype(np.int64)
    _same_shape(p, t)
    known = t != missing
    for what, found in (("prediction", p[known]), ("label", t[known])):
        if found.size and not (found.min() >= 0 and found.max() < classes):
            raise ValueError(f"{what}s from {found.min()} to {found.max()}, of {classes} classes")
    image = np.broadcast_to(np.arange(len(t)).reshape(-1, *[1] * (t.ndim - 1)), t.shape)
    out = np.zeros((len(t), 3, classes), np.int64)
    for part, (which, mask) in enumerate(((t, known & (p == t)), (p, known), (t, known))):
        cells = np.bincount(image[mask] * classes + which[mask], minlength=len(t) * classes)
        out[:, part] = cells.reshape(len(t), classes)
    return out


def segmentation(
    counts: ArrayLike,
    *,
    majority: int | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Metrics over all pixels together, from `segmentation_counts` [n, 3, K]; `n` is the number of images.

    Of two classes `dice` (F1 of class 1) and `iou` (of class 1); of more `dice_macro` and `miou`, means over the classes that
    occur in labels or predictions. Always `pixel_accuracy`, and with the training split's commonest class as `majority` also
    `majority_rate`, the pixel accuracy of always answering that. Intervals resample images.
    """
    c = np.asarray(counts, np.float64)
    if c.ndim != 3 or c.shape[1] != 3:
        raise ValueError(f"counts of shape {c.shape}, [images, 3, classes] is expected")
    classes = c.shape[2]

    def values(s: NDArray[np.float64]) -> Values:
        both, answered, actual = np.moveaxis(s.reshape(*s.shape[:-1], 3, classes), -2, 0)
        total = answered + actual
        dice, iou = _over(2 * both, total), _over(both, total - both)
        accuracy = _over(both.sum(-1), actual.sum(-1))
        rate = {} if majority is None else {"majority_rate": _over(actual[..., majority], actual.sum(-1))}
        if classes == 2:
            return {"dice": dice[..., 1], "iou": iou[..., 1], "pixel_accuracy": accuracy, **rate}
        there = total > 0
        means = {"dice_macro": _mean_where(dice, there), "miou": _mean_where(iou, there)}
        return {**means, "pixel_accuracy": accuracy, **rate}

    return _with_intervals(
        c.reshape(len(c), -1), values, None if groups is None else np.asarray(groups), seed, resamples
    )


def density_sums(predicted: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """[n, 6] of maps [n, H, W] over the pixels with a label (finite, not negative): how many, sums of |error|, error^2, predicted,
    true and true^2. Maps may be summed in any pieces; the sums of all, one after the other, are what `density` takes.
    """
    p, t = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    _same_shape(p, t)
    known = np.isfinite(t) & (t >= 0)
    t, p = np.where(known, t, 0), np.where(known, p, 0)
    parts = (known, np.abs(p - t), (p - t) ** 2, p, t, t * t)
    return np.stack([part.reshape(len(t), -1).sum(1, dtype=np.float64) for part in parts], axis=1)


def density(
    sums: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """`mae`, `rmse`, `r2` over all pixels together, and `count_mae`, `count_rmse` of the images' counts, from `density_sums` [n, 6].

    `n` is the number of images; intervals resample images.
    """
    s = np.asarray(sums, np.float64)
    if s.ndim != 2 or s.shape[1] != 6:
        raise ValueError(f"sums of shape {s.shape}, [images, 6] is expected")
    known = s[:, 0] > 0
    s = s[known]
    error = s[:, 3] - s[:, 4]
    columns = np.concatenate([s, np.abs(error)[:, None], (error**2)[:, None], np.ones((len(s), 1))], axis=1)

    def values(total: NDArray[np.float64]) -> Values:
        n, absolute, square, _, true, true_square, count, count_square, images = np.moveaxis(total, -1, 0)
        spread = true_square - _over(true * true, n)
        return {
            "mae": _over(absolute, n),
            "rmse": np.sqrt(_over(square, n)),
            "r2": 1 - _over(square, np.where(spread > 1e-12 * true_square, spread, 0)),
            "count_mae": _over(count, images),
            "count_rmse": np.sqrt(_over(count_square, images)),
        }

    return _with_intervals(columns, values, _known_groups(groups, known), seed, resamples)


def _same_shape(predicted: NDArray[Any], truth: NDArray[Any]) -> None:
    if predicted.shape != truth.shape:
        raise ValueError(f"predictions of shape {predicted.shape} for labels of shape {truth.shape}")


def _standard(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """(values less their mean, in units of their deviation; the deviation, 1 for constants)."""
    if not len(values):
        return values, 1.0
    mean, deviation = float(values.mean()), float(values.std())
    deviation = deviation if deviation > 1e-12 * abs(mean) else 1.0
    return (values - mean) / deviation, deviation


def _known_groups(groups: ArrayLike | None, known: NDArray[np.bool_]) -> NDArray[Any] | None:
    if groups is None:
        return None
    found = np.asarray(groups)
    if len(found) != len(known):
        raise ValueError(f"{len(found)} groups for {len(known)} samples")
    return found[known]


def _over(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """top / bottom, NaN where bottom is 0."""
    bottom = np.broadcast_to(bottom, np.broadcast_shapes(np.shape(top), np.shape(bottom)))
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom != 0)


def _mean_where(values: NDArray[np.float64], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean over the last axis of what is there."""
    return _over(np.where(there, values, 0).sum(-1), there.sum(-1).astype(np.float64))


def _area(weights: NDArray[np.float64], positive: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area under the ROC curve for weights [..., n] of samples in the order of their scores; ties begin at `starts`."""
    if not len(starts):
        return np.full(weights.shape[:-1], np.nan)
    up = np.add.reduceat(weights * positive, starts, axis=-1)
    down = np.add.reduceat(weights * ~positive, starts, axis=-1)
    below = np.cumsum(down, axis=-1) - down
    return _over((up * (below + down / 2)).sum(-1), up.sum(-1) * down.sum(-1))


def _with_intervals(
    sums: NDArray[np.float64],
    values: Callable[[NDArray[np.float64]], Values],
    groups: NDArray[Any] | None,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """The metrics of the column sums of `sums` [n, m], with intervals: what only sums enter is quick to resample."""
    n = len(sums)
    if groups is not None:
        _, unit = np.unique(groups, return_inverse=True)
        merged = np.zeros((int(unit.max(initial=-1)) + 1, sums.shape[1]))
        np.add.at(merged, unit, sums)
        sums = merged
    return _of_weights(len(sums), lambda weights: values(weights @ sums), None, seed, resamples) | {"n": n}


def _of_weights(
    n: int,
    values: Callable[[NDArray[np.float64]], Values],
    groups: NDArray[Any] | None,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """The metrics where sample i counts weights[..., i] times: once each, and in resamples of samples or groups."""
    point = values(np.ones((1, n)))
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(unit.max(initial=-1)) + 1
    random = np.random.default_rng(seed)
    pieces: list[Values] = []
    size = max(1, min(resamples, _CHUNK // max(n, 1)))
    for begin in range(0, resamples if units > 1 else 0, size):
        count = min(size, resamples - begin)
        drawn = random.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units)
        pieces.append(values(weights[:, unit].astype(np.float64)))
    out: dict[str, Any] = {"n": n}
    for name, value in point.items():
        found = np.concatenate([piece[name] for piece in pieces]) if pieces else np.zeros(0)
        found = found[~np.isnan(found)]
        out[name] = float(value[0])
        out[f"{name}_ci95"] = np.quantile(found, [0.025, 0.975]).tolist() if len(found) else [float("nan")] * 2
    return out
