"""Batches of a rank, read by background threads ahead of the step, one copy a sample, the interpreter's lock released.

Where a window's data are not in the file system's cache, its blocks are read whole and in order, a window ahead of the step, and their
samples strewn over its batches, each straight to its place. Where they are in the cache and lie there as they are wanted
(contiguous, not compressed), there is nothing to read in large pieces, and each batch is gathered from the memory map when its turn is
near: little memory, which stays in the processor's caches. Both give the same batches, whose rows stand in the order of the
shards, so that what a batch has of one shard is one piece. Memory is used again once nobody holds a batch in it, for fresh memory costs a
page fault every 4 KiB.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

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


def window_members(sampler: Sampler, blocks: Blocks) -> np.ndarray:
    """[window, local_batch, 2] int64 (epoch, sample): what a rank's window holds, batch after batch, in the sampler's order."""
    count = len(blocks.starts)
    shares = blocks.members.reshape(count, sampler.window, sampler.per_block, 2)
    return shares.transpose(1, 0, 2, 3).reshape(sampler.window, count * sampler.per_block, 2)


def batch_members(sampler: Sampler, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """`window_members` with the rows of a batch in the order of the shards.

    Returns (members [window, local_batch, 2] int64, order [window, local_batch]: the row's place in the sampler's order).
    """
    members = window_members(sampler, blocks)
    width = members.shape[1]
    # No two keys are equal, so any method of sorting gives the same order.
    order = np.argsort(members[..., 1] * width + np.arange(width), axis=1)
    return np.take_along_axis(members, order[..., None], 1), order


def block_rows(sampler: Sampler, blocks: Blocks, order: np.ndarray) -> np.ndarray:
    """[blocks, B] the row of the window, batch after batch, that each sample of a block, as stored, goes to."""
    count, local_batch = len(blocks.starts), order.shape[1]
    rows = np.empty_like(order)
    np.put_along_axis(rows, order, np.broadcast_to(np.arange(local_batch), order.shape), 1)
    rows += np.arange(sampler.window)[:, None] * local_batch
    by_block = rows.reshape(sampler.window, count, sampler.per_block).transpose(1, 0, 2).reshape(count, sampler.block)
    as_stored = np.empty_like(by_block)
    np.put_along_axis(as_stored, blocks.orders, by_block, 1)
    return as_stored


class _Job:
    """Work that a reader thread does, or whoever needs it done before one has begun."""

    def __init__(self, pool: ThreadPoolExecutor | None, work: Callable[..., None], *args: Any) -> None:
        self.work, self.args = work, args
        self.future: Future[None] = pool.submit(work, *args) if pool is not None else Future()
        self.helped = False

    def finish(self) -> None:
        """Have it done, here or by the thread that has begun. Raises what the work raises."""
        if not self.help() and not self.helped:
            self.future.result()

    def help(self) -> bool:
        """Do it here, unless somebody has begun; whether this call did it."""
        if self.helped or not self.future.cancel():
            return False
        self.work(*self.args)
        self.helped = True
        return True

    def late(self) -> bool:
        """Whether a thread is at it."""
        return self.future.running()

    def leave(self) -> None:
        """Have it not done, or wait for its end."""
        if not self.future.cancel():
            wait([self.future])


class _Memory:
    """Room for one batch or the batches of a window, by column [rows, *shape], and who still looks at it."""

    def __init__(self, columns: dict[str, tuple[tuple[int, ...], np.dtype]], rows: int) -> None:
        self.rows = rows
        self.columns = {name: np.empty((rows, *shape), dtype) for name, (shape, dtype) in columns.items()}
        self.lent: list[weakref.ref[np.ndarray]] = []
        self.claimed = False  # by a window for batches that are not handed out yet

    def lend(self, part: slice) -> dict[str, torch.Tensor]:
        """The rows `part` as tensors. They share the memory, which stays lent while any of them, or a view, lives."""
        views = {name: array[part] for name, array in self.columns.items()}
        self.lent += [weakref.ref(view) for view in views.values()]
        return {name: torch.from_numpy(view) for name, view in views.items()}

    def free(self) -> bool:
        self.lent = [reference for reference in self.lent if reference() is not None]
        return not self.lent and not self.claimed


@dataclass(frozen=True)
class _Plan:
    """What a window is made of, and whether its blocks lie in the cache as they are wanted."""

    blocks: Blocks
    members: np.ndarray
    order: np.ndarray
    in_cache: bool


class _Strewn:
    """A window whose blocks are read whole, into memory for all its batches."""

    def __init__(self, loader: Loader, plan: _Plan) -> None:
        sampler, blocks, count = loader.sampler, plan.blocks, len(plan.blocks.starts)
        self.loader, self.memory = loader, loader.claim(sampler.window * loader.local_batch)
        self.members = plan.members
        rows = block_rows(sampler, blocks, plan.order)
        in_file_order = np.argsort(blocks.starts, kind="stable")
        starts, rows = blocks.starts[in_file_order].tolist(), rows[in_file_order]
        size = min(JOB_BYTES // max(1, sampler.block * loader.sample_bytes), -(-count // max(1, loader.workers)))
        self.jobs: list[_Job] = []
        for first in range(0, count, max(1, size)):
            part = slice(first, first + max(1, size))
            self.jobs.append(loader.job(loader.read, self.memory.columns, starts[part], rows[part]))

    def reach(self, turn: int) -> None:
        """All has been begun."""

    def batch(self, turn: int) -> Batch:
        for job in self.jobs:
            job.finish()
        self.jobs = []
        part = slice(turn * self.loader.local_batch, (turn + 1) * self.loader.local_batch)
        batch = Batch(self.memory.lend(part), torch.from_numpy(self.members[turn]), self.loader.first)
        self.memory.claimed = turn + 1 < self.loader.sampler.window
        return batch

    def leave(self) -> None:
        for job in self.jobs:
            job.leave()
        self.memory.claimed = False


class _Gathered:
    """A window whose batches are gathered one by one from the memory map, in their turn."""

    def __init__(self, loader: Loader, plan: _Plan) -> None:
        self.loader, self.members, self.next = loader, plan.members, 0
        self.begun: dict[int, tuple[_Memory, _Job]] = {}

    def reach(self, turn: int) -> None:
        """Have threads begin all batches up to that of `turn`."""
        for number in range(self.next, min(turn + 1, len(self.members))):
            memory = self.loader.claim(self.loader.local_batch)
            samples = np.ascontiguousarray(self.members[number, :, 1])
            self.begun[number] = memory, self.loader.job(self.loader.gather, memory.columns, samples)
            self.next = number + 1

    def batch(self, turn: int) -> Batch:
        self.next = max(self.next, turn)  # a resumed run begins inside a window
        self.reach(turn)
        memory, job = self.begun.pop(turn)
        if self.loader.helps and job.late():
            any(other.help() for _, other in self.begun.values())
        job.finish()
        batch = Batch(memory.lend(slice(None)), torch.from_numpy(self.members[turn]), self.loader.first)
        memory.claimed = False
        return batch

    def leave(self) -> None:
        for memory, job in self.begun.values():
            job.leave()
            memory.claimed = False


class Loader:
    """Iterates over the batches of one rank from a given step on.

    Memory where blocks are read: a window's batches until its last one, blocks_per_window / ranks x block x bytes of a sample, twice
    while the next window is being read (three times where the caller keeps batches of earlier windows). Where batches are
    gathered: two batches a thread and two more, and those that the caller keeps.
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
        self._depth = 2 * workers + 2 if workers else 0
        self.helps = workers < len(os.sched_getaffinity(0))  # who waits for a batch and has a processor gathers one too
        self._memories: list[_Memory] = []
        self._planned: tuple[int, Future[_Plan]] | None = None
        self._lock = threading.Lock()
        self._samples, self._seconds = 0, 0.0

    def supply(self) -> Supply:
        """What has been read so far, and in how much of the readers' time."""
        with self._lock:
            return Supply(self._samples, self._samples * self.sample_bytes, self._seconds, max(1, self.workers))

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Endless; the caller stops asking. A batch's memory is never written again while somebody holds it."""
        size, step = self.sampler.window, first_step
        current, ahead = self._begin(step // size), None
        try:
            while True:
                turn = step % size
                needed = isinstance(current, _Strewn) or turn + self._depth >= size
                ahead = ahead or self._ahead(step // size + 1, needed)
                batch = current.batch(turn)
                current.reach(turn + self._depth)
                if ahead is not None:
                    ahead.reach(turn + self._depth - size)
                yield batch
                del batch
                step += 1
                if step % size == 0:
                    current, ahead = ahead or self._begin(step // size), None
        finally:
            for left in (current, ahead):
                if left is not None:
                    left.leave()

    def close(self) -> None:
        """End the reader threads; a read that has begun is finished first."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def claim(self, rows: int) -> _Memory:
        """Memory of `rows` samples that nobody looks at; free memory of another size is given back."""
        self._memories = [memory for memory in self._memories if memory.rows == rows or not memory.free()]
        memory = next((memory for memory in self._memories if memory.rows == rows and memory.free()), None)
        if memory is None:
            memory = _Memory(self.columns, rows)
            self._memories.append(memory)
        memory.claimed = True
        return memory

    def job(self, work: Callable[..., None], *args: Any) -> _Job:
        return _Job(self._pool, work, *args)

    def _ahead(self, window: int, needed: bool) -> _Strewn | _Gathered | None:
        """Begin the next window, if there are threads to do so and memory that nobody looks at. `needed`: now, so its plan is waited for."""
        if self._pool is None:
            return None
        if self._planned is None or self._planned[0] != window:
            self._planned = window, self._pool.submit(self._look, window)
        if not needed and not self._planned[1].done():
            return None
        plan = self._planned[1].result()
        if plan.in_cache:
            return _Gathered(self, plan)
        rows = self.sampler.window * self.local_batch
        there = [memory for memory in self._memories if memory.rows == rows]
        return _Strewn(self, plan) if len(there) < 2 or any(memory.free() for memory in there) else None

    def _begin(self, window: int) -> _Strewn | _Gathered:
        known = self._planned is not None and self._planned[0] == window
        plan = self._planned[1].result() if self._planned and known else self._look(window)
        return (_Gathered if plan.in_cache else _Strewn)(self, plan)

    def _look(self, window: int) -> _Plan:
        blocks = self.sampler.window_blocks(window, self.rank, self.ranks)
        ends = np.concatenate([blocks.starts, (blocks.starts + self.sampler.block - 1) % self.sampler.samples])
        in_cache = all(self.shards.in_cache(name, ends) for name in self.columns)
        return _Plan(blocks, *batch_members(self.sampler, blocks), in_cache)

    def read(self, columns: dict[str, np.ndarray], starts: list[int], places: np.ndarray) -> None:
        """Read some blocks to their places; what a reader thread does."""
        begun = time.perf_counter()
        block, samples = self.sampler.block, self.sampler.samples
        for start in starts:
            for name in columns:
                self.shards.advise(name, start, min(start + block, samples))
        for start, into in zip(starts, places, strict=True):
            before_end = min(block, samples - start)  # the rest lies where the circle closes
            for name, out in columns.items():
                self.shards.read(name, start, start + before_end, out, into[:before_end])
                if before_end < block:
                    self.shards.read(name, 0, block - before_end, out, into[before_end:])
        self._count(block * len(starts), begun)

    def gather(self, columns: dict[str, np.ndarray], samples: np.ndarray) -> None:
        """Copy samples, in ascending order, from the map; what a reader thread does."""
        begun = time.perf_counter()
        for name, out in columns.items():
            self.shards.gather(name, samples, out)
        self._count(len(samples), begun)

    def _count(self, samples: int, begun: float) -> None:
        with self._lock:
            self._samples += samples
            self._seconds += time.perf_counter() - begun
