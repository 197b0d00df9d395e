"""How fast shuffled batches are read: our loader against plain reads, simple ways, and other libraries, in one run.

    python benchmarks/data_reading.py --output benchmarks/results/data_reading.md
    python benchmarks/data_reading.py --layouts          # HDF5 layouts instead of other libraries

Peers: requirements-bench.txt; one that is not installed is a row "not measured". All formats hold the same decoded bytes and every
reader gives batches of the same size; all but the plain ones in shuffled order. The readers take turns; the median of the turns counts.
A turn begins with a fresh iterator: what a reader prepares for its first batch is in its time, except for those with
processes of their own, whose start and first batch are not. Warm: the files were read before. Cold: their pages are dropped
from the cache before each turn (fsync, posix_fadvise) and mincore must find none; the disk's own caches stay as they are.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import platform
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import data_readers as readers  # noqa: E402
import data_sets as sets  # noqa: E402

import frontier.data.hdf5 as shard_hdf5  # noqa: E402
from frontier.data.shards import ShardSet  # noqa: E402
from frontier.train.metrics import device_name  # noqa: E402

LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunks of 1": {"chunks": 1},
    "chunks of 16": {"chunks": 16},
    "gzip 1": {"chunks": 1, "compression": "gzip", "compression_opts": 1},
    "gzip 1, shuffle, fletcher32": {
        "chunks": 1, "compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True,
    },
    "lzf, shuffle": {"chunks": 1, "compression": "lzf", "shuffle": True},
    "hdf5plugin Zstd": {"chunks": 1, "plugin": "Zstd"},
    "hdf5plugin Bitshuffle (lz4)": {"chunks": 1, "plugin": "Bitshuffle"},
    "hdf5plugin Blosc2 (lz4)": {"chunks": 1, "plugin": "Blosc2"},
}  # fmt: skip


def options() -> argparse.Namespace:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with eurosat_rgb and s2_l2a_12band"
    )
    out.add_argument(
        "--work", type=Path, default=Path("/tmp/frontier-data-reading"), help="where the formats are written"
    )
    out.add_argument("--eurosat", type=int, default=20480, metavar="N", help="RGB images of 64 px")
    out.add_argument("--sentinel", type=int, default=12288, metavar="N", help="chips of 64 px, 12 bands, uint16")
    out.add_argument("--batch", type=int, default=256, help="RGB images of a batch; chips: as many bytes")
    out.add_argument("--rounds", type=int, default=5)
    out.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    out.add_argument("--no-cold", action="store_true")
    out.add_argument("--layouts", action="store_true")
    out.add_argument("--output", type=Path)
    return out.parse_args()


def turn(reader: readers.Reader, seconds: float, most: int | None = None) -> float:
    """samples/s of one turn, of `seconds` or `most` samples."""
    start = reader.cold if most and reader.cold else reader.start
    assert start is not None
    batches = start()
    done = 0
    if reader.processes:
        next(batches)
    begun = time.perf_counter()
    while True:
        done += len(next(batches))
        elapsed = time.perf_counter() - begun
        if elapsed >= seconds or (most and done >= most):
            close = getattr(batches, "close", None)
            if close is not None:
                close()
            return done / elapsed


def drop(folder: Path) -> float:
    """Drop a folder's pages from the cache; the share of (up to 200 of) its files' pages that stayed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    libc, resident, pages = ctypes.CDLL(None, use_errno=True), 0, 0
    for path in files[:: max(1, len(files) // 200)]:
        size = path.stat().st_size
        if not size:
            continue
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
            count = -(-size // mmap.PAGESIZE)
            found = (ctypes.c_ubyte * count)()
            held = ctypes.c_char.from_buffer(view)
            address = ctypes.c_void_p(ctypes.addressof(held))
            if libc.mincore(address, ctypes.c_size_t(size), found):
                raise OSError(ctypes.get_errno(), "mincore")
            del held
            resident += int(np.frombuffer(found, np.uint8).astype(bool).sum())
            pages += count
    return resident / max(1, pages)


def check(reader: readers.Reader, known: set[bytes], other_bytes: bool) -> None:
    """Stop where a batch is not of the set's samples."""
    assert reader.start is not None
    batches = reader.start()
    batch = np.asarray(next(batches))
    if not other_bytes and not {row.tobytes() for row in batch} <= known:
        raise SystemExit(f"{reader.name} gives other bytes than were written")
    close = getattr(batches, "close", None)
    if close is not None:
        close()


def measure(found: list[readers.Reader], args: argparse.Namespace, count: int, cold: bool) -> dict[str, list[float]]:
    """samples/s by reader and turn. Cold: none for a reader whose pages would not leave the cache, which its row then says."""
    rates: dict[str, list[float]] = {reader.name: [] for reader in found}
    for round_number in range(args.rounds + (0 if cold else 1)):
        order = found[round_number % len(found) :] + found[: round_number % len(found)]
        for reader in order:
            if reader.start is None or reader.folder is None:
                continue
            stayed = drop(reader.folder) if cold else 0.0
            if stayed > 0.01:
                reader.why = f"{100 * stayed:.0f} % of its pages stayed in the cache"
                continue
            rate = turn(
                reader, args.seconds, count * 3 // 4 if cold else None
            )  # a second pass would find the cache warm
            if cold or round_number:  # the first round warms the cache
                rates[reader.name].append(rate)
    return rates


def table(found: list[readers.Reader], rates: dict[str, list[float]], size: int, limit: str) -> list[str]:
    lines = ["| reader | samples/s | MiB/s | of the limit | turns, samples/s |", "|---|---:|---:|---:|---|"]
    base = statistics.median(rates[limit]) if rates[limit] else float("nan")
    for reader in found:
        values = rates[reader.name]
        if not values:
            lines.append(f"| {reader.name} | not measured | | | {reader.why} |")
            continue
        rate = statistics.median(values)
        lines.append(
            f"| {reader.name} | {rate:,.0f} | {rate * size / 2**20:,.0f} | {rate / base:.2f} | {min(values):,.0f} to {max(values):,.0f} |"
        )
    return lines


def layout_readers(work: Path, values: np.ndarray, batch: int) -> list[readers.Reader]:
    """Our loader over every layout with 1 and 2 threads; for layouts that it reads directly, also through h5py."""
    found = []
    for name, layout in LAYOUTS.items():
        how = dict(layout)
        folder = work / "layouts" / "".join(c if c.isalnum() else "_" for c in name)
        try:
            if "plugin" in how:
                import hdf5plugin

                how |= getattr(hdf5plugin, how.pop("plugin"))()
            sets.once(folder, lambda f, how=how: sets.write_shards(f, values, **how))
        except ImportError as error:
            found.append(readers.Reader(name, None, None, why=f"not installed: {error.name}"))
            continue
        mib = sum(file.stat().st_size for file in folder.glob("*.h5")) / 2**20
        simple = set(layout) <= {"chunks", "compression", "compression_opts", "shuffle", "fletcher32"}
        both = bool(layout) and simple and layout.get("compression") != "lzf"
        for through_h5py in (False, True) if both else (False,):
            for threads in (1, 2):
                direct = shard_hdf5.find_chunks
                if through_h5py:
                    shard_hdf5.find_chunks = lambda dataset: None
                start = readers.ours(ShardSet(folder), batch, threads, window=4)
                batches = start()  # the way is chosen when a shard is first read: read them all
                for _ in range(2 * len(values) // batch):
                    next(batches)
                batches.close()
                shard_hdf5.find_chunks = direct
                title = f"{name}, {mib:,.0f} MiB, {threads} thread{'s' * (threads > 1)}"
                found.append(readers.Reader(title + (", through h5py" if through_h5py else ""), start, folder))
    return found


def versions() -> str:
    out = []
    for name in ("numpy", "h5py", "torch", "webdataset", "litdata", "mosaicml-streaming", "hdf5plugin"):
        try:
            out.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            out.append(f"{name} not installed")
    return ", ".join(out)


def main() -> None:
    args = options()
    cpu = device_name(__import__("torch").device("cpu"))
    lines = [
        "# Reading shuffled batches" + (": HDF5 layouts" if args.layouts else ""),
        "",
        f"Measured by `python benchmarks/data_reading.py{' --layouts' if args.layouts else ''}` on {cpu}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}, load average {os.getloadavg()[0]:.1f} before the start. {versions()}. "
        f"{args.rounds} turns of {args.seconds:g} s each in rotation, medians.",
    ]
    for name, make, count in (("eurosat", sets.eurosat, args.eurosat), ("sentinel", sets.sentinel, args.sentinel)):
        count = min(count, 4096 if name == "eurosat" else 2048) if args.layouts else count
        work = args.work / f"{name}_{count}"
        values, what = make(args.data, count)
        size = values[0].nbytes
        title = f"{what}: {count:,} samples of {'x'.join(map(str, values.shape[1:]))} {values.dtype}, {values.nbytes / 2**20:,.0f} MiB, batches of {max(1, args.batch * 12288 // size)}"
        print(f"preparing {title}", file=sys.stderr, flush=True)
        batch = max(1, args.batch * 12288 // size)
        found = (layout_readers if args.layouts else readers.all_readers)(work, values, batch)
        known = {row.tobytes() for row in values}
        for reader in found:
            if reader.start is not None:
                print(f"  {reader.name}", file=sys.stderr, flush=True)
                check(reader, known, "other bytes" in reader.name)
        del known, values
        rates = measure(found, args, count, cold=False)
        limit = found[0].name
        lines += ["", f"## {title}, warm cache", "", *table(found, rates, size, limit)]
        if args.layouts or args.no_cold:
            continue
        for reader in found:
            if reader.close is not None:
                reader.close()
        cold = measure(found, args, count, cold=True)
        lines += ["", f"## {title}, cold cache", ""]
        if cold[limit]:
            slower = statistics.median(rates[limit]) / statistics.median(cold[limit])
            lines += [f"Plain reads are {slower:.1f} times slower than warm.", "", *table(found, cold, size, limit)]
        else:
            lines.append(f"Not possible here: {found[0].why}.")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)


if __name__ == "__main__":
    main()
