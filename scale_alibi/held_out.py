"""Samples of another split, or of other shards, as a trained model takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from frontier.config.load import validate
from frontier.config.schema import AugmentConfig
from frontier.data.loader import Batch
from frontier.data.shards import ShardSet
from frontier.data.subset import Subset
from frontier.errors import UserError
from scale_alibi.config import ScaleALiBiSection
from scale_alibi.feed import columns_of
from scale_alibi.reader import Placed, ScaleALiBiReader
from scale_alibi.sensors import SensorSection, check_together, find_gsd, resolve_sensor


@dataclass(frozen=True)
class HeldOut:
    """A split, with `sensors` by the statistics, bands and sizes of the training."""

    shards: ShardSet
    model: ScaleALiBiSection
    sensors: dict[str, SensorSection]
    columns: tuple[str, ...]

    def reader(self, device: torch.device | str, seed: int, augment: AugmentConfig | None = None) -> ScaleALiBiReader:
        """Of whole images as stored, or of those that `augment` shows."""
        seen = augment or AugmentConfig()
        return ScaleALiBiReader(self.sensors, self.model.patch, self.shards, seen, torch.device(device), seed)

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The samples `rows` of the split."""
        chosen = np.asarray(rows, np.int64)
        columns = {name: torch.from_numpy(self.shards.take(name, chosen)) for name in self.columns}
        members = torch.stack([torch.zeros(len(chosen), dtype=torch.int64), torch.from_numpy(chosen)], 1)
        return Batch(columns, members, self.columns[0])

    def placed(self, reader: ScaleALiBiReader, size: int) -> Iterator[Placed]:
        """All samples in the split's order, `size` at a time."""
        for start in range(0, len(self.shards), size):
            rows = np.arange(start, min(start + size, len(self.shards)))
            yield reader.place({"": self.batch(rows)})


def open_held_out(
    config: Mapping[str, Any], split: str, shards: str | None = None, limit: int | None = None, seed: int = 0
) -> HeldOut:
    """A split of the shards of a resolved run config, or of other `shards` with the same columns and bands; at most `limit` samples
    of it, drawn by `seed`.

    Of other shards the GSD is what they say, or where they say nothing what the run says. Raises UserError where they do not fit
    the model.
    """
    checked = validate(dict(config))
    model = checked.model
    where = shards or checked.data.shards
    if where is None:
        raise UserError("the run was trained on images made on the device: name shards by --data")
    found = ShardSet(where, split)
    if limit is not None and limit < len(found):
        found = Subset(found, limit, seed)
    sensors = {}
    for name, section in model.sensors.items():
        if shards is not None and section.column in found.image_columns:
            section = _with_gsd_of(name, section, found)
        sensors[name] = resolve_sensor(name, section, found, model.patch)
    check_together(sensors, model.patch, found)
    return HeldOut(found, model, sensors, columns_of(sensors, found))


def _with_gsd_of(name: str, section: SensorSection, shards: ShardSet) -> SensorSection:
    try:
        gsd = find_gsd(f"model.sensors.{name}", section.model_copy(update={"gsd_m": None}), shards)
    except UserError:
        return section
    return section.model_copy(update={"gsd_m": gsd})
