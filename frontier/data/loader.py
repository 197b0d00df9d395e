"""Batches of a rank: whole blocks read in order by background threads, a window ahead of the step.

A block's samples are strewn over the batches of its window, so each is read straight to its place in its batch: one copy,
by the operating system, with the interpreter's lock released. A window's memory is used again once nobody holds one of its
batches, for fresh memory costs a page fault every 4 KiB.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch

from frontier.data.sampler import Blocks, Sampler
from frontier.data.shards import ShardSet
from frontier.errors import UserError

JOB_BYTES = 8 << 20
"""About what a reader thread takes at once: enough to forget the cost of handing it over, little enough to share out."""


@dataclass(frozen=True)
class Batch:
    """What a rank trains on in one step, on the host.

    Attributes:
        columns: by name [local_batch, *shape] as stored (integers or floats): inputs, masks, targets, scalars.
        members: [local_batch, 2] int64 (epoch, sample).
        first: the column that `images` is.
    """

    columns: dict[str, torch.Tensor]
    members: torch.Tensor
    first: str

    @property
    def images(self) -> torch.Tensor:
        """[local_batch, C, H, W] as stored: the input of families that take one."""
        return self.columns[self.first]


@dataclass(frozen=True)
class Supply:
    """What the reader threads have produced so far: `samples`, their `bytes`, and the threads' `seconds` of work on them."""

    samples: int
    bytes: int
    seconds: float
    threads: int

    @property
    def samples_per_s(self) -> float | None:
        """What the threads give when nobody makes them wait; None before anything was read."""
        return self.samples * self.threads / self.seconds if self.seconds > 0 else None


def places(sampler: Sampler, blocks: int, local_batch: int) -> np.ndarray:
    """[blocks, B] the row of a rank's window, batch after batch, that sample t in the order of its block j goes to."""
    turns, within = np.divmod(np.arange(sampler.block), sampler.per_block)
    return turns * local_batch + within + np.arange(blocks)[:, None] * sampler.per_block


class _Memory:
    """Room for the batches of one window, by column [window * local_batch, *shape], and who still looks at it."""

    def __init__(self, columns: dict[str, tuple[tuple[int, ...], np.dtype]], rows: int) -> None:
        self.columns = {name: np.empty((rows, *shape), dtype) for name, (shape, dtype) in columns.items()}
        self.lent: list[weakref.ref[np.ndarray]] = []
        self.claimed = False  # by a window whose batches are not all handed out

    def lend(self, part: slice) -> dict[str, torch.Tensor]:
        """The rows `part` as tensors. They share the memory, which stays lent while any of them, or a view, lives."""
        views = {name: array[part] for name, array in self.columns.items()}
        self.lent += [weakref.ref(view) for view in views.values()]
        return {name: torch.from_numpy(view) for name, view in views.items()}

    def free(self) -> bool:
        self.lent = [reference for reference in self.lent if reference() is not None]
        return not self.lent and not self.claimed


@dataclass
class _Window:
    """A window that is being read."""

    memory: _Memory
    members: np.ndarray
    jobs: list[Future[None]]


class Loader:
    """Iterates over the batches of one rank from a given step on.

    A window's batches stay in memory until its last one: blocks_per_window / ranks x block x bytes of a sample, twice
    while the next window is being read (three times where the caller keeps batches of earlier windows).
    """

    def __init__(
        self, shards: ShardSet, column: str | Sequence[str], sampler: Sampler, rank: int, ranks: int, workers: int
    ) -> None:
        """`column`: the input, or several columns of any kind, of which the first is `Batch.images`.

        Raises `UserError` where a column is not there or is text.
        """
        sampler.check_ranks(ranks)
        names = (column,) if isinstance(column, str) else tuple(dict.fromkeys(column))
        self.columns = {name: shards.describe(name) for name in names}
        for name, (_, dtype) in self.columns.items():
            if dtype.kind not in "iufb":
                raise UserError(f"shards {shards.path}: column {name!r} is of type {dtype}: a batch holds only numbers")
        self.shards, self.first, self.sampler = shards, names[0], sampler
        self.rank, self.ranks, self.workers = rank, ranks, workers
        self.sample_bytes = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.columns.values())
        self.local_batch = sampler.global_batch // ranks
        self._pool = ThreadPoolExecutor(workers, "shard-reader") if workers else None
        self._memories: list[_Memory] = []
        self._plan: tuple[int, Blocks] | None = None
        self._lock = threading.Lock()
        self._samples, self._seconds = 0, 0.0

    def supply(self) -> Supply:
        """What has been read so far, and in how much of the readers' time."""
        with self._lock:
            return Supply(self._samples, self._samples * self.sample_bytes, self._seconds, max(1, self.workers))

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Endless; the caller stops asking. A batch's memory is never written again while somebody holds it."""
        sampler, step = self.sampler, first_step
        current, ahead = self._start(step // sampler.window), None
        try:
            while True:
                window = step // sampler.window
                ahead = self._ahead(window + 1)
                for job in current.jobs:
                    job.result()
                while step // sampler.window == window:
                    ahead = ahead or self._ahead(window + 1)
                    turn = step % sampler.window
                    part = slice(turn * self.local_batch, (turn + 1) * self.local_batch)
                    yield Batch(current.memory.lend(part), torch.from_numpy(current.members[part]), self.first)
                    step += 1
                current.memory.claimed = False
                current, ahead = ahead or self._start(window + 1), None
        finally:
            for left in (current, ahead):
                if left is not None:
                    wait([job for job in left.jobs if not job.cancel()])
                    left.memory.claimed = False

    def close(self) -> None:
        """End the reader threads; a read that has begun is finished first."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _blocks(self, window: int) -> Blocks:
        if self._plan is None or self._plan[0] != window:
            self._plan = window, self.sampler.window_blocks(window, self.rank, self.ranks)
        return self._plan[1]

    def _ahead(self, window: int) -> _Window | None:
        """Begin to read the next window, if there are threads to do so and memory that nobody looks at."""
        if self._pool is None:
            return None
        self._blocks(window)
        if len(self._memories) < 2 or any(memory.free() for memory in self._memories):
            return self._start(window)
        return None

    def _start(self, window: int) -> _Window:
        blocks = self._blocks(window)
        memory = next((memory for memory in self._memories if memory.free()), None)
        if memory is None:
            memory = _Memory(self.columns, self.sampler.window * self.local_batch)
            self._memories.append(memory)
        memory.claimed = True
        sampler, count = self.sampler, len(blocks.starts)
        rows = places(sampler, count, self.local_batch)
        rows_as_stored = np.empty_like(rows)
        np.put_along_axis(rows_as_stored, blocks.orders, rows, 1)
        members = np.empty((sampler.window * self.local_batch, 2), np.int64)
        members[rows] = blocks.members
        size = min(JOB_BYTES // max(1, sampler.block * self.sample_bytes), -(-count // max(1, self.workers)))
        jobs = []
        for first in range(0, count, max(1, size)):
            part = slice(first, first + max(1, size))
            job = memory.columns, blocks.starts[part].tolist(), rows_as_stored[part]
            if self._pool is None:
                self._read(*job)
            else:
                jobs.append(self._pool.submit(self._read, *job))
        return _Window(memory, members, jobs)

    def _read(self, columns: dict[str, np.ndarray], starts: list[int], places: np.ndarray) -> None:
        """Read some blocks to their places; what a reader thread does."""
        begun = time.perf_counter()
        block, samples = self.sampler.block, self.sampler.samples
        for start, into in zip(starts, places, strict=True):
            before_end = min(block, samples - start)  # the rest lies where the circle closes
            for name, out in columns.items():
                self.shards.read(name, start, start + before_end, out, into[:before_end])
                if before_end < block:
                    self.shards.read(name, 0, block - before_end, out, into[before_end:])
        with self._lock:
            self._samples += block * len(starts)
            self._seconds += time.perf_counter() - begun
