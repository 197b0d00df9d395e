"""Answers of a method measured on the test split: the figures of a row, and what is needed to compare two rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier import metrics
from frontier.metrics.bootstrap import Values

from .intervals import paired_bootstrap, wilson

RESAMPLES = 2000
CENTRED = ("micro_map", "macro_map")
"""Metrics that resampling lifts: see `metrics.interval`."""


@dataclass(frozen=True)
class Measured:
    """Figures of one row.

    Attributes:
        figures: keys of the row: "metric" names the one that counts, "accuracy" and "ci95" are always there.
        correct: which test samples are right [n], where `metric` is their mean.
        draws: [R] of `metric` in resamples of the test samples, else.
    """

    figures: dict[str, Any]
    correct: NDArray[np.bool_] | None = None
    draws: NDArray[np.float64] | None = None


def of_classes(predicted: NDArray[np.int64], truth: NDArray[np.int64], more: dict[str, Any] | None = None) -> Measured:
    """Of classes [n]: accuracy with Wilson's interval; `more` figures beside it."""
    right = predicted == truth
    figures = {
        "metric": "accuracy",
        "accuracy": float(right.mean()),
        "ci95": list(wilson(int(right.sum()), len(right))),
    }
    return Measured({**figures, **(more or {})}, correct=right)


def of_scores(scores: NDArray[np.float32], truth: NDArray[np.integer], seed: int) -> Measured:
    """Of several labels [n, K]: micro and macro mean average precision, and the accuracy of the answers by label."""
    values = metrics.precisions(scores, truth)
    point, draws = metrics.resample(len(truth), values, seed, metrics.RANKING_RESAMPLES, each=8 * truth.shape[1])
    return _resampled("micro_map", point, draws)


def of_maps(counts: NDArray[np.int64], seed: int, majority: int) -> Measured:
    """Of `metrics.segmentation_counts` [n, 3, K]: mean IoU and what goes with it, of all pixels together."""
    sums = metrics.count_sums(counts)
    point, draws = metrics.resample(
        len(sums), lambda weights: metrics.overlaps(weights @ sums, majority), seed, metrics.RESAMPLES
    )
    total = counts.sum(0)
    union = total[1] + total[2] - total[0]
    by_class = [float(a / b) if b else None for a, b in zip(total[0], union, strict=True)]
    found = _resampled(
        "miou", {"accuracy": point.pop("pixel_accuracy"), **point}, draws | {"accuracy": draws["pixel_accuracy"]}
    )
    return Measured({**found.figures, "iou_by_class": by_class}, draws=found.draws)


def _resampled(metric: str, point: dict[str, float], draws: Values) -> Measured:
    figures: dict[str, Any] = {"metric": metric}
    for name, value in point.items():
        bounds = _interval(draws[name], value if name in CENTRED else None)
        figures |= {name: _number(value), "ci95" if name == "accuracy" else f"{name}_ci95": bounds}
    return Measured({**figures, "resamples": len(draws[metric])}, draws=draws[metric])


def difference(ours: Measured, theirs: Measured, seed: int) -> dict[str, Any]:
    """{metric: ours minus theirs, "ci95": [low, high], "resamples"}, None where undefined, by resampling the test samples as pairs."""
    metric = ours.figures["metric"]
    if ours.correct is not None and theirs.correct is not None:
        value, low, high = paired_bootstrap(ours.correct, theirs.correct, seed, RESAMPLES)
        return {metric: value, "ci95": [low, high], "resamples": RESAMPLES}
    assert ours.draws is not None and theirs.draws is not None
    draws = ours.draws - theirs.draws  # of the same samples: see `metrics.resample`
    pair = ours.figures[metric], theirs.figures[metric]
    apart = None if None in pair else pair[0] - pair[1]
    bounds = _interval(draws, apart if metric in CENTRED else None)
    return {metric: apart, "ci95": bounds, "resamples": len(draws)}


def _number(value: float) -> float | None:
    """Undefined figures are null in JSON."""
    return value if math.isfinite(value) else None


def _interval(draws: NDArray[np.float64], centre: float | None) -> list[float] | None:
    bounds = metrics.interval(draws, centre)
    return bounds if all(map(math.isfinite, bounds)) else None
