"""Baselines for the table that a GPNA model stands in: well-kept libraries on the same samples and inputs.

    regression       mean, knn, ridge, random_forest
    classification   majority, knn, logistic, random_forest
    multilabel       majority, knn, logistic, random_forest
    segmentation     majority, pixel_logistic, pixel_random_forest, unet   (gpna/segmentation_baselines.py)

Inputs without H and W enter flattened; images by the statistics of `frontier.probe.baselines.colour_texture`, band by
band and date by date. All features are standardised by the training split, and what is missing takes its mean. The
hyper-parameters that `Budget` lists are tried on the training split and chosen on val: by rmse, accuracy or micro F1. Where
there is no val, a fifth of the training split is held out for the choice, by whole groups where it has groups, and the
chosen model is fitted to all of it. The test split is touched once, by the chosen model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from frontier import metrics
from frontier.data.manifest import nearest
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from frontier.probe.baselines import colour_texture
from gpna.reader import seconds

Row = dict[str, Any]
_YEAR_S = 365.2425 * 86_400


@dataclass(frozen=True)
class Split:
    """Samples of one split.

    `inputs`: [n, *axes] by name, in physical or stored units; `axes`: of each input, such as TC or CHW; `valid`: masks of
    the shape of their input, 1 = there. `labels`: float [n] or [n, K] (NaN = missing), classes [n] (-1), 0 and 1 [n, K]
    (else), or pixels [n, H, W] (255). `groups` [n]: what must not be torn apart, such as sites.
    """

    inputs: Mapping[str, NDArray[Any]]
    axes: Mapping[str, str]
    labels: NDArray[Any]
    valid: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    groups: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: NDArray[Any]) -> Split:
        """The samples at `rows` (indices or booleans)."""
        return Split(
            {name: values[rows] for name, values in self.inputs.items()},
            self.axes,
            self.labels[rows],
            {name: values[rows] for name, values in self.valid.items()},
            None if self.groups is None else self.groups[rows],
        )


@dataclass(frozen=True)
class Budget:
    """What is tried, and how much is computed. The fields from `pixels` on are of segmentation."""

    neighbours: tuple[int, ...] = (1, 3, 5, 10, 20, 50)
    ridge_penalties: tuple[float, ...] = tuple(10.0 ** (k / 2) for k in range(-2, 11))
    logistic_strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    trees: int = 300
    tree_features: tuple[float | str, ...] = ("sqrt", 0.33, 1.0)
    tree_leaves: tuple[int, ...] = (1, 3, 10)
    rows: int = 20_000
    resamples: int = metrics.RESAMPLES
    pixels: int = 100_000
    pixel_trees: int = 30
    unet_features: tuple[int, int, int, int, int, int] = (16, 16, 32, 64, 128, 16)
    unet_steps: int = 400
    unet_batch: int = 8


def baselines(
    task_kind: str,
    train: Split,
    test: Split,
    val: Split | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    *,
    task: str | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """One row a model: {task, model, kind: "baseline", metrics and their intervals, chosen, n_train, n_test}.

    `task_kind`: regression, classification, multilabel or segmentation. Regression of labels [n, K] gives rows of each
    output, task "name[k]". Intervals resample test groups where there are any. `device` is the U-Net's alone. A model that
    cannot run here has a row without metrics whose `left_out` says why. Raises `UserError` for a kind that there is not,
    and where train or test has no label.
    """
    budget = budget or Budget()
    task = task or task_kind
    if task_kind == "segmentation":
        from gpna.segmentation_baselines import segmentation_baselines

        return segmentation_baselines(task, train, test, val, seed, budget, device, progress)
    if task_kind not in _KINDS:
        raise UserError(f"baselines: no task kind {task_kind!r}: {nearest(task_kind, [*_KINDS, 'segmentation'])}")
    if task_kind == "regression" and train.labels.ndim == 2:
        rows: list[Row] = []
        for k in range(train.labels.shape[1]):
            parts = [part and replace(part, labels=part.labels[:, k]) for part in (train, test, val)]
            assert parts[0] is not None and parts[1] is not None
            rows += baselines(
                task_kind, parts[0], parts[1], parts[2], seed, budget, task=f"{task}[{k}]", progress=progress
            )
        return rows
    kind = _KINDS[task_kind]
    train, test = _labelled(kind, train, "training", task), _labelled(kind, test, "test", task)
    train = train.at(_some(len(train), budget.rows, seed))
    whole = train
    if val is None:
        train, val = hold_out(train, 0.2, seed)
    else:
        val = _labelled(kind, val, "val", task)
        whole = train
    fitted, chosen_on, tested = features([train, val, test])
    if len(whole) != len(train):
        refitted, tested = features([whole, test])
    else:
        refitted = fitted
    out = []
    for name, candidates in kind.models(budget, len(train), seed):
        if name == "logistic" and train.labels.ndim == 1 and len(np.unique(train.labels)) < 2:
            why = "the samples that it would be fitted to are all of one class"
            out.append({"task": task, "model": name, "kind": "baseline", "left_out": why})
            continue
        scores: list[tuple[float, int]] = []
        for number, candidate in enumerate(candidates):
            if len(candidates) == 1:
                scores = [(0.0, 0)]
                break
            predicted = candidate.make().fit(fitted, train.labels).predict(chosen_on)
            scores.append((kind.score(predicted, val.labels), number))
        # Of equals the first, which is the simplest.
        best = candidates[max(scores, key=lambda score: (score[0], -score[1]))[1]]
        model = best.make().fit(refitted, whole.labels)
        row: Row = {"task": task, "model": name, "kind": "baseline"}
        row |= kind.measure(model, tested, test, whole, seed, budget.resamples)
        row |= {"chosen": best.settings, "n_train": len(whole), "n_test": len(test)}
        out.append(row)
        progress(f"{task}: {name} {best.settings}")
    return out


def features(splits: Sequence[Split]) -> list[NDArray[np.float32]]:
    """[n, F] of each split, standardised by the first, 0 where missing; features that never vary there are 0."""
    raw = [_raw_features(split) for split in splits]
    known = np.isfinite(raw[0])
    count = known.sum(0)
    mean = np.where(known, raw[0], 0).sum(0) / np.maximum(count, 1)
    spread = np.sqrt((np.where(known, raw[0] - mean, 0) ** 2).sum(0) / np.maximum(count, 1))
    varies = spread > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    out = []
    for values in raw:
        scaled = (values - mean) / np.where(varies, spread, 1)
        out.append(np.where(np.isfinite(scaled) & varies, scaled, 0).astype(np.float32))
    return out


def _raw_features(split: Split) -> NDArray[np.float64]:
    columns = []
    for name, values in split.inputs.items():
        axes = split.axes[name]
        if {"H", "W"} <= set(axes):
            images = as_images(split, name)
            columns.append(
                np.concatenate([colour_texture(images[at : at + 256]) for at in range(0, len(images), 256)]).astype(
                    float
                )
            )
            continue
        flat = values.astype(np.float64)
        if name in split.valid:
            flat = np.where(split.valid[name] != 0, flat, np.nan)
        columns.append(flat.reshape(len(flat), -1))
    return np.concatenate(columns, axis=1)


def as_images(split: Split, name: str) -> NDArray[np.float32]:
    """[n, bands, H, W] of an input with H and W: all its other axes are bands; 0 where missing."""
    axes = "n" + split.axes[name]
    values = split.inputs[name].astype(np.float32)
    if name in split.valid:
        values = np.where(split.valid[name] != 0, values, np.float32(0))
    order = [place for place, axis in enumerate(axes) if axis not in "HW"] + [axes.index("H"), axes.index("W")]
    values = values.transpose(order)
    return values.reshape(len(values), -1, *values.shape[-2:])


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """(rest, about `share` of the samples), by whole groups where there are any. Raises `UserError` for one group."""
    unit = np.arange(len(split)) if split.groups is None else np.unique(split.groups, return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(int(unit.max()) + 1)
    sizes = np.bincount(unit)[order]
    before = np.cumsum(sizes) - sizes
    away = np.isin(unit, order[before < share * len(split)])
    if away.all():
        raise UserError("baselines: all training samples are of one group: give a val split")
    return split.at(~away), split.at(away)


def read_split(
    shards: ShardSet,
    target: str,
    *,
    inputs: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[int]] | None = None,
    groups: str | None = None,
    place_and_time: bool = True,
) -> Split:
    """A split of a shard directory for `target` (or the column of that name), all in memory; physical units, masks and nodata as missing.

    `inputs`: names (default: all); `bands`: by input the places of the bands that are taken (default: all); `groups`: the column that
    names the group. With `place_and_time`, what a GPNA model is told beside the values is an input too: longitude, latitude, sine and cosine of
    the season and the year of the middle of the sample's time, as far as the shards have them; NaN where they do not know. Raises
    `UserError` for a name that there is not.
    """
    manifest, n = shards.manifest, len(shards)
    column = manifest["targets"].get(target, {}).get("column", target)
    if column not in manifest["columns"] and column not in manifest["arrays"]:
        raise UserError(f"shards {shards.path}: no target {target!r}: {nearest(target, manifest['targets'])}")
    labels = shards.column(column) if column in manifest["columns"] else shards.read(column, 0, n)
    values: dict[str, NDArray[Any]] = {}
    axes: dict[str, str] = {}
    valid: dict[str, NDArray[Any]] = {}
    for name in manifest["images"] if inputs is None else inputs:
        if name not in manifest["images"]:
            raise UserError(f"shards {shards.path}: no input {name!r}: {nearest(name, manifest['images'])}")
        spec = manifest["images"][name]
        stored = shards.read(name, 0, n)
        pick = (bands or {}).get(name)
        if pick is not None:
            stored = stored.take(pick, 1 + spec["axes"].index("C"))
        values[name] = stored.astype(np.float32) * spec.get("scale", 1.0) + spec.get("offset", 0.0)
        axes[name] = spec["axes"]
        there = np.ones(stored.shape, bool) if spec["nodata"] is None else stored != spec["nodata"]
        if spec["mask"] is not None:
            mask = shards.read(spec["mask"], 0, n)
            along = manifest["arrays"][spec["mask"]]["axes"]
            if pick is not None and "C" in along:
                mask = mask.take(pick, 1 + along.index("C"))
            # Axes that the mask has not are of size 1.
            there &= mask.reshape(n, *(mask.shape[1 + along.index(a)] if a in along else 1 for a in spec["axes"])) != 0
        if stored.dtype.kind == "f":
            there &= np.isfinite(stored)
        if not there.all():
            valid[name] = there
    known = {name: shards.column(name) for name in _CONTEXT if name in manifest["columns"]}
    if place_and_time and known:
        values["place_and_time"], axes["place_and_time"] = _context(known), "C"
    return Split(values, axes, labels, valid, None if groups is None else shards.column(groups))


_CONTEXT = ("lon", "lat", "time_start", "time_end")


def _context(known: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    columns = [known[name].astype(np.float64) for name in ("lon", "lat") if name in known]
    if "time_start" in known:
        # As the model's reader: 0 and NaT are no times, an end that is not known is the start.
        start, end = (seconds(torch.tensor(known.get(n, known["time_start"]))).numpy() for n in _CONTEXT[2:])
        middle = (start + np.where(np.isnan(end), start, end)) / 2
        year = middle / _YEAR_S
        columns += [np.sin(2 * np.pi * year), np.cos(2 * np.pi * year), year]
    return np.stack(columns, axis=1)


# Models and measures of the kinds of task.


@dataclass(frozen=True)
class _Candidate:
    make: Callable[[], Any]
    settings: dict[str, Any]


_Models = Iterable[tuple[str, list[_Candidate]]]


@dataclass(frozen=True)
class _Kind:
    models: Callable[[Budget, int, int], _Models]
    score: Callable[[NDArray[Any], NDArray[Any]], float]
    measure: Callable[[Any, NDArray[np.float32], Split, Split, int, int], Row]
    known: Callable[[NDArray[Any]], NDArray[np.bool_]]


def _grid(make: Callable[..., Any], **choices: Sequence[Any]) -> list[_Candidate]:
    """One candidate for every combination of choices."""
    settings: list[dict[str, Any]] = [{}]
    for name, values in choices.items():
        settings = [one | {name: value} for one in settings for value in values]
    return [_Candidate(partial(make, **one), one) for one in settings]


def _neighbours(budget: Budget, n: int) -> list[int]:
    return [k for k in budget.neighbours if k <= n] or [n]


def _regressors(budget: Budget, n: int, seed: int) -> _Models:
    from sklearn.dummy import DummyRegressor
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    yield "mean", _grid(DummyRegressor)
    yield "knn", _grid(KNeighborsRegressor, n_neighbors=_neighbours(budget, n), weights=["uniform", "distance"])
    yield "ridge", _grid(Ridge, alpha=budget.ridge_penalties[::-1])
    forest = partial(RandomForestRegressor, n_estimators=budget.trees, random_state=seed % 2**32)
    yield "random_forest", _grid(forest, max_features=budget.tree_features, min_samples_leaf=budget.tree_leaves)


def _classifiers(budget: Budget, n: int, seed: int) -> _Models:
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    yield "majority", _grid(DummyClassifier, strategy=["most_frequent"])
    yield "knn", _grid(KNeighborsClassifier, n_neighbors=_neighbours(budget, n), weights=["uniform", "distance"])
    yield "logistic", _grid(partial(LogisticRegression, solver="lbfgs", max_iter=1000), C=budget.logistic_strengths)
    forest = partial(RandomForestClassifier, n_estimators=budget.trees, random_state=seed % 2**32)
    yield "random_forest", _grid(forest, max_features=budget.tree_features, min_samples_leaf=budget.tree_leaves)


def _taggers(budget: Budget, n: int, seed: int) -> _Models:
    for name, candidates in _classifiers(budget, n, seed):
        yield name, [_Candidate(partial(_EachLabel, one.make), one.settings) for one in candidates]


class _EachLabel:
    """A model of each label, fitted to the samples that have it; a constant where these are all yes or all no, or there is none."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def fit(self, x: NDArray[np.float32], labels: NDArray[Any]) -> _EachLabel:
        self.models: list[Any] = []
        for label in labels.T:
            known = (label == 0) | (label == 1)
            both = len(np.unique(label[known])) == 2
            self.models.append(self.make().fit(x[known], label[known]) if both else int(label[known].max(initial=0)))
        return self

    def predict(self, x: NDArray[np.float32]) -> NDArray[Any]:
        found = [np.full(len(x), one) if isinstance(one, int) else one.predict(x) for one in self.models]
        return np.stack(found, 1)


def _measure_regression(model: Any, x: NDArray[np.float32], test: Split, train: Split, seed: int, count: int) -> Row:
    return metrics.regression(model.predict(x), test.labels, groups=test.groups, seed=seed, resamples=count)


def _measure_classes(model: Any, x: NDArray[np.float32], test: Split, train: Split, seed: int, count: int) -> Row:
    options: dict[str, Any] = {"groups": test.groups, "seed": seed, "resamples": count}
    row = metrics.classification(model.predict(x), test.labels, train=train.labels, **options)
    if set(np.unique(train.labels)) == {0, 1} and test.labels.max() <= 1:
        row |= metrics.binary(model.predict_proba(x)[:, 1], test.labels, **options)
    return row


def _measure_tags(model: Any, x: NDArray[np.float32], test: Split, train: Split, seed: int, count: int) -> Row:
    return metrics.multilabel(model.predict(x), test.labels, groups=test.groups, seed=seed, resamples=count)


_KINDS = {
    "regression": _Kind(
        _regressors,
        lambda predicted, truth: -float(np.mean((predicted - truth) ** 2)),
        _measure_regression,
        np.isfinite,
    ),
    "classification": _Kind(
        _classifiers,
        lambda predicted, truth: float(np.mean(predicted == truth)),
        _measure_classes,
        lambda labels: labels >= 0,
    ),
    "multilabel": _Kind(
        _taggers,
        lambda predicted, truth: metrics.multilabel(predicted, truth, resamples=0)["micro_f1"],
        _measure_tags,
        lambda labels: ((labels == 0) | (labels == 1)).any(1),
    ),
}


def _labelled(kind: _Kind, split: Split, which: str, task: str) -> Split:
    known = kind.known(split.labels)
    if not known.any():
        raise UserError(
            f"baselines of {task}: no sample of the {which} split has a label: name another split or target"
        )
    return split if known.all() else split.at(known)


def _some(n: int, most: int, seed: int) -> NDArray[np.int64]:
    """All rows, or `most` of them at random."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(seed).permutation(n)[:most])
