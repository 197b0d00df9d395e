"""Logistic regression by L-BFGS, its L2 penalty chosen by cross-validation in the training split."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.errors import UserError

from .standardise import Features, standardise

PENALTIES = tuple(10.0 ** (-exponent / 2) for exponent in range(0, 11))
"""Candidates for lambda in mean cross-entropy + lambda/2 |w|², strongest first: 1 to 1e-5 by half decades."""
FOLDS = 5
PATIENCE = 2
_ITERATIONS = 300


def _fit(train: Features, labels: NDArray[np.int64], penalties: tuple[float, ...]) -> Iterator[Any]:
    """Yields a fitted scikit-learn model per penalty, each started from the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="lbfgs", max_iter=_ITERATIONS, warm_start=True)
    for penalty in penalties:
        # scikit-learn minimises C·(sum of losses) + |w|²/2; lambda goes with the mean loss.
        model.C = 1 / (penalty * len(train))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            yield model.fit(train, labels)


def cross_validate(
    train: Features, labels: NDArray[np.int64], seed: int, folds: int = FOLDS
) -> tuple[float, dict[float, float]]:
    """The penalty of best stratified cross-validated accuracy, and the accuracy of each penalty tried.

    Walks from strong to weak and stops once `PATIENCE` penalties in a row have not beaten the best (a weak
    penalty is the slowest to fit); ties go to the stronger. Each fold is standardised by its own training
    part. Raises UserError where a class has fewer than 2 samples.
    """
    from sklearn.model_selection import StratifiedKFold

    smallest = int(np.bincount(labels).min())
    if smallest < 2:
        raise UserError(
            f"the smallest class has {smallest} training sample, logistic probe: cross-validation "
            "needs at least 2 samples of every class; use more training data, or --method linear,knn"
        )
    splitter = StratifiedKFold(min(folds, smallest), shuffle=True, random_state=seed % 2**32)
    parts = []
    for inside, outside in splitter.split(train, labels):
        scaled, held_out = standardise(train[inside], train[outside])
        parts.append((_fit(scaled, labels[inside], PENALTIES), held_out, labels[outside]))
    scores: dict[float, float] = {}
    best, since_best = PENALTIES[0], 0
    for penalty in PENALTIES:
        right = [int(np.sum(next(fits).predict(held_out) == truth)) for fits, held_out, truth in parts]
        scores[penalty] = sum(right) / len(train)
        if penalty == PENALTIES[0] or scores[penalty] > scores[best]:
            best, since_best = penalty, 0
        else:
            since_best += 1
        if since_best == PATIENCE:
            break
    return best, scores


def probe(
    train: Features,
    train_labels: NDArray[np.int64],
    test: Features,
    seed: int,
    device: object = "cpu",
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The `logistic` method of the table: predicted classes [n_test], and the penalty with how it was chosen.

    Features are standardised by the training split; scikit-learn fits on the CPU whatever `device` says. The
    test split is touched once, by the final model. Raises UserError where a class is too small
    (`cross_validate`).
    """
    del device
    penalty, scores = cross_validate(train, train_labels, seed)
    scaled_train, scaled_test = standardise(train, test)
    # The whole path again, not the chosen penalty alone: the same warm starts as in the folds.
    path = tuple(tried for tried in PENALTIES if tried >= penalty)
    *_, model = _fit(scaled_train, train_labels, path)
    details = {"penalty": penalty, "cv_accuracy": scores[penalty], "penalties_tried": len(scores)}
    return model.predict(scaled_test).astype(np.int64), details
