"""Metrics of maps: classes and densities of pixels. See `frontier.metrics`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bootstrap import RESAMPLES, Values, known_groups, mean_where, over, same_shape, with_intervals


def segmentation_counts(predicted: ArrayLike, truth: ArrayLike, classes: int, missing: int = 255) -> NDArray[np.int64]:
    """[n, 3, K] pixels of each image [n, H, W] by class: rightly answered, answered, and true; missing ones nowhere.

    Images may be counted in any pieces; the counts of all, one after the other, are what `segmentation` takes.
    Raises ValueError for a class outside 0 … K - 1.
    """
    p, t = np.asarray(predicted).astype(np.int64), np.asarray(truth).astype(np.int64)
    same_shape(p, t)
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

    `miou`, the mean over the classes that occur in labels or predictions; of two classes `dice` (F1 of class 1) and `iou` (of
    class 1), of more `dice_macro`, again such a mean. Always `pixel_accuracy`, and with the training split's commonest class as `majority` also
    `majority_rate`, the pixel accuracy of always answering that. Intervals resample images.
    """
    sums = count_sums(counts)
    known = None if groups is None else np.asarray(groups)
    return with_intervals(sums, partial(overlaps, majority=majority), known, seed, resamples)


def count_sums(counts: ArrayLike) -> NDArray[np.float64]:
    """[n, 3 K] float64 of `segmentation_counts`: what `overlaps` takes the sums of."""
    c = np.asarray(counts, np.float64)
    if c.ndim != 3 or c.shape[1] != 3:
        raise ValueError(f"counts of shape {c.shape}, [images, 3, classes] is expected")
    return c.reshape(len(c), -1)


def overlaps(sums: NDArray[np.float64], majority: int | None = None) -> Values:
    """The metrics of `segmentation` [...] of summed counts [..., 3 K]."""
    classes = sums.shape[-1] // 3
    both, answered, actual = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, classes), -2, 0)
    total = answered + actual
    dice, iou = over(2 * both, total), over(both, total - both)
    there = total > 0
    rate = {} if majority is None else {"majority_rate": over(actual[..., majority], actual.sum(-1))}
    named = {"dice": dice[..., 1], "iou": iou[..., 1]} if classes == 2 else {"dice_macro": mean_where(dice, there)}
    return {**named, "miou": mean_where(iou, there), "pixel_accuracy": over(both.sum(-1), actual.sum(-1)), **rate}


def density_sums(predicted: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """[n, 6] of maps [n, H, W] over the pixels with a label (finite, not negative): how many, sums of |error|, error^2, predicted,
    true and true^2. Maps may be summed in any pieces; the sums of all, one after the other, are what `density` takes.
    """
    p, t = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    same_shape(p, t)
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
        spread = true_square - over(true * true, n)
        return {
            "mae": over(absolute, n),
            "rmse": np.sqrt(over(square, n)),
            "r2": 1 - over(square, np.where(spread > 1e-12 * true_square, spread, 0)),
            "count_mae": over(count, images),
            "count_rmse": np.sqrt(over(count_square, images)),
        }

    return with_intervals(columns, values, known_groups(groups, known), seed, resamples)
