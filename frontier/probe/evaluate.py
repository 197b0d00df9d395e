"""The table of a probe: every method on every encoder, with intervals and paired differences."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from frontier.errors import UserError

from . import clusters, measure
from .features import FeatureFunction, LabelledSamples, extract
from .measure import Measured
from .methods import METHODS, SUBJECT
from .standardise import Features

Row = dict[str, Any]


class Predict(Protocol):
    """Fits on the training split, predicts the test split.

    Targets are int64 classes 0..K-1 [n_train], all of which occur, or uint8 labels [n_train, K] of 0 and 1. A method that
    `validates` also takes `validation`: (features, targets) or None.
    """

    def __call__(
        self,
        train: Features,
        targets: NDArray[Any],
        test: Features,
        seed: int,
        device: str | torch.device = ...,
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Classes [n_test] or scores [n_test, K] in 0..1, and details for the row."""


def check_labels(train: NDArray[Any], test: NDArray[Any], where: str) -> None:
    """Raises UserError where there is nothing to learn or to test: no labels, or one class only."""
    for split, labels in (("training", train), ("test", test)):
        if not len(labels):
            raise UserError(
                f"no sample of the {split} split has a label, {where}: write the shards from class "
                "folders, or name a labelled split"
            )
    if train.ndim == 2 and not (train.min(axis=0) < train.max(axis=0)).any():
        raise UserError(
            f"all {len(train)} labelled samples of the training split have the same labels, {where}: a probe needs at "
            "least one label that some have and some lack"
        )
    if train.ndim == 1 and len(np.unique(train)) < 2:
        raise UserError(
            f"all {len(train)} labelled samples of the training split are of one class, {where}: a probe "
            "needs at least two classes"
        )


def evaluate(
    encoders: Mapping[str, Callable[[], FeatureFunction]],
    train: LabelledSamples,
    test: LabelledSamples,
    methods: Sequence[str] = ("linear", "logistic", "knn"),
    seed: int = 0,
    batch: int = 256,
    device: str | torch.device = "cpu",
    where: str = "shards",
    progress: Callable[[str], None] = lambda line: None,
    validation: LabelledSamples | None = None,
) -> list[Row]:
    """Rows of the table, in the order of `methods`, then of `encoders`.

    Args:
        encoders: name -> factory of a feature function; each is made, used on all splits and dropped before
            the next, so that one encoder is in memory at a time. Features are extracted once and shared by the methods.
        train, test: with classes, or several labels a sample.
        methods: names in `METHODS` that take such labels.
        seed: of the methods' draws and of the bootstrap.
        where: names the data in errors.
        progress: told one line after each encoder.
        validation: stops the training of methods that do so; without, a share of the training split does.

    Each row holds method, encoder, kind ("measured"), metric (the name of the figure that counts), accuracy, ci95, n_train, n_test,
    classes, features (their number), seed, the method's details and its other figures (`measure`, `clusters`). Rows of
    "pretrained" also hold difference: {other encoder: {metric: its own minus the other's, "ci95": [low, high], "resamples"}}
    by a paired bootstrap over the test samples. Test samples of a class that training lacks count as wrong.

    Raises UserError (labels, non-finite features, classes too small for a method).
    """
    check_labels(train.labelled, test.labelled, where)
    task = _Task.of(train.labelled, test.labelled, None if validation is None else validation.labelled)
    measured: dict[tuple[str, str], Measured] = {}
    rows: dict[tuple[str, str], Row] = {}
    for encoder, factory in encoders.items():
        begin = time.perf_counter()
        function = factory()
        features = [extract(function, split, batch, encoder) for split in (train, test)]
        held = None if validation is None else extract(function, validation, batch, encoder)
        del function
        extracted = time.perf_counter()
        for method in methods:
            found, details = task.answer(method, features[0], features[1], held, seed, device)
            measured[method, encoder] = found
            rows[method, encoder] = {
                "method": method,
                "encoder": encoder,
                "kind": "measured",
                **found.figures,
                "n_train": len(train.labelled),
                "n_test": len(test.labelled),
                "classes": task.classes,
                "features": features[0].shape[1],
                "seed": seed,
                **details,
            }
        samples = sum(map(len, features)) + (0 if held is None else len(held))
        progress(
            f"{encoder}: features of {samples} samples in {extracted - begin:.1f} s, "
            f"{', '.join(methods)} in {time.perf_counter() - extracted:.1f} s"
        )
    add_differences(rows, measured, seed)
    return [rows[method, encoder] for method in methods for encoder in encoders]


def add_differences(
    rows: Mapping[tuple[str, str], Row], measured: Mapping[tuple[str, str], Measured], seed: int
) -> None:
    """Puts `difference` into the rows (method, "pretrained"): to every other encoder under the same method."""
    for (method, encoder), row in rows.items():
        if encoder == SUBJECT:
            row["difference"] = {
                other: measure.difference(measured[method, SUBJECT], measured[method, other], seed)
                for named, other in rows
                if named == method and other != SUBJECT
            }


class _Task:
    """Labels of the splits as methods take them, and their answers measured."""

    def __init__(self, classes: int, train: NDArray[Any], test: NDArray[Any], held: NDArray[Any] | None) -> None:
        self.classes, self.train, self.test, self.held = classes, train, test, held

    @classmethod
    def of(cls, train: NDArray[Any], test: NDArray[Any], held: NDArray[Any] | None) -> _Task:
        """Classes numbered 0..K-1 as they occur in training, -1 what training lacks; several labels as they are."""
        if train.ndim == 2:
            return cls(train.shape[1], train, test, held)
        classes, numbers = np.unique(train, return_inverse=True)

        def numbered(labels: NDArray[Any]) -> NDArray[np.int64]:
            place = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
            return np.where(classes[place] == labels, place, -1).astype(np.int64)

        return cls(len(classes), numbers.astype(np.int64), numbered(test), None if held is None else numbered(held))

    def answer(
        self,
        method: str,
        train: Features,
        test: Features,
        held: Features | None,
        seed: int,
        device: str | torch.device,
    ) -> tuple[Measured, Row]:
        """One method on the features of one encoder: what it reaches, and details for the row."""
        how = METHODS[method]
        function = how.load()
        if how.clusters:
            found, details = function(train, test, self.classes, seed)
            predicted, more = clusters.scores(found, self.train, self.test, self.classes, seed)
            return measure.of_classes(predicted, self.test, more), details
        options = {"validation": self._validation(held)} if how.validates else {}
        answers, details = function(train, self.train, test, seed, device, **options)
        if answers.ndim == 2:
            return measure.of_scores(answers, self.test, seed), details
        return measure.of_classes(answers, self.test), details

    def _validation(self, held: Features | None) -> tuple[Features, NDArray[Any]] | None:
        if held is None or self.held is None:
            return None
        # A class that training lacks cannot be learnt, and has no output.
        known = self.held >= 0 if self.held.ndim == 1 else np.ones(len(self.held), bool)
        return (held[known], self.held[known]) if known.any() else None
