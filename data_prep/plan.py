"""The plan: which sample goes to which split, shard and place, fixed before the first write.

It depends on the source and on the options below, never on workers, ranks or time, so that two runs write the same
bytes and a second call can finish what a killed one began.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.codec import filters
from data_prep.places import curve_position
from data_prep.source import ArrayColumn, ImageColumn, Listing, Source, Target, seeded_hash
from data_prep.splits import SPLITS, assign_splits
from frontier.errors import UserError

PLAN_SCHEMA = "frontier-shard-plan/1"
SHARDS_IN_A_DIRECTORY = 500
"""Beside each lies its record: a thousand files."""


@dataclass(frozen=True)
class PlannedShard:
    """One shard file and the source rows that it holds, in order."""

    file: str
    split: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """All shards in global order. `fingerprint` is the sha256 of everything the bytes depend on."""

    shards: tuple[PlannedShard, ...]
    listing: Listing
    split_check: dict[str, Any]
    id_width: int
    record: dict[str, Any]
    fingerprint: str

    @property
    def samples(self) -> int:
        """Samples over all splits."""
        return sum(len(shard.rows) for shard in self.shards)


@dataclass(frozen=True)
class PlanOptions:
    """Choices of the user: `seed`, how splits are made (see `assign_splits`), order, and the size of a shard.

    A shard holds at most `shard_bytes` of images, or exactly at most `samples_per_shard` where given. `order`: "random"
    is right for training; "place" follows a curve over the ground, so that a shard holds one region.
    """

    seed: int = 0
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    split_by: str = "class"
    block_km: float = 20.0
    gap_km: float = 0.0
    order: str = "random"
    shard_bytes: int = 1 << 30
    samples_per_shard: int | None = None
    compression: str = "none"
    disk_mib_s: float | None = None


def content_fingerprint(plan: str, shards: Iterable[dict[str, Any]]) -> str:
    """What stands for all bytes of a set: sha256 of the plan's fingerprint and of every shard's sha256, in order."""
    content = hashlib.sha256(plan.encode())
    for shard in shards:
        content.update(shard["sha256"].encode())
    return content.hexdigest()


def ids_sha256(ids: Iterable[bytes]) -> str:
    """What the plan keeps of the samples of a shard."""
    return hashlib.sha256(b"\n".join(ids)).hexdigest()


def make_plan(source: Source, options: PlanOptions) -> Plan:
    """Order, split and shard the source's samples.

    Raises `UserError` for no samples, repeated ids, or fractions that leave no training samples.
    """
    for name, fraction in (("val", options.val_fraction), ("test", options.test_fraction)):
        if not 0 <= fraction < 1:
            raise UserError(f"--{name}-fraction {fraction}: give a number from 0 up to, not including, 1")
    if options.val_fraction + options.test_fraction >= 1:
        raise UserError("--val-fraction and --test-fraction add up to 1 or more: leave some samples to train on")
    listing = source.listing()
    if not listing.ids:
        raise UserError(f"{source.name}: no samples: give a source that holds some")
    if len(set(listing.ids)) != len(listing.ids):
        raise UserError(f"{source.name}: two samples have the same id: rename one of them")
    strange = set(listing.splits) - {"", *SPLITS}
    if strange:
        raise ValueError(f"{source.name}: the source names a split {min(strange)!r}")
    split_of, check = assign_splits(
        listing,
        options.seed,
        (options.val_fraction, options.test_fraction),
        options.split_by,
        options.block_km,
        options.gap_km,
    )
    if "train" not in split_of and not any(listing.splits):
        raise UserError(
            f"{source.name}: nothing is left to train on: samples that must stay together make up the whole, and went to "
            f"{max(split_of)!r}: hold out less, or group by smaller pieces where the reader offers it"
        )
    order = _order(listing, options)
    sample_bytes = source.sample_bytes
    width = -(-max(len(name) for name in listing.ids) // 64) * 64
    if listing.ordered:
        order.sort()
    shards: list[PlannedShard] = []
    for split in SPLITS:
        rows = [row for row in order if split_of[row] == split]
        pieces = np.array_split(np.array(rows, np.int64), shard_count(len(rows), sample_bytes, options))
        names = [piece for piece in pieces if len(piece)]
        for number, piece in enumerate(names):
            file = f"{split}-{number:05d}.h5"
            if len(names) > SHARDS_IN_A_DIRECTORY:
                file = f"{split}-{number // SHARDS_IN_A_DIRECTORY:04d}/{file}"
            shards.append(PlannedShard(file, split, tuple(piece.tolist())))
    settings = {
        "schema": PLAN_SCHEMA,
        "name": source.name,
        "source": source.describe(),
        "images": {name: array_entry(column, options.compression) for name, column in source.images.items()},
        "arrays": {name: array_entry(column, options.compression) for name, column in source.arrays.items()},
        "columns": column_types(source, width),
        "targets": {name: target.as_dict() for name, target in targets_of(source, listing).items()},
        "classes": list(listing.classes),
        "options": {
            "seed": options.seed,
            "order": options.order,
            "split_by": options.split_by,
            "block_km": options.block_km if options.split_by == "place" else None,
            "gap_km": options.gap_km,
            "val_fraction": options.val_fraction,
            "test_fraction": options.test_fraction,
            "shard_bytes": options.shard_bytes,
            "samples_per_shard": options.samples_per_shard,
            "compression": options.compression,
        },
        "shards": [
            {
                "file": shard.file,
                "split": shard.split,
                "samples": len(shard.rows),
                "ids_sha256": ids_sha256(listing.ids[r] for r in shard.rows),
            }
            for shard in shards
        ],
    }
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Plan(tuple(shards), listing, check, width, {**settings, "fingerprint": fingerprint}, fingerprint)


def _order(listing: Listing, options: PlanOptions) -> list[int]:
    """All rows in the order in which they are stored."""
    keys = [seeded_hash(options.seed, "order", name) for name in listing.ids]
    if options.order == "random":
        return sorted(range(len(keys)), key=keys.__getitem__)
    if listing.places is None:
        raise UserError("--order place: this source knows no places: use --order random")
    along = curve_position(listing.places).tolist()
    return sorted(range(len(keys)), key=lambda row: (along[row], keys[row]))


def array_entry(column: ImageColumn | ArrayColumn, compression: str) -> dict[str, Any]:
    """What the manifest says of an input or array column, less its statistics."""
    layout = "contiguous" if compression == "none" else "chunked"
    return column.as_dict() | {"layout": layout, "filters": filters(compression)}


def column_types(source: Source, id_width: int) -> dict[str, str]:
    """Per-sample columns of a shard: numpy dtype by name."""
    return {"sample_id": f"S{id_width}", "label": "int32", **source.columns, "crc32": "uint32"}


def targets_of(source: Source, listing: Listing) -> dict[str, Target]:
    """The source's targets; where it names none but has classes, classification of the column `label`."""
    if source.targets or not listing.classes:
        return dict(source.targets)
    return {"label": Target("classification", "label", tuple(listing.classes), missing=-1)}


def shard_count(samples: int, sample_bytes: int, options: PlanOptions) -> int:
    """How many shards of near equal size a split gets.

    As few as keep each within the limit, but up to 8 where that leaves 256 samples to each, so that workers and
    ranks have something to share out.
    """
    if options.samples_per_shard is not None:
        if options.samples_per_shard < 1:
            raise UserError(f"--samples-per-shard {options.samples_per_shard}: give 1 or more")
        return max(1, -(-samples // options.samples_per_shard))
    if options.shard_bytes < 1:
        raise UserError("--shard-mib: give a size above 0")
    needed = -(-samples * sample_bytes // options.shard_bytes)
    return max(1, min(samples, needed), min(8, samples // 256))
