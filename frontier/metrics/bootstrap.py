"""Percentile intervals by resampling samples, and the small sums that all metrics need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = dict[str, NDArray[np.float64]]
RESAMPLES = 1000
_CHUNK = 1 << 22
"""Weights of resamples held at once."""


def with_intervals(
    sums: NDArray[np.float64],
    values: Callable[[NDArray[np.float64]], Values],
    groups: NDArray[Any] | None,
    seed: int,
    resamples: int,
    centred: bool = False,
) -> dict[str, Any]:
    """The metrics of the column sums of `sums` [n, m], with intervals: what only sums enter is quick to resample."""
    n = len(sums)
    if groups is not None:
        _, unit = np.unique(groups, return_inverse=True)
        merged = np.zeros((int(unit.max(initial=-1)) + 1, sums.shape[1]))
        np.add.at(merged, unit, sums)
        sums = merged
    found = of_weights(len(sums), lambda weights: values(weights @ sums), None, seed, resamples, centred=centred)
    return found | {"n": n}


def of_weights(
    n: int,
    values: Callable[[NDArray[np.float64]], Values],
    groups: NDArray[Any] | None,
    seed: int,
    resamples: int,
    each: int = 1,
    centred: bool = False,
) -> dict[str, Any]:
    """The metrics where sample i counts weights[..., i] times: once each, and in resamples of samples or groups."""
    point, found = resample(n, values, seed, resamples, groups, each)
    out: dict[str, Any] = {"n": n}
    for name, value in point.items():
        out |= {name: value, f"{name}_ci95": interval(found[name], value if centred else None)}
    return out


def resample(
    n: int,
    values: Callable[[NDArray[np.float64]], Values],
    seed: int,
    resamples: int = RESAMPLES,
    groups: NDArray[Any] | None = None,
    each: int = 1,
) -> tuple[dict[str, float], Values]:
    """(metrics with every sample once, [resamples] of each where samples, or whole `groups`, are drawn with replacement).

    `values` takes weights [R, n]: how often each sample counts; `each`: numbers that it holds a sample and resample. Equal n
    and seed draw equal samples, so that the draws of two encoders on the same samples may be subtracted. No draws of fewer
    than two units.
    """
    point = {name: float(value[0]) for name, value in values(np.ones((1, n))).items()}
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(unit.max(initial=-1)) + 1
    random = np.random.default_rng(seed)
    pieces: list[Values] = []
    size = max(1, min(resamples, _CHUNK // max(n * each, 1)))
    for begin in range(0, resamples if units > 1 else 0, size):
        count = min(size, resamples - begin)
        drawn = random.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units)
        pieces.append(values(weights[:, unit].astype(np.float64)))
    return point, {name: np.concatenate([piece[name] for piece in pieces]) if pieces else np.zeros(0) for name in point}


def interval(draws: NDArray[np.float64], centre: float | None = None) -> list[float]:
    """[low, high] that hold 95 % of the draws that are defined, half of the rest on either side; NaN without any.

    With a `centre` the draws are moved so that this is their mean. It is for metrics that resampling lifts: a sample that is
    drawn twice agrees with itself, in the ranking of scores and in any two partitions, whatever the scores and clusters are worth.
    """
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return [float("nan")] * 2
    return (np.quantile(draws, [0.025, 0.975]) + (0.0 if centre is None else centre - draws.mean())).tolist()


def same_shape(predicted: NDArray[Any], truth: NDArray[Any]) -> None:
    if predicted.shape != truth.shape:
        raise ValueError(f"predictions of shape {predicted.shape} for labels of shape {truth.shape}")


def known_groups(groups: ArrayLike | None, known: NDArray[np.bool_]) -> NDArray[Any] | None:
    if groups is None:
        return None
    found = np.asarray(groups)
    if len(found) != len(known):
        raise ValueError(f"{len(found)} groups for {len(known)} samples")
    return found[known]


def over(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """top / bottom, NaN where bottom is 0."""
    bottom = np.broadcast_to(bottom, np.broadcast_shapes(np.shape(top), np.shape(bottom)))
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom != 0)


def mean_where(values: NDArray[np.float64], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean over the last axis of what is there."""
    return over(np.where(there, values, 0).sum(-1), there.sum(-1).astype(np.float64))
