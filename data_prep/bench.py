"""How fast the shards are read, against h5py and against plain reads of the same bytes, in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from frontier.data.hdf5 import open_file
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from frontier.table import table

ROUNDS = 5


def bench(directory: str | Path, split: str, column: str | None, block: int, seconds: float) -> dict[str, Any]:
    """samples/s of reading `split` in order, `block` samples at a time, by each reader.

    The readers take turns for `ROUNDS` rounds and the median counts, so that a disturbance hits all alike. The
    file system's cache is left as it is: the first round, which warms it, does not count. `plain` reads the same
    bytes of the same files with `os.preadv` into one buffer.
    """
    if block < 1 or seconds <= 0:
        raise UserError("bench: --block and --seconds must be above 0")
    shards = ShardSet(directory, split)
    column = column or shards.image_columns[0]
    shards.read(column, 0, 0)
    spec = shards.manifest["images"][column]
    count = len(shards)
    block = min(block, count)
    starts = range(0, count - block + 1, block)
    out = np.empty((block, *spec["shape"]), spec["dtype"])
    readers: dict[str, Callable[[int], Any]] = {"shards": lambda start: shards.read(column, start, start + block, out)}
    files = [open_file(Path(directory) / file) for file in shards.manifest["splits"][split]["shards"]]
    datasets = [file[column] for file in files]
    readers["h5py"] = _h5py_reader(datasets, shards.shard_starts, block, out)
    offsets = [dataset.id.get_offset() for dataset in datasets]
    descriptors = []
    if all(offset is not None for offset in offsets):
        descriptors = [os.open(file.filename, os.O_RDONLY) for file in files]
        readers["plain"] = _plain_reader(descriptors, offsets, shards.shard_starts, block, out)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    try:
        for round_number in range(ROUNDS + 1):
            for name, reader in readers.items():
                rate = _rate(reader, starts, block, seconds / ROUNDS)
                if round_number:
                    rates[name].append(rate)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        for file in files:
            file.close()
    sample = out[0].nbytes
    medians = {name: median(values) for name, values in rates.items()}
    return {
        "shards": str(directory),
        "split": split,
        "column": column,
        "samples": count,
        "block": block,
        "sample_bytes": sample,
        "readers": {
            name: {
                "samples_per_s": value,
                "mib_per_s": value * sample / (1 << 20),
                "of_plain": value / medians["plain"] if "plain" in medians else None,
                "spread": [min(rates[name]), max(rates[name])],
            }
            for name, value in medians.items()
        },
    }


def _pieces(starts: np.ndarray, start: int, stop: int) -> list[tuple[int, int, int]]:
    """(shard, first, last + 1 within it) that make up `start` … `stop - 1`."""
    out = []
    shard = int(np.searchsorted(starts, start, side="right")) - 1
    while start < stop:
        end = min(stop, int(starts[shard + 1]))
        out.append((shard, start - int(starts[shard]), end - int(starts[shard])))
        start = end
        shard += 1
    return out


def _h5py_reader(datasets: list[Any], starts: np.ndarray, block: int, out: np.ndarray) -> Callable[[int], Any]:
    def read(start: int) -> None:
        at = 0
        for shard, first, stop in _pieces(starts, start, start + block):
            datasets[shard].read_direct(out, np.s_[first:stop], np.s_[at : at + stop - first])
            at += stop - first

    return read


def _plain_reader(
    descriptors: list[int], offsets: list[int], starts: np.ndarray, block: int, out: np.ndarray
) -> Callable[[int], Any]:
    raw = out.reshape(-1).view(np.uint8).data
    size = out[0].nbytes

    def read(start: int) -> None:
        at = 0
        for shard, first, stop in _pieces(starts, start, start + block):
            wanted = (stop - first) * size
            position = offsets[shard] + first * size
            while wanted:
                got = os.preadv(descriptors[shard], [raw[at : at + wanted]], position)
                at, position, wanted = at + got, position + got, wanted - got

    return read


def _rate(reader: Callable[[int], Any], starts: range, block: int, seconds: float) -> float:
    done = 0
    begun = time.perf_counter()
    while True:
        for start in starts:
            reader(start)
            done += block
            elapsed = time.perf_counter() - begun
            if elapsed >= seconds:
                return done / elapsed


def bench_text(found: dict[str, Any]) -> str:
    """`bench` for a person."""
    rows = [("reader", "samples/s", "MiB/s", "of plain")]
    for name, entry in found["readers"].items():
        share = entry["of_plain"]
        rows.append(
            (
                name,
                f"{entry['samples_per_s']:,.0f}",
                f"{entry['mib_per_s']:,.0f}",
                f"{share:.2f}" if share is not None else "not measured",
            )
        )
    title = (
        f"{found['shards']} ({found['split']}): {found['column']}, blocks of {found['block']} in order, "
        f"warm file cache, measured"
    )
    text = f"{title}\n{table(rows)}"
    if found.get("data_supply_ratio") is not None:
        text += (
            f"\ndata supply ratio {found['data_supply_ratio']:.2f}: one reading thread gives that many times the "
            f"{found['need_samples_per_s']:,.0f} samples/s needed"
        )
    return text
