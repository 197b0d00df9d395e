"""Classes of pixels from frozen features of the cells of a grid, such as the patch tokens of an image.

A grid of features [rows, columns, D] covers the sample; pixel (y, x) of a label map of H x W lies in the cell
(y · rows // H, x · columns // W). A head says a score of each class for each cell, and scores are brought to the pixels by
bilinear interpolation.

  segment       a linear layer (a 1 x 1 convolution), fitted with the cross-entropy of the pixels under the scores of their own
                cell. That of a cell's n pixels depends on how many are of each class alone, so that it is fitted to cells with
                shares of classes instead of pixels: the same loss at a fraction of the cost.
  segment_knn   the shares of classes of the 20 nearest cells of training, by cosine similarity.

Features are standardised by the training cells. Of these at most `CELLS` are used (`BANK` for neighbours), as many of each
image, at random. Maps of the test split are answered batch by batch: their features are never held together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from frontier import metrics
from frontier.errors import UserError

from . import measure
from .evaluate import Row, add_differences
from .features import GridFunction, LabelledSamples
from .heads import HELD_OUT, fit, hold_out, share_loss
from .knn import NEIGHBOURS, votes
from .measure import Measured
from .methods import METHODS
from .standardise import Features, scaling
from .targets import MISSING_PIXEL

CELLS = 100_000
BANK = 20_000
RATE = 1e-2
"""Of the linear layer, which stands more than two layers do."""

Scores = Callable[[Features], Tensor]
"""Standardised features [n, D] of cells -> scores of the classes [n, K]."""
MakeGrid = Callable[[tuple[int, int] | None], GridFunction]
"""(rows, columns) of the first encoder's grid, None for that encoder itself -> its features."""


@dataclass(frozen=True)
class Cells:
    """Some cells of a split: features [n, D] float32, shares of the classes [n, K] float32 (of the cell's pixels), image number [n]."""

    features: Features
    shares: NDArray[np.float32]
    image: NDArray[np.int64]


class Fit(Protocol):
    """A head for standardised features of cells."""

    def __call__(
        self, train: Cells, held: Cells | None, seed: int, device: str | torch.device
    ) -> tuple[Scores, dict[str, Any]]:
        """The head, and details for the row."""


def linear(train: Cells, held: Cells | None, seed: int, device: str | torch.device) -> tuple[Scores, dict[str, Any]]:
    """The `segment` method of the table; stops by `held`, or by a fifth of the training images."""
    source = "split"
    if held is None:
        images = np.unique(train.image)
        away = np.isin(train.image, images[hold_out(np.zeros(len(images), np.int64), seed)])
        if not away.any():
            away[-1] = True
        held, train, source = _part(train, away), _part(train, ~away), f"{HELD_OUT:g} of training"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(train.features.shape[1], train.shares.shape[1])
    head.to(device)
    done = fit(head, share_loss, (train.features, train.shares), (held.features, held.shares), seed, device, RATE)

    @torch.no_grad()
    def scores(features: Features) -> Tensor:
        return head(torch.from_numpy(features).to(device)).cpu()

    return scores, {**done, "validation": source, "cells": len(train.features)}


def neighbours(
    train: Cells, held: Cells | None, seed: int, device: str | torch.device
) -> tuple[Scores, dict[str, Any]]:
    """The `segment_knn` method of the table."""
    del held
    rows = np.sort(np.random.default_rng(seed).permutation(len(train.features))[:BANK])
    bank = _part(train, rows)

    def scores(features: Features) -> Tensor:
        return torch.from_numpy(votes(bank.features, bank.shares, features, NEIGHBOURS, None, device))

    k = min(NEIGHBOURS, len(rows))
    return scores, {"neighbours": k, "metric_of_neighbours": "cosine", "vote": "majority", "cells": len(rows)}


def _part(cells: Cells, rows: NDArray[Any]) -> Cells:
    return Cells(cells.features[rows], cells.shares[rows], cells.image[rows])


def evaluate_maps(
    encoders: Mapping[str, MakeGrid],
    train: LabelledSamples,
    test: LabelledSamples,
    classes: int,
    methods: Sequence[str] = ("segment",),
    seed: int = 0,
    batch: int = 64,
    device: str | torch.device = "cpu",
    where: str = "shards",
    progress: Callable[[str], None] = lambda line: None,
    validation: LabelledSamples | None = None,
) -> list[Row]:
    """Rows as of `evaluate.evaluate`, of maps of classes 0..classes-1: `metric` is miou, `accuracy` that of pixels.

    n_train and n_test are images; intervals and differences resample them. `majority_rate` is the accuracy of always answering
    training's commonest class. Raises UserError (no labels, classes that are not named, non-finite features).
    """
    _check(train, test, classes, where)
    common = int(np.bincount(train.labelled[train.labelled != MISSING_PIXEL], minlength=classes).argmax())
    grid: tuple[int, int] | None = None
    measured: dict[tuple[str, str], Measured] = {}
    rows: dict[tuple[str, str], Row] = {}
    for encoder, make in encoders.items():
        begin = time.perf_counter()
        read = _Reader(make(grid), classes, batch, encoder)
        grid = grid or read.grid(train)
        answers = _answers(read, train, test, validation, methods, seed, device)
        del read  # and with it the encoder, before the next one is made
        for method, (counts, details) in answers.items():
            found = measured[method, encoder] = measure.of_maps(counts, seed, common)
            rows[method, encoder] = {
                "method": method,
                "encoder": encoder,
                "kind": "measured",
                **found.figures,
                "n_train": len(train.labelled),
                "n_test": len(test.labelled),
                "classes": classes,
                **details,
                "grid": list(grid),
                "map": list(test.labels.shape[1:]),
                "seed": seed,
            }
        samples = len(train.labelled) + len(test.labelled)
        progress(f"{encoder}: {', '.join(methods)} of {samples} samples in {time.perf_counter() - begin:.1f} s")
    add_differences(rows, measured, seed)
    return [rows[method, encoder] for method in methods for encoder in encoders]


@dataclass(frozen=True)
class _Reader:
    """Features and labels of the cells, batch by batch."""

    function: GridFunction
    classes: int
    batch: int
    encoder: str

    def grid(self, samples: LabelledSamples) -> tuple[int, int]:
        shape = self.function(next(samples.batches(1))).shape
        return int(shape[1]), int(shape[2])

    def passes(self, samples: LabelledSamples) -> Iterator[tuple[Tensor, NDArray[np.uint8]]]:
        """(features [B, rows, columns, D], maps [B, H, W]) of the labelled samples, in order, on the CPU. Raises UserError: not finite."""
        labels, done = samples.labelled, 0
        for part in samples.batches(self.batch):
            found = self.function(part).float().cpu()
            if not found.isfinite().all():
                raise UserError(
                    f"features are not finite, encoder '{self.encoder}': the weights have diverged or the samples hold such "
                    "values; probe an earlier checkpoint or mend the shards"
                )
            yield found, labels[done : done + len(found)]
            done += len(found)

    def cells(self, samples: LabelledSamples, seed: int) -> Cells:
        """At most about `CELLS` cells that have a labelled pixel, as many of every image, at random."""
        random = np.random.default_rng(seed)
        each = -(-CELLS // len(samples.labelled))
        features, shares = [], []
        images: list[NDArray[np.int64]] = []
        for found, maps in self.passes(samples):
            part = class_shares(maps, (found.shape[1], found.shape[2]), self.classes)
            for values, share in zip(
                found.flatten(1, 2).numpy(), part.reshape(len(part), -1, self.classes), strict=True
            ):
                chosen = random.permutation(np.flatnonzero(share.sum(1) > 0))[:each]
                images.append(np.full(len(chosen), len(images)))
                features.append(values[chosen])
                shares.append(share[chosen])
        return Cells(np.concatenate(features), np.concatenate(shares), np.concatenate(images))


def _answers(
    read: _Reader,
    train: LabelledSamples,
    test: LabelledSamples,
    validation: LabelledSamples | None,
    methods: Sequence[str],
    seed: int,
    device: str | torch.device,
) -> dict[str, tuple[NDArray[np.int64], dict[str, Any]]]:
    """(`metrics.segmentation_counts` of the test split, details) of every method."""
    fitted = read.cells(train, seed)
    held = None if validation is None else read.cells(validation, seed)
    shift, factor = scaling(fitted.features)
    fitted = replace(fitted, features=(fitted.features - shift) * factor)
    held = held and replace(held, features=(held.features - shift) * factor)
    heads = {method: METHODS[method].load()(fitted, held, seed, device) for method in methods}
    counts: dict[str, list[NDArray[np.int64]]] = {method: [] for method in methods}
    for found, maps in read.passes(test):
        n, rows, columns = found.shape[:3]
        shrinks = maps.shape[1] < rows or maps.shape[2] < columns
        scaled = (found.flatten(0, 2).numpy() - shift) * factor
        for method, (scores, _) in heads.items():
            grids = scores(scaled).unflatten(0, (n, rows, columns)).movedim(-1, 1)
            pixels = F.interpolate(grids, tuple(maps.shape[1:]), mode="bilinear", antialias=shrinks)
            counts[method].append(
                metrics.segmentation_counts(pixels.argmax(1).numpy(), maps, read.classes, MISSING_PIXEL)
            )
    more = {"features": len(shift), "scaling": "standardised"}
    return {method: (np.concatenate(counts[method]), {**heads[method][1], **more}) for method in methods}


def _check(train: LabelledSamples, test: LabelledSamples, classes: int, where: str) -> None:
    for split, samples in (("training", train), ("test", test)):
        labels = samples.labelled
        if not len(labels):
            raise UserError(
                f"no pixel of the {split} split has a class, {where}: name a labelled split or another --target"
            )
        most = int(labels[labels != MISSING_PIXEL].max())
        if most >= classes:
            raise UserError(
                f"class {most} in the maps of the {split} split, {where}: {classes} are named; write the shards again"
            )
    if len(np.unique(train.labelled[train.labelled != MISSING_PIXEL])) < 2:
        raise UserError(
            f"all pixels of the training split are of one class, {where}: a probe needs at least two classes"
        )


def class_shares(maps: NDArray[np.uint8], grid: tuple[int, int], classes: int) -> NDArray[np.float32]:
    """[B, rows, columns, K] pixels of each class over all pixels of the cell, of maps [B, H, W]; 0 for a cell without pixels."""
    n, height, width = maps.shape
    rows, columns = grid
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    cell = (np.arange(n)[:, None, None] * rows + row[:, None]) * columns + column
    known = maps != MISSING_PIXEL
    counts = np.bincount(cell[known] * classes + maps[known], minlength=n * rows * columns * classes)
    size = np.bincount(row, minlength=rows)[:, None] * np.bincount(column, minlength=columns)
    shares = counts.reshape(n, rows, columns, classes) / np.maximum(size, 1)[None, :, :, None]
    return shares.astype(np.float32)
