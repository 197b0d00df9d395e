"""k-nearest-neighbour answers: the weighted vote of self-supervised work, and the plain majority of 20."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .standardise import Features, standardise

NEIGHBOURS = 20
TEMPERATURE = 0.07
_CHUNK = 1024

Metric = Literal["cosine", "l2"]


def knn(
    train: Features,
    train_labels: NDArray[np.int64],
    test: Features,
    neighbours: int = NEIGHBOURS,
    temperature: float | None = TEMPERATURE,
    device: str | torch.device = "cpu",
    metric: Metric = "cosine",
) -> NDArray[np.int64]:
    """Predicted class [n_test] of each row of `test` [n_test, F], given `train` [n_train, F] and its labels
    (0..K-1): the class of the most votes (`votes`), the lowest number on a tie.
    """
    targets = np.eye(int(train_labels.max()) + 1, dtype=np.float32)[train_labels]
    return votes(train, targets, test, neighbours, temperature, device, metric).argmax(axis=1)


def votes(
    train: Features,
    targets: NDArray[np.float32],
    test: Features,
    neighbours: int = NEIGHBOURS,
    temperature: float | None = TEMPERATURE,
    device: str | torch.device = "cpu",
    metric: Metric = "cosine",
) -> NDArray[np.float32]:
    """Votes [n_test, K] of the `neighbours` nearest training samples of each test sample, as shares that sum to 1 where
    every row of `targets` [n_train, K] does.

    Nearest is the greatest cosine similarity s, or the least Euclidean distance. With a `temperature` (cosine alone) a sample's
    weight is exp(s / temperature), the weighted vote of Wu et al., arXiv 1805.01978, section 3.4. Without, all count alike but
    for a thousandth part by rank, which decides between equal numbers of votes for the nearer ones. Fewer training samples
    than `neighbours`: all of them vote.
    """
    k = min(neighbours, len(train))
    scale = F.normalize if metric == "cosine" else _as_is
    bank = scale(torch.from_numpy(train).to(device), dim=1)
    known = torch.from_numpy(targets).to(device)
    ranks = 1 + 1e-3 * torch.arange(k, 0, -1, device=device) / k
    found = []
    for start in range(0, len(test), _CHUNK):
        queries = scale(torch.from_numpy(test[start : start + _CHUNK]).to(device), dim=1)
        near, nearest = _similarity(queries, bank, metric).topk(k, dim=1)
        # Softmax is exp(s / t) over its sum, without overflow.
        weights = (
            ranks.expand(len(queries), k) / ranks.sum() if temperature is None else (near / temperature).softmax(1)
        )
        found.append(torch.einsum("bk,bkc->bc", weights, known[nearest]).cpu())
    return torch.cat(found).numpy()


def _as_is(values: Tensor, dim: int) -> Tensor:
    return values


def _similarity(queries: Tensor, bank: Tensor, metric: Metric) -> Tensor:
    """[q, n]: of unit vectors the cosine, else minus the squared distance up to what is the same for a whole row."""
    if metric == "cosine":
        return queries @ bank.T
    return 2 * queries @ bank.T - bank.square().sum(1)


def _answers(
    train: Features,
    targets: NDArray[Any],
    test: Features,
    temperature: float | None,
    device: str | torch.device,
    metric: Metric,
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Classes [n_test] for classes [n_train], shares of the votes [n_test, K] for several labels [n_train, K].

    Features are standardised by the training split. That matters: cosine similarity of raw features is ruled by the few of
    largest scale (and, in encoders, by a mean that all images share). It is done alike for every encoder and baseline.
    """
    near, far = standardise(train, test)
    k = min(NEIGHBOURS, len(train))
    options: dict[str, Any] = {"temperature": temperature, "device": device, "metric": metric}
    found = (
        knn(near, targets, far, k, **options)
        if targets.ndim == 1
        else votes(near, targets.astype(np.float32), far, k, **options)
    )
    weighing = {"vote": "majority"} if temperature is None else {"vote": "weighted", "temperature": temperature}
    return found, {"neighbours": k, "metric_of_neighbours": metric, **weighing, "scaling": "standardised"}


def probe(
    train: Features,
    targets: NDArray[Any],
    test: Features,
    seed: int,
    device: str | torch.device = "cpu",
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The `knn` method of the table: the weighted vote of 20 by cosine. See `_answers`; draws nothing."""
    del seed
    return _answers(train, targets, test, TEMPERATURE, device, "cosine")


def majority_cosine(
    train: Features, targets: NDArray[Any], test: Features, seed: int, device: str | torch.device = "cpu"
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The `knn20_cosine` method of the table: a majority of 20, as in Scale-ALiBi's Table 2, by cosine."""
    del seed
    return _answers(train, targets, test, None, device, "cosine")


def majority_l2(
    train: Features, targets: NDArray[Any], test: Features, seed: int, device: str | torch.device = "cpu"
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The `knn20_l2` method of the table: a majority of 20 by Euclidean distance."""
    del seed
    return _answers(train, targets, test, None, device, "l2")
