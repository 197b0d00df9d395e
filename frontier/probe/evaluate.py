"""The table of a probe: every method on every encoder, with intervals and paired differences."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from frontier.errors import UserError

from . import knn, linear, logistic
from .features import FeatureFunction, LabelledSamples, extract
from .intervals import paired_bootstrap, wilson
from .standardise import Features

SUBJECT = "pretrained"
"""The encoder whose rows carry the differences to all others."""

Row = dict[str, Any]


class Method(Protocol):
    """Fits on the training split, predicts the test split; labels are 0..K-1 and all K occur in training."""

    def __call__(
        self,
        train: Features,
        train_labels: NDArray[np.int64],
        test: Features,
        seed: int,
        device: str | torch.device = ...,
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Predicted classes [n_test] and details for the row."""


METHODS: dict[str, Method] = {"linear": linear.probe, "logistic": logistic.probe, "knn": knn.probe}


def check_labels(train: NDArray[np.int64], test: NDArray[np.int64], where: str) -> None:
    """Raises UserError where there is nothing to learn or to test: no labels, or one class only."""
    for split, labels in (("training", train), ("test", test)):
        if not len(labels):
            raise UserError(
                f"no sample of the {split} split has a label, {where}: write the shards from class "
                "folders, or name a labelled split"
            )
    if len(np.unique(train)) < 2:
        raise UserError(
            f"all {len(train)} labelled samples of the training split are of one class, {where}: a probe "
            "needs at least two classes"
        )


def evaluate(
    encoders: Mapping[str, Callable[[], FeatureFunction]],
    train: LabelledSamples,
    test: LabelledSamples,
    methods: Sequence[str] = tuple(METHODS),
    seed: int = 0,
    batch: int = 256,
    device: str | torch.device = "cpu",
    where: str = "shards",
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Rows of the table, in the order of `methods`, then of `encoders`.

    Args:
        encoders: name -> factory of a feature function; each is made, used on both splits and dropped before
        the next,
            so that one encoder is in memory at a time. Features are extracted once and shared by the methods.
        methods: names in `METHODS`.
        seed: of the methods' draws and of the bootstrap.
        where: names the data in errors.
        progress: told one line after each encoder.

    Each row holds method, encoder, accuracy, ci95 (Wilson), n_train, n_test, classes, features (their
    number), seed and the method's details. Rows of "pretrained" also hold difference: {other encoder:
    {"accuracy": its own minus the other's, "ci95": [low, high], "resamples"}} by a paired bootstrap over the
    test samples. Test samples of a class that training lacks count as wrong.

    Raises UserError (labels, non-finite features, classes too small for a method).
    """
    check_labels(train.labelled, test.labelled, where)
    classes, train_labels = np.unique(train.labelled, return_inverse=True)
    truth = test.labelled
    correct: dict[tuple[str, str], NDArray[np.bool_]] = {}
    rows: dict[tuple[str, str], Row] = {}
    for encoder, factory in encoders.items():
        begin = time.perf_counter()
        function = factory()
        train_features = extract(function, train, batch, encoder)
        test_features = extract(function, test, batch, encoder)
        del function
        extracted = time.perf_counter()
        for method in methods:
            predicted, details = METHODS[method](
                train_features, train_labels.astype(np.int64), test_features, seed, device
            )
            right = classes[predicted] == truth
            correct[method, encoder] = right
            rows[method, encoder] = {
                "method": method,
                "encoder": encoder,
                "accuracy": float(right.mean()),
                "ci95": list(wilson(int(right.sum()), len(right))),
                "n_train": len(train_labels),
                "n_test": len(truth),
                "classes": len(classes),
                "features": train_features.shape[1],
                "seed": seed,
                **details,
            }
        samples = len(train_labels) + len(truth)
        progress(
            f"{encoder}: features of {samples} samples in {extracted - begin:.1f} s, "
            f"{', '.join(methods)} in {time.perf_counter() - extracted:.1f} s"
        )
    for method in methods:
        if (method, SUBJECT) in rows:
            rows[method, SUBJECT]["difference"] = {
                other: _difference(correct[method, SUBJECT], correct[method, other], seed)
                for other in encoders
                if other != SUBJECT
            }
    return [rows[method, encoder] for method in methods for encoder in encoders]


def _difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_], seed: int, resamples: int = 2000) -> Row:
    difference, low, high = paired_bootstrap(ours, theirs, seed, resamples)
    return {"accuracy": difference, "ci95": [low, high], "resamples": resamples}
