"""The plan: which sample goes to which split, shard and place, fixed before the first write.

It depends on the source and on the options below, never on workers, ranks or time, so that two runs write the same
bytes and a second call can finish what a killed one began.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.source import ArrayColumn, ImageColumn, Listing, Source, Target, seeded_hash
from frontier.errors import UserError

PLAN_SCHEMA = "frontier-shard-plan/1"
FILES_IN_A_DIRECTORY = 1000
SPLITS = ("train", "val", "test")


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
    id_width: int
    record: dict[str, Any]
    fingerprint: str

    @property
    def samples(self) -> int:
        """Samples over all splits."""
        return sum(len(shard.rows) for shard in self.shards)


@dataclass(frozen=True)
class PlanOptions:
    """Choices of the user: `seed`, the fractions of val and test, and the size of a shard.

    A shard holds at most `shard_bytes` of images, or exactly at most `samples_per_shard` where given.
    """

    seed: int = 0
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    shard_bytes: int = 256 << 20
    samples_per_shard: int | None = None
    compression: str = "none"


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
    split_of = assign_splits(listing, options)
    order = sorted(range(len(listing.ids)), key=lambda row: seeded_hash(options.seed, "order", listing.ids[row]))
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
            if len(names) > FILES_IN_A_DIRECTORY:
                file = f"{split}-{number // FILES_IN_A_DIRECTORY:04d}/{file}"
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
                "ids_sha256": hashlib.sha256(b"\n".join(listing.ids[r] for r in shard.rows)).hexdigest(),
            }
            for shard in shards
        ],
    }
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Plan(tuple(shards), listing, width, {**settings, "fingerprint": fingerprint}, fingerprint)


def array_entry(column: ImageColumn | ArrayColumn, compression: str) -> dict[str, Any]:
    """What the manifest says of an input or array column, less its statistics."""
    if compression == "none":
        return column.as_dict() | {"layout": "contiguous", "filters": []}
    return column.as_dict() | {"layout": "chunked", "filters": ["shuffle", compression, "fletcher32"]}


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


def assign_splits(listing: Listing, options: PlanOptions) -> list[str]:
    """The split of every sample: as the source gives it, else by seeded hash within each class.

    Within a class, `round(fraction * n)` samples go to test, likewise to val, the rest to train: exact for every
    class. A group goes whole to one split (its first member's class counts), so groups can move the numbers by
    less than a group.
    """
    out = list(listing.splits)
    members: dict[bytes, list[int]] = {}
    for row, group in enumerate(listing.groups):
        members.setdefault(group, []).append(row)
    by_class: dict[int, list[list[int]]] = {}
    for rows in members.values():
        given = {out[row] for row in rows if out[row]}
        if given:
            # Copies of one image in several given splits: keep the source's word, which the listing reports.
            for row in rows:
                out[row] = out[row] or min(given)
            continue
        by_class.setdefault(int(listing.labels[rows[0]]), []).append(rows)
    for units in by_class.values():
        total = sum(len(rows) for rows in units)
        units.sort(key=lambda rows: seeded_hash(options.seed, "split", listing.ids[rows[0]]))
        want_test = int(total * options.test_fraction + 0.5)
        want_val = int(total * options.val_fraction + 0.5)
        done_test = done_val = 0
        for rows in units:
            if done_test < want_test:
                split, done_test = "test", done_test + len(rows)
            elif done_val < want_val:
                split, done_val = "val", done_val + len(rows)
            else:
                split = "train"
            for row in rows:
                out[row] = split
    return out
