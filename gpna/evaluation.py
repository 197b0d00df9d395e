"""The tasks of a trained model measured on the samples of a split, with the baselines on the same inputs and labels beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from frontier import metrics
from frontier.config.load import validate
from frontier.data.manifest import nearest
from frontier.data.shards import ShardSet
from frontier.data.subset import Subset
from frontier.errors import UserError
from gpna.baselines import Budget, Split, baselines, read_split
from gpna.head_sections import Task, TextTask
from gpna.model import GPNA
from gpna.predict import open_split, predicted_batches
from gpna.sources import OpenSource, labels_of
from gpna.targets import class_names, known_labels

Row = dict[str, Any]
"""A line of the table: see `measure`."""
SCHEMA = 1
GROUPS = ("site", "field", "region", "country")
"""Columns whose samples belong together: where none is named, the first that the shards have, if it makes up enough groups."""
ENOUGH_GROUPS = 10
"""Resampling fewer says little of how others would do."""
LOWER = ("rmse", "mae", "count_mae", "count_rmse")
"""Metrics of which less is better."""
_HEADLINE = {
    "classification": "accuracy",
    "multilabel": "micro_f1",
    "regression": "pearson_r2",
    "segmentation": "dice",
    "density": "rmse",
}
_PIXEL_NAMES = {"f1": "dice", "macro_f1": "dice_macro", "accuracy": "pixel_accuracy"}
"""A benchmark's word for what is called otherwise here where it is over pixels."""


@dataclass(frozen=True)
class Part:
    """A source on the split that is measured.

    Attributes:
        groups: [n] what intervals resample as a whole, and `grouped_by`, the column; None: samples by themselves.
        train: the training split, to say what the commonest class is and to fit baselines; None where it is not there any more.
    """

    source: OpenSource
    split: str
    groups: np.ndarray | None
    grouped_by: str | None
    train: ShardSet | None


def open_parts(
    config: Mapping[str, Any],
    split: str,
    *,
    tasks: Collection[str] | None = None,
    source: str | None = None,
    shards: str | None = None,
    groups: str | None = None,
) -> list[Part]:
    """The sources of a resolved run config that have tasks, on `split`.

    `tasks`: only these; `source`: only this one, and with `shards` on that folder. `groups`: the column that says which samples
    belong together, "none", or by default the first of `GROUPS`, see there. Raises UserError for a name that there is not, for a
    folder with other inputs or classes, and where nothing is left to measure.
    """
    checked = validate(dict(config))
    sections, all_tasks = checked.data.sources or {}, checked.model.tasks
    for what, name, known in [("source", source, sections), *(("task", name, all_tasks) for name in tasks or ())]:
        if name is not None and name not in known:
            raise UserError(f"the run has no {what} '{name}': {nearest(name, known)}")
    wanted = {name: task for name, task in all_tasks.items() if tasks is None or name in tasks}
    parts = []
    for name, section in sections.items():
        own = {task_name: task for task_name, task in wanted.items() if task.source == name}
        if not own or (source is not None and name != source):
            continue
        opened = open_split(config, name, split, shards, own)
        column = _group_column(opened.shards, groups)
        try:
            train = ShardSet(section.shards, section.split)
            train = Subset(train, section.samples, section.samples_seed) if section.samples else train
        except UserError:
            train = None
        if train is not None and shards is not None:
            for task_name, target in opened.targets.items():
                theirs, ours = (class_names(one.manifest, target) for one in (opened.shards, train))
                if theirs != ours and not isinstance(own[task_name], TextTask):
                    raise UserError(
                        f"task {task_name}: the classes of '{target}' in {shards} are {', '.join(theirs) or 'not named'}; the model "
                        f"was trained on {', '.join(ours) or 'numbers without names'}: write the shards with the same classes"
                    )
        kept = None if column is None else opened.shards.column(column)
        parts.append(Part(opened, split, kept, column, train))
    if not parts:
        raise UserError(
            "there is no task to measure: the run only learns from its inputs, or --source and --tasks exclude it"
        )
    return parts


def _group_column(shards: ShardSet, given: str | None) -> str | None:
    known = shards.manifest["columns"]
    if given is None:
        found = next((name for name in GROUPS if name in known), None)
        return found if found and len(np.unique(shards.column(found))) >= ENOUGH_GROUPS else None
    if given == "none":
        return None
    if given not in known:
        raise UserError(f"--groups {given}: no such column in {shards.path}: {nearest(given, known)}")
    return given


def measure(
    module: GPNA,
    config: Mapping[str, Any],
    parts: list[Part],
    *,
    device: str = "cpu",
    batch: int = 32,
    seed: int = 0,
    resamples: int = metrics.RESAMPLES,
    texts: Mapping[str, np.ndarray] | None = None,
) -> list[Row]:
    """One row for each task, or for each output of a regression of several.

    {task, head, source, data, fingerprint, target, units, split, groups, model: "gpna", kind: "model", n, missing, metric, metrics,
    ci95, provenance}: `n` samples with a label and `missing` without, which are left out; `metric` names the one of `metrics` by which
    the task is judged: what the shards' manifest says of the target, or the usual one of its head. `texts`: see `predicted_batches`.
    Raises UserError for labels that the model has no class for.
    """
    module.to(device)
    rows: list[Row] = []
    tasks = validate(dict(config)).model.tasks
    for part in parts:
        gathered = {name: _Gathered(tasks[name]) for name in part.source.targets}
        for found in predicted_batches(module, config, part.source, device, batch, texts):
            for name, one in found.items():
                gathered[name].add(name, one.values, one.labels)
        for name, kept in gathered.items():
            for number, (flat, known) in enumerate(kept.measured(part, name, seed, resamples)):
                row = _about(name, tasks[name], part, flat)
                if len(kept.outputs()) > 1:
                    row["task"] = f"{name}[{number}]"
                row |= {"model": "gpna", "kind": "model", "n": int(known.sum()), "missing": int((~known).sum())}
                rows.append(row | _split(flat) | {"provenance": "measured"})
    return rows


def _split(flat: Mapping[str, Any]) -> Row:
    """`metrics` and `ci95` by name, of what frontier.metrics returns."""
    names = [name.removesuffix("_ci95") for name in flat if name.endswith("_ci95")]
    return {"metrics": {name: flat[name] for name in names}, "ci95": {name: flat[f"{name}_ci95"] for name in names}}


def _about(name: str, task: Task, part: Part, flat: Mapping[str, Any]) -> Row:
    manifest, column = part.source.shards.manifest, part.source.targets[name]
    target: Mapping[str, Any] = next((one for one in manifest["targets"].values() if one["column"] == column), {})
    return {
        "schema": SCHEMA,
        "task": name,
        "head": task.head,
        "source": part.source.name,
        "data": manifest["name"],
        "fingerprint": part.source.shards.fingerprint,
        "target": column,
        "units": target.get("units"),
        "split": part.split,
        "groups": part.grouped_by,
        "metric": headline(task, flat, target.get("metric")),
    }


def headline(task: Task, found: Mapping[str, Any], told: str | None) -> str:
    """The metric of `found` that a task is judged by: the first of the manifest's words that is among them, or its head's."""
    kind = _kind(task)
    pixels = kind == "segmentation"
    for word in (told or "").replace(",", " ").split():
        word = _PIXEL_NAMES.get(word, word) if pixels else word
        if word in found:
            return word
    usual = _HEADLINE[kind]
    return usual if usual in found or not pixels else "dice_macro"


def _kind(task: Task) -> str:
    return task.task if isinstance(task, TextTask) else task.head


class _Gathered:
    """What the metrics of one task need of the samples seen so far; of maps only sums for each image."""

    def __init__(self, task: Task) -> None:
        self.task, self.kind = task, _kind(task)
        self.predicted: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def add(self, name: str, values: np.ndarray, labels: np.ndarray) -> None:
        if self.kind == "segmentation":
            try:
                sums = metrics.segmentation_counts(values.argmax(1), labels, values.shape[1])
            except ValueError as error:
                raise UserError(f"task {name}: {error}: measure on shards with the classes of the training") from None
            self.predicted.append(sums)
            self.labels.append(known_labels(self.task, labels).reshape(len(labels), -1).sum(1))
            return
        if self.kind == "density":
            self.predicted.append(metrics.density_sums(values, labels))
            self.labels.append(known_labels(self.task, labels).reshape(len(labels), -1).sum(1))
            return
        if self.kind == "classification" and labels.size and labels.max() >= values.shape[1]:
            raise UserError(f"task {name}: a label is class {labels.max()}, the model has {values.shape[1]} classes")
        self.predicted.append(values.reshape(len(labels), -1))
        self.labels.append(labels.reshape(len(labels), -1))

    def outputs(self) -> range:
        return range(self.labels[0].shape[1]) if self.kind == "regression" else range(1)

    def measured(self, part: Part, name: str, seed: int, resamples: int) -> list[tuple[Row, np.ndarray]]:
        """(what frontier.metrics says, which samples have a label [n]) of each output."""
        found, labels = np.concatenate(self.predicted), np.concatenate(self.labels)
        options: dict[str, Any] = {"groups": part.groups, "seed": seed, "resamples": resamples}
        train = None if part.train is None else training_labels(self.task, part.train, part.source.targets[name])
        if self.kind == "segmentation":
            majority = None if train is None or not train.size else int(np.bincount(train).argmax())
            return [(metrics.segmentation(found, majority=majority, **options), labels > 0)]
        if self.kind == "density":
            return [(metrics.density(found, **options), labels > 0)]
        if self.kind == "regression":
            both = [(found[:, k].astype(np.float64), labels[:, k].astype(np.float64)) for k in self.outputs()]
            both = [(p, np.where(np.isfinite(t), t, np.nan)) for p, t in both]
            return [(metrics.regression(p, t, **options), ~np.isnan(t)) for p, t in both]
        if self.kind == "multilabel":
            known = ((labels == 0) | (labels == 1)).any(1)
            return [(metrics.multilabel(found >= 0.5, labels, **options), known)]
        truth = labels[:, 0]
        train = train if train is not None and train.size else None
        flat = metrics.classification(found.argmax(1), truth, train=train, **options)
        if found.shape[1] == 2:
            flat |= metrics.binary(found[:, 1], truth, **options)
        return [(flat, truth >= 0)]


def training_labels(task: Task, train: ShardSet, column: str) -> np.ndarray:
    """[m] all known labels of the training split: of the pixels of a map, of all outputs."""
    labels = labels_of(train, column)
    return labels[known_labels(task, labels)]


def baseline_rows(
    config: Mapping[str, Any],
    parts: list[Part],
    *,
    device: str = "cpu",
    seed: int = 0,
    budget: Budget | None = None,
    samples: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Rows as of `measure` of gpna.baselines on the inputs, labels and samples that the model has, `model` its name.

    Fitted to the training split, of which `samples` (default: all) are drawn at random; chosen on val, where the shards have it and it is not
    what is measured. Raises UserError where the training split is not there any more.
    """
    rows: list[Row] = []
    checked = validate(dict(config))
    tasks, sections = checked.model.tasks, checked.data.sources or {}
    for part in parts:
        own = [name for name in part.source.targets if _kind(tasks[name]) != "density"]
        if part.train is None:
            where = sections[part.source.name].shards
            raise UserError(f"--baselines: the training split in {where} is not there any more: leave --baselines out")
        train = part.train
        if samples is not None and samples < len(train):
            train = Subset(train, samples, seed)
        val = None
        if part.split != "val" and part.train.split != "val" and "val" in part.train.manifest["splits"]:
            val = ShardSet(part.train.path, "val")
        for name in own:
            target, task = part.source.targets[name], tasks[name]
            fit, test = (_read(one, target, part) for one in (train, part.source.shards))
            choose = None if val is None else _read(val, target, part)
            found = baselines(_kind(task), fit, test, choose, seed, budget, task=name, device=device, progress=progress)
            for one in found:
                row = _about(name, task, part, one) | {"task": one["task"], "model": one["model"], "kind": "baseline"}
                n = one["n"] if _kind(task) != "segmentation" and "n" in one else _known_samples(task, test.labels)
                row |= {"n": n, "missing": len(test) - n}
                row |= _split(one) | {key: one[key] for key in ("chosen", "n_train", "left_out") if key in one}
                rows.append(row | {"provenance": "measured"})
    return rows


def _known_samples(task: Task, labels: np.ndarray) -> int:
    """How many samples have any label."""
    return int(known_labels(task, labels).reshape(len(labels), -1).any(1).sum())


def _read(shards: ShardSet, target: str, part: Part) -> Split:
    groups = part.grouped_by if part.grouped_by in shards.manifest["columns"] else None
    found = read_split(shards, target, inputs=list(part.source.inputs), bands=part.source.picks, groups=groups)
    one = found.labels.ndim == 2 and found.labels.shape[1] == 1
    return replace(found, labels=found.labels[:, 0]) if one else found
