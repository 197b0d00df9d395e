"""Zero mean and unit variance per feature, with the figures of the training split."""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]


def scaling(train: Features) -> tuple[Features, Features]:
    """(shift, factor), each [features]: (values - shift) * factor has mean 0 and deviation 1 over `train` [n, features].

    A feature that is constant in `train` has the factor 1. Sums run in float64.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    scale = train.std(axis=0, dtype=np.float64)
    # Rounding leaves a constant feature with a deviation of some 1e-7 of its size: not to be blown up.
    scale[scale <= 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 1.0
    return mean.astype(np.float32), (1 / scale).astype(np.float32)


def standardise(train: Features, *others: Features) -> tuple[Features, ...]:
    """(train, *others), each [n, features], shifted and scaled by the mean and standard deviation of `train`: see `scaling`."""
    shift, factor = scaling(train)
    return tuple((part - shift) * factor for part in (train, *others))
