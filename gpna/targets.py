"""What a task's labels say of it: classes, size of a map, mean and deviation of numbers, and how many samples have any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from frontier.config.load import explain
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from gpna.head_sections import (
    ClassificationTask,
    DensityTask,
    MultilabelTask,
    RegressionTask,
    SegmentationTask,
    Task,
    TextTask,
)
from gpna.packed import pack
from gpna.sources import OpenSource, labels_of
from gpna.text_vectors import vectors_of

UNKNOWN_PIXEL = 255


def settle(name: str, task: Task, source: OpenSource) -> Task:
    """`task` with everything filled in that its labels say. Raises UserError where the labels do not suit its head."""
    column, shards = source.targets[name], source.shards
    where = f"model.tasks.{name}"
    shape, dtype = shards.describe(column)
    labels = labels_of(shards, column)
    known = known_labels(task, labels)
    labelled = float(known.reshape(len(known), -1).any(1).mean())
    if not labelled:
        raise UserError(f"{where}: no sample of {shards.path} ({shards.split}) has a label in '{column}'")
    found: dict[str, Any] = {"labelled": labelled}
    if isinstance(task, TextTask):
        try:
            found["stored"] = pack(vectors_of(task).vectors)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    match task:
        case ClassificationTask() | MultilabelTask() | TextTask(task="classification"):
            if dtype.kind not in "iub":
                raise UserError(f"{where}: '{column}' holds {dtype}, not class numbers: choose head: regression")
            if isinstance(task, MultilabelTask):
                found |= _count(where, task, "classes", int(np.prod(shape)))
                if len(shape) != 1:
                    raise UserError(f"{where}: '{column}' has shape {shape}: multilabel takes one number a class")
            else:
                _scalar(where, column, shape)
                if dtype == np.uint8 and int(labels.max()) == UNKNOWN_PIXEL and not _told(task, shards, column):
                    raise UserError(
                        f"{where}: '{column}' holds 255, the mark of an unknown pixel of a map: store -1 where a sample has no label, or "
                        "give classes: 256"
                    )
                classes = len(task.texts) if isinstance(task, TextTask) else _classes(task, shards, column, labels)
                if int(labels.max()) >= classes:
                    raise UserError(
                        f"{where}: '{column}' holds class {int(labels.max())} of {classes}: give more classes"
                    )
                found |= {} if isinstance(task, TextTask) else {"classes": classes}
        case RegressionTask() | TextTask():
            outputs = int(np.prod(shape))
            if len(shape) > 1:
                raise UserError(f"{where}: '{column}' has shape {shape}: choose head: segmentation or density for maps")
            if isinstance(task, RegressionTask):
                found |= _count(where, task, "outputs", outputs)
            else:
                _scalar(where, column, shape)
            numbers = np.where(known, labels, np.nan).reshape(len(labels), outputs).astype(np.float64)
            if task.mean is None or task.std is None:
                if not np.isfinite(numbers).any(0).all():
                    raise UserError(f"{where}: an output of '{column}' has no label at all: leave it out")
                mean, std = np.nanmean(numbers, 0), np.nanstd(numbers, 0)
                std = np.where(std > 0, std, 1.0)
                for key, measured in (("mean", mean), ("std", std)):
                    if getattr(task, key) is None:
                        found[key] = float(measured[0]) if isinstance(task, TextTask) else measured.tolist()
        case SegmentationTask() | DensityTask():
            if len(shape) != 2:
                raise UserError(
                    f"{where}: '{column}' has shape {shape}: head {task.head} takes a map of rows and columns"
                )
            if task.size is None:
                found["size"] = shape
            elif task.side() != shape:
                raise UserError(f"{where}: size is {task.side()}, but '{column}' has {shape}: leave size out")
            if isinstance(task, SegmentationTask):
                if dtype.kind not in "iub":
                    raise UserError(f"{where}: '{column}' holds {dtype}, not class numbers: choose head: density")
                shown = np.where(known, labels, 0)
                found["classes"] = _classes(task, shards, column, shown)
                if int(shown.max()) >= found["classes"] or int(shown.min()) < 0:
                    wrong = int(shown.max()) if int(shown.min()) >= 0 else int(shown.min())
                    raise UserError(
                        f"{where}: '{column}' holds class {wrong} of {found['classes']}: give more classes, or mark unknown pixels "
                        f"{UNKNOWN_PIXEL}"
                    )
        case _:
            raise AssertionError(f"{task.head} has no labels")
    # Validated again: with what is known now, parts of it may no longer go together.
    try:
        return type(task).model_validate({**task.model_dump(exclude_unset=True), **found})
    except ValidationError as error:
        raise UserError(explain(error, prefix=f"{where}.")) from None


def known_labels(task: Task, labels: np.ndarray) -> np.ndarray:
    """Which labels are known, of the same shape."""
    if isinstance(task, SegmentationTask):
        return labels != UNKNOWN_PIXEL
    if isinstance(task, (ClassificationTask, MultilabelTask)) or (
        isinstance(task, TextTask) and task.task == "classification"
    ):
        return labels >= 0
    known = np.isfinite(labels) if labels.dtype.kind == "f" else np.ones(labels.shape, bool)
    return known & (labels >= 0) if isinstance(task, DensityTask) else known


def class_names(manifest: Mapping[str, Any], column: str) -> list[str]:
    """Names of the classes of a label column; empty where the manifest has none."""
    for target in manifest["targets"].values():
        if target["column"] == column and target["classes"]:
            return list(target["classes"])
    return list(manifest["classes"]) if column == "label" else []


def _told(task: Any, shards: ShardSet, column: str) -> int:
    """How many classes the config or the manifest says there are; 0 where neither does."""
    return getattr(task, "classes", None) or len(class_names(shards.manifest, column))


def _classes(task: Any, shards: ShardSet, column: str, labels: np.ndarray) -> int:
    return _told(task, shards, column) or max(2, int(labels.max()) + 1)


def _count(where: str, task: Any, key: str, found: int) -> dict[str, int]:
    given = getattr(task, key)
    if given is not None and given != found:
        raise UserError(f"{where}.{key} is {given}, its labels have {found} a sample: leave {key} out")
    return {key: found}


def _scalar(where: str, column: str, shape: tuple[int, ...]) -> None:
    if shape:
        raise UserError(
            f"{where}: '{column}' holds {shape} numbers a sample, this head takes one: choose head: segmentation, multilabel or regression"
        )
