"""Finding a sample in another sensor: how many others are nearer than its partner, and what that means in galleries of any size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

QUERIES = 1024
"""Whose cosines are held at once."""


def nearer(queries: Tensor, gallery: Tensor) -> NDArray[np.int64]:
    """Unit vectors [n, D] of the same samples in two sensors -> [n]: how many others of the gallery have at least the partner's cosine.

    Equal ones count as nearer: a model that maps all samples to one vector finds none.
    """
    found = []
    for start in range(0, len(queries), QUERIES):
        cosines = queries[start : start + QUERIES] @ gallery.T
        partner = cosines.diagonal(start)[:, None]
        found.append((cosines >= partner).sum(1) - 1)
    return torch.cat(found).cpu().numpy()


def found_in(ranks: NDArray[np.int64], gallery: int, top: int) -> NDArray[np.float64]:
    """[n]: the chance that a query's partner is among the nearest `top` of a gallery of itself and `gallery` - 1 of the n - 1 others.

    The mean over all such galleries, in closed form: of the r nearer ones of n - 1, the number in a random gallery is hypergeometric,

        P(j) = C(r, j) C(n - 1 - r, g - 1 - j) / C(n - 1, g - 1),        and the result is the sum over j < top.

    With a gallery of all n it is 1 where r < top, else 0.
    """
    others = len(ranks) - 1
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, others + 1)))])

    def choose(of: NDArray[np.int64], take: int) -> NDArray[np.float64]:
        possible = (take >= 0) & (take <= of)
        kept = np.where(possible, of, max(take, 0))
        return np.where(possible, logs[kept] - logs[max(take, 0)] - logs[kept - max(take, 0)], -np.inf)

    whole = choose(np.array([others]), gallery - 1)
    chances = [np.exp(choose(ranks, j) + choose(others - ranks, gallery - 1 - j) - whole) for j in range(top)]
    return np.minimum(np.sum(chances, 0), 1.0)


def chance(gallery: int, top: int) -> float:
    """Of guessing."""
    return min(1.0, top / gallery)
