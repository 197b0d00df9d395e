"""k-means on frozen features: clusters found without labels, as many as there are classes.

Clusters have numbers, not names, so that comparing the numbers with the labels (`raw_accuracy`) measures the order in which
k-means happened to number them: chance, whatever the features are worth. The k-means figures of Scale-ALiBi's Table 2 lie at
chance, as such a comparison gives; `raw_accuracy` is here to stand beside them and for nothing else.

`accuracy` names each cluster by the one-to-one assignment to classes that makes most *training* samples right, and counts the
test samples that are right under these names. So the test labels measure and decide nothing, as for every other method, and
the intervals and differences of accuracies hold. `accuracy_matched_on_test` is the clustering accuracy that is usual in
papers, whose assignment is the best one for the very samples that are counted. `nmi` and `ari` need no names.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from frontier import metrics

from .standardise import Features, standardise

STARTS = 10
VARIANCE = 0.9
"""Share that the principal components of `pca_kmeans` hold."""
NEIGHBOURS = 30


@dataclass(frozen=True)
class Clusters:
    """Cluster numbers 0..k-1 of both splits."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


class Cluster(Protocol):
    """Finds `count` clusters of the training split and says which of them every test sample is nearest to."""

    def __call__(self, train: Features, test: Features, count: int, seed: int) -> tuple[Clusters, dict[str, Any]]:
        """The clusters, and details for the row."""


def kmeans(train: Features, test: Features, count: int, seed: int) -> tuple[Clusters, dict[str, Any]]:
    """The `kmeans` method of the table: of features standardised by the training split; the best of ten starts."""
    scaled, tested = standardise(train, test)
    return _cluster(scaled, tested, count, seed), {"clusters": count, "starts": STARTS, "scaling": "standardised"}


def pca_kmeans(train: Features, test: Features, count: int, seed: int) -> tuple[Clusters, dict[str, Any]]:
    """The `pca_kmeans` method of the table: k-means of the first principal components of the standardised
    features, as many as hold nine tenths of their variance."""
    from sklearn.decomposition import PCA

    scaled, tested = standardise(train, test)
    reduction = PCA(VARIANCE)
    fitted = reduction.fit_transform(scaled)
    found = _cluster(fitted, reduction.transform(tested), count, seed)
    details = {"components": int(reduction.n_components_), "variance": VARIANCE, "clusters": count, "starts": STARTS}
    return found, {**details, "scaling": "standardised"}


def umap_kmeans(train: Features, test: Features, count: int, seed: int) -> tuple[Clusters, dict[str, Any]]:
    """The `umap_kmeans` method of the table: k-means in the two dimensions of a UMAP of the standardised training split.

    Settings as umap-learn's manual advises for clustering: 30 neighbours, a least distance of 0. Test samples are placed into the
    map of the training samples.
    """
    from umap import UMAP

    scaled, tested = standardise(train, test)
    neighbours = min(NEIGHBOURS, len(scaled) - 1)
    reduction = UMAP(n_neighbors=neighbours, min_dist=0.0, n_components=2, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread
        fitted = np.asarray(reduction.fit_transform(scaled), np.float32)
        placed = np.asarray(reduction.transform(tested), np.float32)
    details = {"components": 2, "umap_neighbours": neighbours, "min_dist": 0.0, "clusters": count, "starts": STARTS}
    return _cluster(fitted, placed, count, seed), {**details, "scaling": "standardised"}


def _cluster(train: Features, test: Features, count: int, seed: int) -> Clusters:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(count, n_init=STARTS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        found = model.fit_predict(train)
    return Clusters(found.astype(np.int64), model.predict(test).astype(np.int64))


def scores(
    clusters: Clusters, train_labels: NDArray[np.int64], truth: NDArray[np.int64], count: int, seed: int
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """(classes [n_test] of the test samples under the names from training, what else the row says: see the module).

    Labels: 0..count-1; `truth` [n_test] -1 where the class is none of training's.
    """
    known = truth >= 0
    names = metrics.best_assignment(clusters.train, train_labels, count)
    here = metrics.best_assignment(clusters.test[known], truth[known], count)
    # A class that training lacks is a class of its own to what needs no names.
    agreement = metrics.clustering(clusters.test, np.where(known, truth, count), seed=seed)
    return names[clusters.test], {
        "accuracy_matched_on_test": float(np.mean(here[clusters.test] == truth)),
        "raw_accuracy": float(np.mean(clusters.test == truth)),
        **{name: value for name, value in agreement.items() if name != "n"},
    }
