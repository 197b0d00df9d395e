"""Shards as a source: the same samples again, with other options of the writer.

Nothing is decoded, cast or invented: arrays, labels and scalars come out byte for byte. Every sample's checksum is
computed over all of its arrays while it is read, so damage in the input ends the call instead of spreading.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from data_prep.source import ArrayColumn, Band, ImageColumn, Listing, Source, Target
from data_prep.statistics import sample_checksums
from frontier.data.hdf5 import OpenShard, check_size
from frontier.data.manifest import load_manifest, nearest, stored_arrays
from frontier.errors import UserError

Described = TypeVar("Described", ImageColumn, ArrayColumn, Target, Band)
_OWN = ("sample_id", "label", "crc32")
"""Columns that the writer makes itself."""
_OPEN_SHARDS = 64


class ShardSource(Source):
    """All samples of a shard directory, split after split, in their order."""

    def __init__(
        self,
        directory: str | Path,
        *,
        columns: Iterable[str] | None = None,
        splits: Literal["keep", "new"] = "keep",
        order: Literal["keep", "new"] = "keep",
        name: str | None = None,
    ) -> None:
        """`columns`: the inputs and arrays to keep (default: all); the mask of a kept input stays with it.

        `splits` "new" leaves them to the plan, copies of a sample together; `order` likewise. Raises `UserError` for
        shards that are not whole, or for columns that are not there.
        """
        self.path = Path(directory)
        manifest = load_manifest(self.path)
        missing = [column for column in ("sample_id", "crc32") if column not in manifest["columns"]]
        if missing:
            raise UserError(
                f"shards {self.path}: no column {missing[0]!r}, so damage would go unseen: write them again from the "
                "archive with `frontier shards write`"
            )
        self._manifest = manifest
        by_file = {entry["file"]: entry for entry in manifest["shards"]}
        self._shards = [by_file[file] for split in manifest["splits"].values() for file in split["shards"]]
        for entry in self._shards:
            check_size(self.path / entry["file"], entry["bytes"])
        self._starts = np.cumsum([0, *(entry["samples"] for entry in self._shards)])
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()
        self._new_splits, self._new_order = splits == "new", order == "new"
        kept = _kept(manifest, columns)
        self.name = name or manifest["name"]
        self.images = {
            key: _rebuild(ImageColumn, spec | {"bands": [_rebuild(Band, band) for band in spec["bands"]]})
            for key, spec in manifest["images"].items()
            if key in kept
        }
        self.arrays = {key: _rebuild(ArrayColumn, spec) for key, spec in manifest["arrays"].items() if key in kept}
        self.columns = {key: dtype for key, dtype in manifest["columns"].items() if key not in _OWN}
        there = {*kept, *manifest["columns"]}
        self.targets = {
            key: _rebuild(Target, target) for key, target in manifest["targets"].items() if target["column"] in there
        }
        self.license, self.citation = manifest.get("license"), manifest.get("citation")
        self.homepage, self.description = manifest.get("homepage"), manifest.get("description")

    def describe(self) -> dict[str, Any]:
        made = self._manifest
        return {
            "kind": "shards",
            "columns": [*self.images, *self.arrays],
            "splits": "new" if self._new_splits else "keep",
            "order": "new" if self._new_order else "keep",
            "fingerprint": made["fingerprint"],
            "input": {key: made[key] for key in ("name", "source", "options", "split_check") if key in made},
        }

    def listing(self) -> Listing:
        wanted = [name for name in ("sample_id", "label", "crc32", "lon", "lat") if name in self._manifest["columns"]]
        parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
        for number in range(len(self._shards)):
            arrays = self._shard(number).arrays
            for name, pieces in parts.items():
                pieces.append(np.array(arrays[name]))
        found = {name: np.concatenate(pieces) for name, pieces in parts.items()}
        ids = found["sample_id"].tolist()
        places = None
        if {"lon", "lat"} <= found.keys():
            places = np.stack([found["lon"], found["lat"]], axis=1).astype(np.float64)
            places = places if np.isfinite(places).all(axis=1).any() else None
        return Listing(
            ids=ids,
            labels=found.get("label", np.full(len(ids), -1, np.int32)),
            # Copies have the same checksum.
            groups=[b"%08x" % crc for crc in found["crc32"].tolist()] if self._new_splits else ids,
            splits=[
                "" if self._new_splits else entry["split"] for entry in self._shards for _ in range(entry["samples"])
            ],
            classes=tuple(self._manifest["classes"]),
            notes=dict(self._manifest.get("notes") or {}),
            places=places,
            ordered=not self._new_order,
        )

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        wanted = np.asarray(rows, np.int64)
        stored = stored_arrays(self._manifest)
        # All arrays, also those that are left out: the checksum is over all.
        out = {key: np.empty((len(wanted), *spec["shape"]), spec["dtype"]) for key, spec in stored.items()}
        scalars = {key: np.empty(len(wanted), self._manifest["columns"][key]) for key in (*self.columns, "crc32")}
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(owner).tolist():
            places = np.flatnonzero(owner == number)
            local = wanted[places] - self._starts[number]
            for key, values in out.items():
                values[places] = self._read(number, key, local)
            for key, column in scalars.items():
                column[places] = np.asarray(self._shard(number).arrays[key])[local]
        wrong = np.flatnonzero(sample_checksums(out) != scalars["crc32"])
        if len(wrong):
            number = int(owner[wrong[0]])
            raise self._damaged(number, int(wanted[wrong[0]] - self._starts[number]), "its checksum does not agree")
        return {key: out[key] for key in (*self.images, *self.arrays)} | {key: scalars[key] for key in self.columns}

    def _read(self, number: int, column: str, local: np.ndarray) -> np.ndarray:
        """Samples `local` of one shard; in one run where they follow one another."""
        spec = stored_arrays(self._manifest)[column]
        out = np.empty((len(local), *spec["shape"]), spec["dtype"])
        shard = self._shard(number)
        try:
            if (np.diff(local) == 1).all():
                shard.read_into(column, int(local[0]), int(local[-1]) + 1, out)
                return out
        except (OSError, UserError):
            pass  # which of them it is, the next lines find out
        for place, index in enumerate(local.tolist()):
            try:
                shard.read_into(column, index, index + 1, out[place : place + 1])
            except (OSError, UserError) as error:
                shard.check_whole()
                reason = f"column {column!r} cannot be decoded ({str(error).splitlines()[0]})"
                raise self._damaged(number, index, reason) from None
        return out

    def _damaged(self, number: int, index: int, reason: str) -> UserError:
        name = self._shard(number).arrays["sample_id"][index].decode(errors="replace")
        return UserError(
            f"shard {self.path / self._shards[number]['file']}: sample {index} ({name}) is damaged: {reason}: restore the "
            "shard, or run the `frontier shards write` that made it again"
        )

    def _shard(self, number: int) -> OpenShard:
        found = self._opened.get(number)
        if found is None:
            entry = self._shards[number]
            path = self.path / entry["file"]
            check_size(path, entry["bytes"])
            found = OpenShard(path, entry["samples"], stored_arrays(self._manifest), self._manifest["columns"])
            self._opened[number] = found
            while len(self._opened) > _OPEN_SHARDS:
                self._opened.popitem(last=False)
        self._opened.move_to_end(number)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}


def _kept(manifest: dict[str, Any], columns: Iterable[str] | None) -> set[str]:
    """The inputs and arrays that stay, masks of inputs included."""
    stored = stored_arrays(manifest)
    if columns is None:
        return set(stored)
    kept = set(columns)
    for name in sorted(kept - stored.keys()):
        hint = "the values a sample are always kept" if name in manifest["columns"] else nearest(name, stored)
        raise UserError(f"--columns: no input or array {name!r}: {hint}")
    if not kept & manifest["images"].keys():
        raise UserError(f"--columns: keeps no input: name at least one of {', '.join(manifest['images'])}")
    return kept | {spec["mask"] for name, spec in manifest["images"].items() if name in kept and spec["mask"]}


def _rebuild(kind: type[Described], spec: Mapping[str, Any]) -> Described:
    """The description that `as_dict` made this of; keys that it does not have keep their defaults."""
    given: dict[str, Any] = {}
    for field in fields(kind):
        if field.name in spec:
            value = spec[field.name]
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)
