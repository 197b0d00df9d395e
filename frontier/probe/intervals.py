"""Confidence intervals of a test accuracy, and of the difference of two on the same test images."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (E. B. Wilson, JASA 22:209, 1927).

    With p = correct/total, n = total and z the two-sided normal quantile, the bounds are
    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n). Unlike the normal interval it stays inside [0, 1]
    and has width even at p = 0 or 1. Raises ValueError unless 0 <= correct <= total and total > 0.
    """
    if total <= 0 or not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} is no proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, zz = correct / total, z * z
    centre = p + zz / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + zz / (4 * total * total))
    scale = 1 + zz / total
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == total else (centre + half) / scale
    return low, high


def paired_bootstrap(
    correct_a: NDArray[np.bool_],
    correct_b: NDArray[np.bool_],
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Difference accuracy(a) - accuracy(b) and its percentile bootstrap interval: (difference, low, high).

    `correct_a` and `correct_b` are boolean [n_test], telling of the same test images in the same order
    whether each was classified rightly; images are resampled with replacement as pairs, so what is hard for
    both cancels.

    A resampled mean depends only on how many images fall on each of the values -1, 0, +1 of a - b, and those
    three counts are multinomial; drawing the counts is the same bootstrap without its n_test x resamples
    table.
    """
    if correct_a.shape != correct_b.shape or correct_a.ndim != 1 or not correct_a.size:
        raise ValueError(f"paired results of shapes {correct_a.shape} and {correct_b.shape}")
    n = correct_a.size
    wins = int(np.sum(correct_a & ~correct_b))
    losses = int(np.sum(correct_b & ~correct_a))
    shares = np.array([losses, n - wins - losses, wins]) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    differences = (counts[:, 2] - counts[:, 0]) / n
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return (wins - losses) / n, float(low), float(high)
