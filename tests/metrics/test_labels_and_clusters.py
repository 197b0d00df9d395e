"""Average precision and agreement of partitions against scikit-learn and brute force, and what their intervals cover."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn import metrics as sk

from frontier import metrics


def scored(n: int = 120, labels: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels of 2 to 50 %; the last label is never there."""
    random = np.random.default_rng(seed)
    truth = (random.random((n, labels)) < np.linspace(0.5, 0.02, labels)).astype(np.int64)
    truth[:, -1] = 0
    truth[0, -2] = 1
    return (truth * 0.4 + random.random((n, labels)) * 0.6).round(1), truth


def test_average_precision_is_scikit_learns_ties_included() -> None:
    scores, truth = scored()
    found = metrics.average_precision(scores, truth, resamples=10)
    assert found["micro_map"] == pytest.approx(sk.average_precision_score(truth, scores, average="micro"))
    labels = [sk.average_precision_score(truth[:, k], scores[:, k]) for k in range(4)]
    assert found["macro_map"] == pytest.approx(np.mean(labels)), "a label that nothing has is left out"
    assert found["accuracy"] == pytest.approx(np.mean((scores > 0.5) == (truth == 1)))


def test_a_weight_is_so_many_copies_of_the_sample() -> None:
    scores, truth = scored(60)
    weights = np.random.default_rng(1).integers(0, 4, 60)
    copies = np.repeat(np.arange(60), weights)
    found = metrics.precisions(scores, truth)(weights[None].astype(float))
    assert found["micro_map"][0] == pytest.approx(
        sk.average_precision_score(truth[copies], scores[copies], average="micro")
    )
    labels = [
        sk.average_precision_score(truth[copies, k], scores[copies, k]) for k in range(4) if truth[copies, k].any()
    ]
    assert found["macro_map"][0] == pytest.approx(np.mean(labels))


def test_labels_must_be_known_and_scores_numbers() -> None:
    with pytest.raises(ValueError, match="0 and 1"):
        metrics.average_precision(np.zeros((2, 1)), np.array([[1], [2]]))
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        metrics.average_precision(np.array([[np.nan], [0.0]]), np.array([[1], [0]]))


def partitions(n: int, classes: int, agree: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = random.integers(0, classes, n)
    return np.where(random.random(n) < agree, truth, random.integers(0, classes, n)), truth


def test_agreement_is_scikit_learns() -> None:
    random = np.random.default_rng(2)
    for agree, classes in ((0.0, 4), (0.6, 7), (1.0, 3)):
        clusters, truth = partitions(150, classes, agree, random)
        found = metrics.clustering(clusters, truth, resamples=20)
        assert found["nmi"] == pytest.approx(sk.normalized_mutual_info_score(truth, clusters))
        assert found["ari"] == pytest.approx(sk.adjusted_rand_score(truth, clusters))
    one = metrics.clustering(np.zeros(9, int), np.zeros(9, int), resamples=5)
    assert (one["nmi"], one["ari"]) == (1.0, 1.0)


def test_intervals_of_agreement_cover_it() -> None:
    """A plain percentile interval of the NMI holds its expectation in a sixth of such sets."""
    random = np.random.default_rng(3)
    found = [metrics.clustering(*partitions(200, 8, 0.2, random), resamples=200, seed=k) for k in range(80)]
    for name in ("nmi", "ari"):
        expected = np.mean([one[name] for one in found])
        inside = np.mean([one[f"{name}_ci95"][0] <= expected <= one[f"{name}_ci95"][1] for one in found])
        assert inside >= 0.87, name


def test_the_assignment_is_the_best_of_all() -> None:
    random = np.random.default_rng(4)
    for _ in range(5):
        clusters, truth = partitions(40, 4, 0.3, random)
        names = metrics.best_assignment(clusters, truth, 4)
        assert sorted(names) == [0, 1, 2, 3]
        best = max(np.mean(np.array(order)[clusters] == truth) for order in permutations(range(4)))
        assert np.mean(names[clusters] == truth) == pytest.approx(best)
    assert sorted(metrics.best_assignment(np.array([0, 0]), np.array([2, 2]), 3)) == [0, 1, 2], (
        "classes that are not there"
    )


def test_mean_iou_of_two_classes_is_of_both() -> None:
    random = np.random.default_rng(5)
    truth, predicted = random.integers(0, 2, (2, 6, 9, 9))
    found = metrics.segmentation(metrics.segmentation_counts(predicted, truth, 2), resamples=5)
    assert found["miou"] == pytest.approx(sk.jaccard_score(truth.ravel(), predicted.ravel(), average="macro"))


def test_draws_of_equal_samples_may_be_subtracted() -> None:
    """The same answers twice differ by nothing in every resample."""
    scores, truth = scored(50)
    (_, a), (_, b) = (metrics.resample(50, metrics.precisions(scores, truth), 7, 30) for _ in range(2))
    assert np.array_equal(a["micro_map"], b["micro_map"]) and len(np.unique(a["micro_map"])) > 10
