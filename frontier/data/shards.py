"""Reading a directory of shards as one sequence of samples.

The order is fixed by the manifest: samples of the first shard of the split, then of the second, and so on.
Opening reads the manifest and looks at each shard's size and structure; no data is read and nothing is hashed
(`frontier shards verify` hashes). Each process keeps a bounded number of shards open. Reads may come from
several threads.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from frontier.data.hdf5 import OpenShard, check_size
from frontier.data.manifest import MANIFEST, SCHEMA, load_manifest, nearest, stored_arrays
from frontier.errors import UserError

__all__ = ["MANIFEST", "SCHEMA", "ShardSet", "load_manifest"]

_live: weakref.WeakSet[ShardSet] = weakref.WeakSet()


class ShardSet:
    """The samples of one split of a shard directory.

    Attributes: `path`; `split`; `manifest` (dict, see `frontier.data.manifest`); `classes` (names that
    `label` indexes); `image_columns` (names); `fingerprint` (sha256 of plan and content); `shard_starts`,
    int64 [shards + 1], the global index at which each shard begins. `len()` is the number of samples.
    """

    def __init__(self, path: str | Path, split: str = "train", *, check: bool = True, open_shards: int = 128) -> None:
        """Open `split` of the shard directory `path`.

        `check=False` leaves a shard's checks to its first use: for many ranks, of which one has checked. At
        most `open_shards` shards are kept open. Raises `UserError` (bad manifest, unknown split, missing,
        truncated or malformed shard), naming the file and the mend.
        """
        self.path = Path(path)
        self.split = split
        self.manifest: dict[str, Any] = load_manifest(self.path)
        if split not in self.manifest["splits"]:
            known = nearest(split, self.manifest["splits"])
            raise UserError(f"shards {self.path}: no split {split!r}: {known}")
        self.classes: list[str] = list(self.manifest["classes"])
        self.image_columns: list[str] = list(self.manifest["images"])
        self._stored = stored_arrays(self.manifest)
        scalars = {name: {"shape": [], "axes": "", "dtype": dtype} for name, dtype in self.manifest["columns"].items()}
        self._specs: dict[str, dict[str, Any]] = scalars | self._stored
        self.fingerprint: str = self.manifest["fingerprint"]
        by_file = {shard["file"]: shard for shard in self.manifest["shards"]}
        self._shards = [by_file[file] for file in self.manifest["splits"][split]["shards"]]
        counts = [shard["samples"] for shard in self._shards]
        self.shard_starts: npt.NDArray[np.int64] = np.concatenate(
            [np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]
        )
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._limit = max(1, open_shards)
        self._copies: dict[str, Path] = {}
        self._columns: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()
        _live.add(self)
        if check:
            for index in range(len(self._shards)):
                self._shard(index)

    def __len__(self) -> int:
        return int(self.shard_starts[-1])

    def __repr__(self) -> str:
        return f"ShardSet({str(self.path)!r}, split={self.split!r}, samples={len(self)})"

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_open": OrderedDict(), "_columns": {}}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        _live.add(self)

    def read(
        self,
        column: str,
        start: int,
        stop: int,
        out: np.ndarray | None = None,
        places: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples `start` to `stop - 1` of an input, array or per-sample column, in global order: [stop - start, *shape].

        Copies into `out` (same shape and dtype) where given; with `places` [stop - start] int64, sample `start + i` goes
        to `out[places[i]]` and the rest of `out` stays. Raises `IndexError` where the range leaves the split,
        `UserError` where the column is not there.
        """
        self._spec(column)
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"samples {start}:{stop} of a split of {len(self)}")
        if places is None:
            out = self._result(column, stop - start, out)
        elif out is None or len(places) != stop - start:
            raise ValueError("places need out, and one place a sample")
        else:
            rows = places.tolist()  # the least of few is found faster in a list
            if rows and not (min(rows) >= 0 and max(rows) < len(out)):
                raise IndexError(f"places {min(rows)} to {max(rows)} of {len(out)}")
            self._result(column, len(out), out)
        first = int(np.searchsorted(self.shard_starts, start, side="right")) - 1
        done = start
        for index in range(first, len(self._shards)):
            if done >= stop:
                break
            base = int(self.shard_starts[index])
            end = min(stop, int(self.shard_starts[index + 1]))
            part = slice(done - start, end - start)
            if places is None:
                self._shard(index).read_into(column, done - base, end - base, out[part])
            else:
                self._shard(index).read_into(column, done - base, end - base, out, places[part])
            done = end
        return out

    def take(self, column: str, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The samples at `indices` (global, any order, repeats allowed), in the order asked: [n, *shape]."""
        self._spec(column)
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"indices {wanted.min()} to {wanted.max()} of a split of {len(self)}")
        out = self._result(column, len(wanted), out)
        owner = np.searchsorted(self.shard_starts, wanted, side="right") - 1
        for index in np.unique(owner):
            places = np.flatnonzero(owner == index)
            local = wanted[places] - self.shard_starts[index]
            opened = self._shard(int(index))  # held: letting go of it would close its file
            opened.check_whole()
            part = opened.arrays[column]
            if isinstance(part, np.ndarray):
                for place, row in zip(places.tolist(), local.tolist(), strict=True):
                    out[place] = part[row]
            else:
                # h5py is slow at index lists, so one read a sample, in file order.
                for k in np.argsort(local, kind="stable").tolist():
                    part.read_direct(out, np.s_[local[k]], np.s_[places[k]])
        return out

    def advise(self, column: str, start: int, stop: int) -> None:
        """Have the system begin to read samples `start` to `stop - 1` of a column, where they lie in the files as they are."""
        for index in range(int(np.searchsorted(self.shard_starts, start, side="right")) - 1, len(self._shards)):
            base, end = int(self.shard_starts[index]), int(self.shard_starts[index + 1])
            if base >= stop:
                break
            self._shard(index).advise(column, max(start, base) - base, min(stop, end) - base)

    def in_cache(self, column: str, indices: np.ndarray) -> bool:
        """Whether the samples at `indices` lie in the file system's cache as `gather` can copy them; False where it does not say."""
        owner = np.searchsorted(self.shard_starts, indices, side="right") - 1
        local = (indices - self.shard_starts[owner]).tolist()
        return all(self._shard(index).in_cache(column, row) for index, row in zip(owner.tolist(), local, strict=True))

    def gather(self, column: str, indices: np.ndarray, out: np.ndarray) -> None:
        """Copy the samples at `indices` (global, ascending, repeats allowed) from the memory map into `out` [n, *shape].

        Only columns that lie in the files as they are: those of which `in_cache` was True.
        """
        cuts = np.searchsorted(indices, self.shard_starts)
        counts = np.diff(cuts)
        local, ends = indices - np.repeat(self.shard_starts[:-1], counts), cuts.tolist()
        for index in counts.nonzero()[0].tolist():
            part = slice(ends[index], ends[index + 1])
            opened = self._shard(index)  # held: letting go of it would close its file
            opened.check_whole()
            # "clip" never clips here; the default would go through another copy
            opened.arrays[column].take(local[part], 0, out[part], "clip")

    def column(self, name: str) -> np.ndarray:
        """All values of a per-sample column in global order: array [samples] of the manifest's dtype.

        Kept after the first call; do not write into it. Raises `UserError` where there is no such column.
        """
        if name not in self.manifest["columns"]:
            hint = " (an array: use read or take)" if name in self._stored else ""
            raise UserError(
                f"shards {self.path}: no per-sample column {name!r}{hint}: {nearest(name, self.manifest['columns'])}"
            )
        if name not in self._columns:
            opened = (self._shard(index) for index in range(len(self._shards)))
            parts = [np.array(shard.arrays[name]) for shard in opened]
            dtype = np.dtype(self.manifest["columns"][name])
            values = np.concatenate(parts) if parts else np.empty(0, dtype)
            values.flags.writeable = False
            self._columns[name] = values
        return self._columns[name]

    def statistics(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """(mean [C], std [C]) of the train split, float32, in stored units; std 1 for a band that never varies.

        Raises `UserError` where the manifest has none (no train split).
        """
        found = self._spec(column).get("statistics")
        if not found:
            raise UserError(
                f"shards {self.path}: no statistics of {column!r}, for want of a train split: give the mean "
                "and standard deviation in the configuration"
            )
        std = np.asarray(found["std"], np.float32)
        return np.asarray(found["mean"], np.float32), np.where(std > 0, std, np.float32(1))

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The manifest's records of the split's shards, in order: file, samples, bytes, sha256."""
        return list(self._shards)

    def use_copies(self, paths: Mapping[str, Path]) -> None:
        """From now on read these shards (by file) from other places, such as a node's own disk, as long as that works."""
        with self._lock:
            self._copies = dict(paths)
            self._open.clear()

    def close(self) -> None:
        """Close every open shard; the next read opens again."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def describe(self, column: str) -> tuple[tuple[int, ...], np.dtype]:
        """(shape of one sample, dtype) of any column. Raises `UserError` where there is none of that name."""
        spec = self._spec(column)
        return tuple(spec["shape"]), np.dtype(spec["dtype"])

    def _spec(self, column: str) -> dict[str, Any]:
        try:
            return self._specs[column]
        except KeyError:
            raise UserError(
                f"shards {self.path}: no image column {column!r}: {nearest(column, self._stored)}"
            ) from None

    def _result(self, column: str, count: int, out: np.ndarray | None) -> np.ndarray:
        spec = self._specs[column]
        shape, dtype = (count, *spec["shape"]), np.dtype(spec["dtype"])
        if out is None:
            return np.empty(shape, dtype)
        if out.shape != shape or out.dtype != dtype:
            raise ValueError(f"out is {out.dtype} {out.shape}, wanted {dtype} {shape}")
        return out

    def _shard(self, index: int) -> OpenShard:
        with self._lock:
            found = self._open.get(index)
            if found is not None:
                self._open.move_to_end(index)
                return found
            opened = self._opened(self._shards[index])
            self._open[index] = opened
            # Dropped, not closed: another thread may still be copying from it.
            while len(self._open) > self._limit:
                self._open.popitem(last=False)
            return opened

    def _opened(self, entry: dict[str, Any]) -> OpenShard:
        """The shard, from its node-local copy where that can be read, else from where it was written."""
        for path in (self._copies.get(entry["file"]), self.path / entry["file"]):
            try:
                if path is not None:
                    check_size(path, entry["bytes"])
                    return OpenShard(path, entry["samples"], self._stored, self.manifest["columns"])
            except UserError:
                if path == self.path / entry["file"]:
                    raise
                del self._copies[entry["file"]]
        raise AssertionError("not reached: the origin is opened or raises")


def _after_fork() -> None:
    """In a forked child: open shards anew, so that no HDF5 handle is shared with the parent."""
    for shards in list(_live):
        shards._open = OrderedDict()
        shards._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
