"""Weighted k-nearest-neighbour classification by cosine similarity."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .standardise import Features, standardise

NEIGHBOURS = 20
TEMPERATURE = 0.07
_CHUNK = 1024


def knn(
    train: Features,
    train_labels: NDArray[np.int64],
    test: Features,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    device: str | torch.device = "cpu",
) -> NDArray[np.int64]:
    """Predicted class [n_test] of each row of `test` [n_test, F], given `train` [n_train, F] and its labels
    (0..K-1).

    Each of the `neighbours` training samples of greatest cosine similarity s votes for its class with the
    weight exp(s / temperature); the class of the greatest sum wins, the lowest number on a tie (the weighted
    vote of Wu et al., arXiv 1805.01978, section 3.4, with the k and temperature usual in self-supervised
    work). Fewer training samples than `neighbours`: all of them vote.
    """
    k = min(neighbours, len(train))
    classes = int(train_labels.max()) + 1
    bank = F.normalize(torch.from_numpy(train).to(device), dim=1)
    labels = torch.from_numpy(train_labels).to(device)
    predicted = []
    for start in range(0, len(test), _CHUNK):
        queries = F.normalize(torch.from_numpy(test[start : start + _CHUNK]).to(device), dim=1)
        similarity, nearest = (queries @ bank.T).topk(k, dim=1)
        votes = torch.zeros(len(queries), classes, device=device)
        votes.scatter_add_(1, labels[nearest], (similarity / temperature).exp())
        predicted.append(votes.argmax(dim=1).cpu())
    return torch.cat(predicted).numpy()


def probe(
    train: Features,
    train_labels: NDArray[np.int64],
    test: Features,
    seed: int,
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The `knn` method of the table: features standardised by the training split, then `knn`. Draws nothing.

    Standardising matters: cosine similarity of raw features is ruled by the few of largest scale (and, in
    encoders, by a mean that all images share). It is done alike for every encoder and baseline.
    """
    del seed
    scaled_train, scaled_test = standardise(train, test)
    predicted = knn(scaled_train, train_labels, scaled_test, device=device)
    return predicted, {"neighbours": min(NEIGHBOURS, len(train)), "temperature": TEMPERATURE}
