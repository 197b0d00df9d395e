"""How fast shards are written, against plain writes of the same bytes by as many processes, in one run.

    python benchmarks/shard_writing.py [--mib 512] [--ranks 1 2 4] [--output FILE.md]

`plain`: each process writes its part with 8 MiB writes and one fsync. `shards`: `data_prep.writer.write` under mpiexec
on a source that costs next to nothing (samples cut from a buffer), so that what remains is the writer: HDF5, statistics,
checksums, fsync, reading back, sha256. Both take turns; medians of the rounds count. `stages` is one process's CPU
seconds a GiB, by a profiler in a run of its own.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from data_prep.plan import PlanOptions
from data_prep.source import Band, ImageColumn, Listing, Source
from data_prep.team import assemble
from data_prep.writer import write

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"rgb 64 uint8": ((3, 64, 64), "uint8"), "12 bands 64 uint16": ((12, 64, 64), "uint16")}
ROUNDS = 3
STAGES = {
    "statistics": ("column_statistics",),
    "checksums": ("sample_checksums",),
    "HDF5": ("__setitem__",),
    "sha256": ("file_sha256",),
    "fsync": ("<built-in method posix.fsync>",),
    "source": ("load",),
}


class Buffer(Source):
    """Samples cut from 32 MiB of noise."""

    def __init__(self, kind: str, mib: int) -> None:
        shape, dtype = KINDS[kind]
        self.name = "buffer"
        self.images = {"image": ImageColumn(shape, dtype, tuple(Band(f"b{k}") for k in range(shape[0])))}
        self.kept = (32 << 20) // self.sample_bytes
        self.count = (mib << 20) // self.sample_bytes
        top = 255 if dtype == "uint8" else 10_000
        noise = np.random.default_rng(0).normal(top / 3, top / 10, (self.kept, *shape))
        self.values = noise.clip(0, top).astype(dtype)

    def describe(self) -> dict[str, Any]:
        return {"kind": "buffer", "count": self.count}

    def listing(self) -> Listing:
        ids = [b"%08d" % k for k in range(self.count)]
        return Listing(ids, np.full(self.count, -1, np.int32), ids, [""] * self.count)

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        return {"image": self.values[np.asarray(rows) % self.kept]}


def plain(folder: Path, mib: int, processes: int) -> float:
    """MiB/s of plain writes, fsync included."""
    code = (
        "import os, sys, time\nd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\npiece = os.urandom(8 << 20)\n"
        "for _ in range(int(sys.argv[2]) // 8): os.write(d, piece)\nos.fsync(d)"
    )
    begun = time.perf_counter()
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(folder / f"plain-{k}"), str(mib // processes)])
        for k in range(processes)
    ]
    for process in running:
        process.wait()
    seconds = time.perf_counter() - begun
    for k in range(processes):
        (folder / f"plain-{k}").unlink()
    return mib / seconds


def shards(folder: Path, kind: str, mib: int, ranks: int) -> float:
    """MiB/s of the writer on `ranks` ranks, by its own clock: start-up of Python and MPI left out."""
    launcher = str(Path(sys.executable).with_name("mpiexec"))
    if not Path(launcher).exists():
        launcher = shutil.which("mpiexec") or ""
    words = [sys.executable, __file__, "--worker", kind, "--mib", str(mib), str(folder / "shards")]
    if ranks > 1 and not launcher:
        return float("nan")
    done = subprocess.run(
        [*([launcher, "-n", str(ranks)] if ranks > 1 else []), *words],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    shutil.rmtree(folder / "shards")
    return mib / float(done.stdout)


def worker(kind: str, mib: int, out: str) -> None:
    """One rank of `shards`."""
    team = assemble()
    options = PlanOptions(shard_bytes=64 << 20)
    done = write(Buffer(kind, mib), out, options, team=team)
    if team.rank == 0:
        print(done.seconds)


def stages(folder: Path, kind: str, mib: int) -> dict[str, float]:
    """Seconds a GiB of one process, by stage."""
    profile = cProfile.Profile()
    source = Buffer(kind, mib)
    begun = time.perf_counter()
    profile.runcall(write, source, folder / "profiled", PlanOptions(shard_bytes=64 << 20))
    whole = time.perf_counter() - begun
    shutil.rmtree(folder / "profiled")
    out = {}
    for name, functions in STAGES.items():
        rows = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
        out[name] = sum(row[3] for (_, _, function), row in rows if function in functions) * 1024 / mib
    out["other"] = whole * 1024 / mib - sum(out.values())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--folder", type=Path, help="disk to write to (default: the temporary directory)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("out", nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.mib, arguments.out)
        return
    rows = [("samples", "ranks", "plain MiB/s", "shards MiB/s", "shards / plain")]
    cost = [("samples", *STAGES, "other")]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        for kind in KINDS:
            for ranks in arguments.ranks:
                found = [
                    (plain(folder, arguments.mib, ranks), shards(folder, kind, arguments.mib, ranks))
                    for _ in range(ROUNDS)
                ]
                one, other = median(p for p, _ in found), median(s for _, s in found)
                rows.append((kind, str(ranks), f"{one:,.0f}", f"{other:,.0f}", f"{other / one:.2f}"))
            cost.append((kind, *(f"{seconds:.2f}" for seconds in stages(folder, kind, arguments.mib).values())))
    text = (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, {arguments.mib} MiB, "
        f"shards of 64 MiB, medians of {ROUNDS} rounds, measured\n\n{markdown(rows)}\n\n"
        f"Seconds a GiB of one process, by stage (profiled)\n\n{markdown(cost)}\n"
    )
    print(text)
    if arguments.output:
        arguments.output.write_text("# Writing shards\n\n`python benchmarks/shard_writing.py`\n\n" + text)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    main()
