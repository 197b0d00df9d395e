"""Metrics against scikit-learn and scipy; masks; intervals by sample and by group."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from frontier.metrics import binary, classification, multilabel, regression, segmentation, segmentation_counts


def numbers(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.normal(100, 30, n)
    return truth * 0.7 + random.normal(20, 15, n), truth


def classes(n: int = 400, count: int = 5, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.choice(count, n, p=np.arange(1, count + 1) / sum(range(count + 1)))
    return np.where(random.random(n) < 0.6, truth, random.integers(0, count, n)), truth


def test_regression_is_scipys_and_scikit_learns() -> None:
    predicted, truth = numbers()
    found = regression(predicted, truth)
    assert found["pearson_r2"] == pytest.approx(stats.pearsonr(predicted, truth).statistic ** 2, rel=1e-12)
    assert found["r2"] == pytest.approx(sk.r2_score(truth, predicted), rel=1e-12)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, predicted), rel=1e-12)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, predicted), rel=1e-12)
    assert found["n"] == 300


def test_the_two_r2_are_not_the_same() -> None:
    """Predictions that follow the truth at another scale and offset: correlated .96, and far worse than the mean."""
    random = np.random.default_rng(3)
    truth = random.normal(0, 1, 2000)
    predicted = 2.0 * truth + 1.6 + random.normal(0, 0.617, 2000)
    found = regression(predicted, truth)
    assert found["pearson_r2"] == pytest.approx(0.913, abs=0.01)
    assert found["r2"] == pytest.approx(-3.0, abs=0.5)
    assert found["r2"] == pytest.approx(sk.r2_score(truth, predicted), rel=1e-12)
    assert found["r2_ci95"][0] < found["r2"] < found["r2_ci95"][1] < 0 < found["pearson_r2_ci95"][0]


@pytest.mark.parametrize(("scale", "offset"), [(1e-9, 0.0), (1e9, 0.0), (1.0, 1e7)])
def test_pearson_is_blind_to_scale_and_offset(scale: float, offset: float) -> None:
    predicted, truth = numbers()
    assert regression(predicted * scale + offset, truth, resamples=0)["pearson_r2"] == pytest.approx(
        regression(predicted, truth, resamples=0)["pearson_r2"], rel=1e-6
    )


def test_undefined_values_are_nan() -> None:
    _, truth = numbers(50)
    constant = regression(np.full(50, truth.mean()), truth)
    assert np.isnan(constant["pearson_r2"])
    assert constant["r2"] == pytest.approx(0, abs=1e-12)
    empty = regression(np.zeros(3), np.full(3, np.nan))
    assert empty["n"] == 0
    assert np.isnan([empty["r2"], empty["rmse"], *empty["rmse_ci95"]]).all()
    one = regression([1.0], [2.0])
    assert one["mae"] == 1 and np.isnan([one["r2"], *one["mae_ci95"]]).all()


def test_missing_labels_are_left_out() -> None:
    predicted, truth = numbers()
    with_gaps, guesses = truth.copy(), predicted.copy()
    with_gaps[::3], guesses[::3] = np.nan, np.inf
    keep = ~np.isnan(with_gaps)
    assert regression(guesses, with_gaps, groups=np.arange(300) // 7) == regression(
        predicted[keep], truth[keep], groups=(np.arange(300) // 7)[keep]
    )
    said, true = classes()
    gaps = np.where(np.arange(400) % 4, true, -1)
    assert classification(said, gaps, train=gaps) == classification(
        said[gaps >= 0], true[gaps >= 0], train=true[gaps >= 0]
    )
    scores, some = np.array([0.1, 0.9, 0.4, 0.8]), np.array([0, 1, -1, 255])
    assert binary(scores, some) == binary(scores[:2], some[:2])
    with pytest.raises(ValueError, match="1 of 300 predictions are NaN"):
        regression(np.where(np.arange(300) == 5, np.nan, predicted), truth)


def test_classification_is_scikit_learns() -> None:
    predicted, truth = classes()
    train = np.array([2, 2, 2, 4, 4, -1, -1, -1, -1])
    found = classification(predicted, truth, train=train)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted), rel=1e-12)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"), rel=1e-12)
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(truth, predicted), rel=1e-12)
    assert found["majority_rate"] == pytest.approx(np.mean(truth == 2), rel=1e-12)
    assert "majority_rate" not in classification(predicted, truth)


def test_macro_f1_counts_the_classes_that_occur() -> None:
    predicted, truth = np.array([0, 0, 7, 2]), np.array([0, 2, 0, 2])
    assert classification(predicted, truth)["macro_f1"] == pytest.approx(
        sk.f1_score(truth, predicted, average="macro", zero_division=0), rel=1e-12
    )


def test_always_the_majority() -> None:
    """9 in 10 negative, as with brick kilns: accuracy .9 says nothing, kappa and F1 do."""
    truth = np.arange(1000) % 10 == 0
    found = classification(np.zeros(1000), truth, train=truth)
    assert found["accuracy"] == found["majority_rate"] == 0.9
    assert found["kappa"] == 0
    assert found["macro_f1"] < 0.5


def test_binary_is_scikit_learns_ties_included() -> None:
    random = np.random.default_rng(2)
    truth = random.random(300) < 0.3
    scores = np.round(np.clip(0.3 * truth + random.random(300) * 0.8, 0, 1), 1)
    found = binary(scores, truth, threshold=0.6)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(truth, scores), rel=1e-12)
    assert found["precision"] == pytest.approx(sk.precision_score(truth, scores >= 0.6), rel=1e-12)
    assert found["recall"] == pytest.approx(sk.recall_score(truth, scores >= 0.6), rel=1e-12)
    assert found["f1"] == pytest.approx(sk.f1_score(truth, scores >= 0.6), rel=1e-12)
    assert np.isnan(binary(scores, np.ones(300))["auc"])
    # Resampling by hand what the weights stand for.
    draws = [random.integers(0, 300, 300) for _ in range(400)]
    expected = np.quantile([sk.roc_auc_score(truth[d], scores[d]) for d in draws], [0.025, 0.975])
    assert found["auc_ci95"] == pytest.approx(expected, abs=0.02)


def test_multilabel_is_scikit_learns() -> None:
    random = np.random.default_rng(5)
    truth = (random.random((80, 6)) < 0.3).astype(int)
    predicted = np.where(random.random((80, 6)) < 0.2, 1 - truth, truth)
    found = multilabel(predicted, truth)
    for kind in ("micro", "macro"):
        assert found[f"{kind}_f1"] == pytest.approx(sk.f1_score(truth, predicted, average=kind), rel=1e-12)
    gaps = truth.copy()
    gaps[:, 2] = -1
    rest = [0, 1, 3, 4, 5]
    assert multilabel(predicted, gaps)["micro_f1"] == multilabel(predicted[:, rest], truth[:, rest])["micro_f1"]


def test_dice_is_f1_over_all_pixels() -> None:
    random = np.random.default_rng(6)
    truth = (random.random((7, 20, 24)) < random.random((7, 1, 1))).astype(np.uint8)
    predicted = np.where(random.random(truth.shape) < 0.2, 1 - truth, truth)
    found = segmentation(segmentation_counts(predicted, truth, 2))
    flat, said = truth.ravel(), predicted.ravel()
    assert found["dice"] == pytest.approx(sk.f1_score(flat, said), rel=1e-12)
    assert found["iou"] == pytest.approx(sk.jaccard_score(flat, said), rel=1e-12)
    assert found["pixel_accuracy"] == pytest.approx(sk.accuracy_score(flat, said), rel=1e-12)
    images = [sk.f1_score(t.ravel(), p.ravel()) for t, p in zip(truth, predicted, strict=True)]
    assert abs(found["dice"] - np.mean(images)) > 0.01


def test_segmentation_of_several_classes_streams_and_masks() -> None:
    random = np.random.default_rng(7)
    truth = random.integers(0, 4, (9, 8, 8))
    truth[:, :2] = 255
    predicted = np.where(random.random(truth.shape) < 0.4, random.integers(0, 4, truth.shape), np.minimum(truth, 3))
    counts = segmentation_counts(predicted, truth, 6)
    pieces = [segmentation_counts(predicted[part], truth[part], 6) for part in (slice(0, 2), slice(2, 3), slice(3, 9))]
    assert np.array_equal(np.concatenate(pieces), counts)
    found, known = segmentation(counts), truth != 255
    flat, said = truth[known], predicted[known]
    assert found["dice_macro"] == pytest.approx(sk.f1_score(flat, said, average="macro"), rel=1e-12)
    assert found["miou"] == pytest.approx(sk.jaccard_score(flat, said, average="macro"), rel=1e-12)
    assert found["pixel_accuracy"] == pytest.approx(np.mean(flat == said), rel=1e-12)
    assert segmentation(counts, groups=[0, 0, 0, 1, 1, 1, 2, 2, 2])["miou"] == pytest.approx(found["miou"], rel=1e-12)
    with pytest.raises(ValueError, match="of 3 classes"):
        segmentation_counts(predicted, truth, 3)
    with pytest.raises(ValueError, match="for labels of shape"):
        segmentation_counts(predicted[:3], truth, 6)


def test_intervals_cover_what_they_should() -> None:
    """Of 200 test sets of 100 samples about 95 % hold the true mean absolute error, which is sqrt(2 / pi)."""
    random = np.random.default_rng(8)
    inside = 0
    for _ in range(200):
        low, high = regression(random.normal(0, 1, 100), np.zeros(100), resamples=300)["mae_ci95"]
        inside += low < np.sqrt(2 / np.pi) < high
    assert 0.88 <= inside / 200 <= 0.99


def test_groups_widen_the_interval_where_samples_of_one_are_alike() -> None:
    random = np.random.default_rng(9)
    site = np.repeat(np.arange(20), 30)
    truth = random.normal(0, 1, 600)
    predicted = truth + random.normal(0, 1, 20)[site]
    alone, by_site = regression(predicted, truth), regression(predicted, truth, groups=site)
    assert alone["rmse"] == pytest.approx(by_site["rmse"], rel=1e-12)
    width = [one["rmse_ci95"][1] - one["rmse_ci95"][0] for one in (alone, by_site)]
    assert width[1] > 2 * width[0]
    names = np.array([f"site {k}" for k in site])
    assert regression(predicted, truth, groups=names)["n"] == 600
    true = classes()[1]
    scores = np.random.default_rng(0).random(400)
    assert binary(scores, true > 2, groups=np.arange(400))["auc"] == pytest.approx(binary(scores, true > 2)["auc"])
    whole = binary(scores, true > 2, groups=np.zeros(400))
    assert np.isnan(whole["auc_ci95"]).all(), "one group tells nothing of others"


def test_the_seed_decides() -> None:
    predicted, truth = numbers(80)
    assert regression(predicted, truth, seed=4) == regression(predicted, truth, seed=4)
    assert regression(predicted, truth, seed=4)["r2_ci95"] != regression(predicted, truth, seed=5)["r2_ci95"]
