"""A source of samples: its shards, the inputs that are tokenised, when and where they were taken, and its labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from frontier.data.manifest import band_places, nearest
from frontier.data.sampler import Sampler
from frontier.data.shards import ShardSet
from frontier.data.subset import Subset
from frontier.errors import UserError
from gpna.config import InputSection, SourceSection
from gpna.head_sections import Task
from gpna.sensors import InputSpec, Sensor, input_spec

SCALARS = ("lon", "lat", "gsd_m", "time_start", "time_end")
"""Columns of one number a sample that say where and when, read where they are there."""


@dataclass(frozen=True)
class Times:
    """Columns that hold when the dates of an input begin and end; `end` None: one column holds both, or an instant."""

    start: str
    end: str | None


@dataclass(frozen=True)
class OpenSource:
    """A source whose shards are open.

    Attributes:
        inputs: by column.
        times: of the inputs with dates of their own, by column.
        columns: all that a batch must hold.
        targets: the label column of each task of this source.
        picks: places of the chosen bands among those stored, by column; only where they are not all, in order.
    """

    name: str
    section: SourceSection
    shards: ShardSet
    inputs: dict[str, InputSpec]
    times: dict[str, Times]
    columns: tuple[str, ...]
    targets: dict[str, str]
    picks: dict[str, list[int]] = field(default_factory=dict)

    def resolved(self, per_batch: int, sampler: Sampler) -> SourceSection:
        """The section with what depends on the data filled in."""
        given = self.section.inputs or {}
        inputs = {
            column: given.get(column, InputSection()).model_copy(
                update={"footprint": spec.footprint, "spec": spec.as_dict()}
            )
            for column, spec in self.inputs.items()
        }
        found = {"inputs": inputs, "per_batch": per_batch, "block": sampler.block, "window": sampler.window}
        return self.section.model_copy(update=found)


def open_source(
    name: str,
    section: SourceSection,
    tasks: Mapping[str, Task],
    check: bool,
    sensors: Mapping[str, Sensor] | None = None,
) -> OpenSource:
    """Open the shards and bind what the section and the `tasks` of this source name. Raises UserError.

    `sensors`: by column, descriptors to take instead of those that the section names.
    """
    where = f"data.sources.{name}"
    try:
        shards: ShardSet = ShardSet(section.shards, split=section.split, check=check)
        if section.samples is not None:
            shards = Subset(shards, section.samples, section.samples_seed)
    except UserError as error:
        raise type(error)(f"{where}: {error}") from None
    found = shards.manifest["images"]
    wanted = section.inputs or {column: InputSection() for column in found}
    inputs: dict[str, InputSpec] = {}
    picks: dict[str, list[int]] = {}
    for column, given in wanted.items():
        if column not in found:
            raise UserError(f"{where}.inputs: no input '{column}' in {section.shards}: {nearest(column, found)}")
        entry, key = found[column], f"{where}.inputs.{column}"
        if given.bands is not None:
            pick = band_places(entry, given.bands, f"{key}.bands")
            if pick != list(range(len(entry["bands"]))):
                picks[column], entry = pick, picked_entry(entry, pick)
        try:
            inputs[column] = input_spec(
                entry, (sensors or {}).get(column, given.sensor), where=key, footprint=given.footprint
            )
        except UserError as error:
            raise UserError(f"{key}: {str(error).removeprefix(f'{key}: ')}") from None
    if section.symmetries and not any(
        spec.form == "image" and spec.sides[0] == spec.sides[1] for spec in inputs.values()
    ):
        raise UserError(
            f"{where}.symmetries has no effect: none of its inputs has as many rows as columns; leave it out"
        )
    masks = [found[column]["mask"] for column in inputs if found[column]["mask"]]
    try:
        times = {column: t for column, spec in inputs.items() if (t := times_of(shards.manifest, column, spec))}
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    dated = [c for t in times.values() for c in (t.start, t.end) if c]
    scalars = [column for column in SCALARS if column in shards.manifest["columns"]]
    targets = {task_name: _target(shards, task, task_name) for task_name, task in tasks.items()}
    columns = tuple(dict.fromkeys([*inputs, *masks, *dated, *scalars, *targets.values()]))
    return OpenSource(name, section, shards, inputs, times, columns, targets, picks)


def picked_entry(entry: Mapping[str, Any], pick: Sequence[int]) -> dict[str, Any]:
    """An entry of a manifest's `images` with some of its bands."""
    axes = entry.get("axes", "CHW")
    shape = [len(pick) if axis == "C" else size for axis, size in zip(axes, entry["shape"], strict=True)]
    changed: dict[str, Any] = {"shape": shape, "bands": [entry["bands"][place] for place in pick]}
    if entry.get("statistics"):
        found = entry["statistics"]
        changed["statistics"] = {name: [found[name][place] for place in pick] for name in ("mean", "std")}
    return {**entry, **changed}


def times_of(manifest: Mapping[str, Any], column: str, spec: InputSpec) -> Times | None:
    """Where the dates of an input with axis T are, by the names that readers of `data_prep` give; None: nowhere. Raises UserError for dates
    of so named arrays that fit no input."""
    if "T" not in spec.axes:
        return None
    steps, arrays = spec.steps, manifest["arrays"]

    def fits(name: str, shape: list[int]) -> bool:
        return name in arrays and arrays[name]["shape"] == shape

    for start, end in ((f"{column}_time_start", f"{column}_time_end"), (f"{column}_time", f"{column}_time_end")):
        if fits(start, [steps]):
            return Times(start, end if fits(end, [steps]) else None)
    for name in ("dates", "times"):
        if fits(name, [steps]) or fits(name, [steps, 2]):
            return Times(name, None)
    lengths = {
        one["shape"][one["axes"].index("T")] for one in manifest["images"].values() if "T" in one.get("axes", "CHW")
    }
    for name in (f"{column}_time_start", f"{column}_time", "dates", "times"):
        if name in arrays and (name.startswith(column) or arrays[name]["shape"][0] not in lengths):
            raise UserError(
                f"'{name}' has shape {arrays[name]['shape']}, '{column}' has {steps} dates: write one number a date, Unix seconds (UTC)"
            )
    return None


def _target(shards: ShardSet, task: Task, name: str) -> str:
    """The column of a task's labels."""
    wanted = getattr(task, "target", "")
    manifest = shards.manifest
    column = manifest["targets"].get(wanted, {}).get("column", wanted)
    known = {**manifest["targets"], **manifest["columns"], **manifest["arrays"]}
    if column not in manifest["columns"] and column not in manifest["arrays"]:
        raise UserError(f"model.tasks.{name}.target: no labels '{wanted}' in {shards.path}: {nearest(wanted, known)}")
    return column


def labels_of(shards: ShardSet, column: str) -> np.ndarray:
    """All labels of a split [n, …]; of a map, at most as many samples as fit in some hundred MiB."""
    if column in shards.manifest["columns"]:
        return shards.column(column)
    shape, dtype = shards.describe(column)
    each = max(1, math.prod(shape) * dtype.itemsize)
    return shards.read(column, 0, min(len(shards), max(1, (256 << 20) // each)))
