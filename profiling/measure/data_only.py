"""Reading without training: what the data supply of a run would give if nothing else took time ("data only" of an io study)."""

from __future__ import annotations

import math
import multiprocessing
import platform
import queue as queues
import shlex
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from frontier.errors import UserError
from frontier_profiling.measure.timed import timed
from frontier_profiling.rows import Row

WARM_UP_WINDOWS = 1


def data_only_row(
    shards: str | Path,
    micro_batch: int,
    ranks: int = 1,
    *,
    windows: int = 8,
    workers: int = 1,
    split: str = "train",
    column: str = "image",
    seed: int = 0,
    timeout_s: float = 600.0,
    **facts: Any,
) -> Row:
    """Read batches of `micro_batch` samples a rank with the trainer's own loader and sampler, on `ranks` processes of this machine at
    once.

    Blocks are read a window of batches at a time, so a window is what is timed: a step's time is the slowest rank's window over
    its batches; the first window is dropped, `windows` are counted. The file system's cache is left as it is. `facts` as in
    `measured_row`.

    Raises UserError for shards that cannot be read or do not suit, and where a reading process dies or exceeds `timeout_s`.
    """
    from frontier.data.sampler import Sampler
    from frontier.data.shards import ShardSet

    if min(micro_batch, ranks, windows) < 1 or workers < 0:
        raise UserError("data only: micro_batch, ranks and windows must be at least 1, workers at least 0")
    images = ShardSet(shards, split)
    shape, dtype = images.describe(column)
    sample_bytes = int(np.prod(shape)) * dtype.itemsize
    sampler = Sampler.plan(len(images), micro_batch * ranks, seed, sample_bytes, None, None)
    sampler.check_ranks(ranks)
    seconds = _read_on_all(str(shards), split, column, sampler, ranks, windows, workers, timeout_s)
    step = timed(seconds[:, WARM_UP_WINDOWS:].max(axis=0))
    assert step is not None
    row = Row(
        source="measured",
        model="",
        system="local",
        strategy="",
        nodes=1,
        devices=ranks,
        micro_batch=micro_batch,
        workload="",
        engine="",
        image_size=shape[-1],
        global_batch=micro_batch * ranks,
        precision="",
        activation_checkpointing="",
        data="only",
        step_s=step.median,
        step_s_low=step.p10,
        step_s_high=step.p90,
        step_ci95_s=step.ci95,
        steps_timed=step.count * sampler.window,
        step_parts_s={"data": step.median},
        images_per_s=micro_batch * ranks / step.median,
        limit="data",
        path=str(shards),
        command=_command(shards, micro_batch, ranks, windows, workers, split, column),
    )
    of_rank = seconds[:, WARM_UP_WINDOWS:].mean(axis=1)
    if ranks > 1:
        row.rank_spread = float(of_rank.max() / np.median(of_rank))
        row.slowest_rank = int(of_rank.argmax())
    row.facts = {
        "device": platform.processor() or platform.machine(),
        "host": socket.gethostname(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "mib_per_s": micro_batch * ranks * sample_bytes / step.median / 2**20,
        "workers": workers,
        "batches_a_window": sampler.window,
        "cache": "left as it was",
    }
    row.notes = [
        f"median of {step.count} windows of {sampler.window} batches, the slowest rank's, after {WARM_UP_WINDOWS} that warms up"
    ]
    for key, value in facts.items():
        if hasattr(row, key) and key not in ("facts", "notes"):
            setattr(row, key, value)
        elif key not in ("facts", "notes"):
            row.facts[key] = value
    row.facts |= facts.get("facts", {})
    row.notes += facts.get("notes", [])
    return row


def _command(
    shards: str | Path, micro_batch: int, ranks: int, windows: int, workers: int, split: str, column: str
) -> str:
    call = (
        f"data_only_row({str(shards)!r}, {micro_batch}, {ranks}, windows={windows}, workers={workers}, "
        f"split={split!r}, column={column!r})"
    )
    code = f"from frontier_profiling.measure.data_only import data_only_row; print({call}.images_per_s)"
    return f"python -c {shlex.quote(code)}"


def _read_on_all(
    shards: str, split: str, column: str, sampler: Any, ranks: int, windows: int, workers: int, timeout_s: float
) -> np.ndarray:
    """[ranks, 1 + windows] seconds of a batch, by window."""
    context = multiprocessing.get_context("spawn")
    results, barrier = context.Queue(), context.Barrier(ranks)
    count = WARM_UP_WINDOWS + windows
    common = shards, split, column, sampler, ranks, count, workers, barrier, results, timeout_s
    processes = [context.Process(target=_read, args=(rank, *common), daemon=True) for rank in range(ranks)]
    for process in processes:
        process.start()
    table = np.full((ranks, count), math.nan)
    until = time.monotonic() + timeout_s
    try:
        for _ in range(ranks):
            rank, values = _next(results, processes, until, timeout_s)
            if isinstance(values, str):
                raise UserError(f"data only, rank {rank}: {values}")
            table[rank] = values
    finally:
        for process in processes:
            if process.is_alive():
                process.join(5)
            if process.is_alive():
                process.terminate()
    return table


def _next(results: Any, processes: list[Any], until: float, timeout_s: float) -> Any:
    while True:
        try:
            return results.get(timeout=1.0)
        except queues.Empty:
            dead = [rank for rank, process in enumerate(processes) if process.exitcode not in (None, 0)]
            if dead:
                code = processes[dead[0]].exitcode
                raise UserError(
                    f"data only: the process of rank {dead[0]} ended with {code}: see its message above"
                ) from None
            if time.monotonic() > until:
                raise UserError(
                    f"data only: not done within {timeout_s:g} s: read fewer windows or give more time"
                ) from None


def _read(
    rank: int,
    shards: str,
    split: str,
    column: str,
    sampler: Any,
    ranks: int,
    count: int,
    workers: int,
    barrier: Any,
    results: Any,
    timeout_s: float,
) -> None:
    """What a process of its own does: seconds a batch of each window."""
    from frontier.data.loader import Loader
    from frontier.data.shards import ShardSet

    try:
        loader = Loader(ShardSet(shards, split, check=False), column, sampler, rank, ranks, workers)
        barrier.wait(timeout_s)
        batches = loader.batches(0)
        seconds = []
        begun = time.perf_counter()
        for _ in range(count):
            for _ in range(sampler.window):
                next(batches)
            now = time.perf_counter()
            seconds.append((now - begun) / sampler.window)
            begun = now
        batches.close()  # type: ignore[attr-defined]
        loader.close()
        results.put((rank, seconds))
    except UserError as error:
        results.put((rank, str(error)))
