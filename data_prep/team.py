"""Several ranks writing one set of shards: rank 0 decides, every rank writes its own shards, rank 0 concludes.

Under `mpiexec` or `srun` the ranks talk through mpi4py; alone there is nothing to say. Shards are dealt out by
number, one writer each, so no parallel HDF5 is needed and the bytes are those of a single process. What rank 0 must
look at before it can decide (every file of an archive) it shares out with `map`: the others serve it while they wait.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

from frontier.errors import UserError
from frontier.launch.ranks import discover

Item = TypeVar("Item")
Value = TypeVar("Value")

_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
_IN_PROCESS = 2000
"""Items below which starting worker processes costs more than it saves."""


class Team:
    """The ranks of this job. `Team()` is one process alone; `Team(comm)` wraps an mpi4py communicator."""

    def __init__(self, comm: Any = None) -> None:
        self._comm = comm
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()

    def __reduce__(self) -> tuple[type[Team], tuple[()]]:
        # A communicator belongs to its process: what travels to a worker or another rank works alone.
        return Team, ()

    def lead(self, work: Callable[[], Value]) -> Value:
        """What `work` returns on rank 0, on every rank; a `UserError` of rank 0 is raised on every rank.

        While rank 0 works, the others take their part in its calls of `map`.
        """
        if self._comm is None:
            return work()
        if self.rank == 0:
            value, error = self._guarded(work)
            self._comm.bcast(("done", (value, error)))
        else:
            value, error = self._serve()
        if error is not None:
            raise error
        return cast(Value, value)

    def _serve(self) -> tuple[Any, UserError | None]:
        while True:
            word, content = self._comm.bcast(None)
            if word == "done":
                return content
            function, items, *how = content
            self._comm.gather(self._guarded(partial(_map, function, items[self.rank :: self.size], *how)))

    def map(
        self, function: Callable[[Item], Value], items: Sequence[Item], workers: int = 1, costly: bool = False
    ) -> list[Value]:
        """[function(item) …] in order, by all ranks and `workers` processes on each.

        To be called by rank 0 inside `lead`, or by a process alone. `function` and `items` are picklable. `costly`: an
        item takes seconds (a shard), not milliseconds (a file), so that few are worth worker processes. The first rank's
        `UserError` is raised.
        """
        items = list(items)
        if self._comm is None:
            return _map(function, items, workers, costly)
        self._comm.bcast(("map", (function, items, workers, costly)))
        mine = self._guarded(partial(_map, function, items[:: self.size], workers, costly))
        outcomes = self._comm.gather(mine)
        out: list[Any] = [None] * len(items)
        for rank, (values, error) in enumerate(outcomes):
            if error is not None:
                raise error
            out[rank :: self.size] = values
        return out

    def collect(self, work: Callable[[], list[Value]]) -> list[Value]:
        """The lists that `work` returns on every rank, joined in rank order; the first rank's `UserError` is raised."""
        if self._comm is None:
            return work()
        outcomes = self._comm.allgather(self._guarded(work))
        for _, error in outcomes:
            if error is not None:
                raise error
        return [value for values, _ in outcomes for value in values]

    def _guarded(self, work: Callable[[], Value]) -> tuple[Value | None, UserError | None]:
        try:
            return work(), None
        except UserError as error:
            return None, error
        except BaseException:
            # The other ranks wait in a collective: they must not wait for ever.
            traceback.print_exc()
            sys.stderr.flush()
            self._comm.Abort(1)
            raise


def _map(function: Callable[[Item], Value], items: Sequence[Item], workers: int, costly: bool) -> list[Value]:
    workers = min(workers, len(items))
    if workers <= 1 or (len(items) < _IN_PROCESS and not costly):
        return [function(item) for item in items]
    # Not fork: the parent may hold HDF5, threads or MPI.
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=leave_with_parent, initargs=(os.getpid(),)
    ) as pool:
        return list(pool.map(function, items, chunksize=1 if costly else 256))


def leave_with_parent(parent: int) -> None:
    """Have the kernel end this worker process together with `parent`: one killed by -9 cannot stop its pool.

    At once, so that a second call does not meet writers of the first.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def assemble() -> Team:
    """The team that the launcher started. Raises `UserError` for several ranks without mpi4py."""
    ranks = discover()
    if ranks.world_size == 1:
        return Team()
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(
            f"started on {ranks.world_size} ranks ({ranks.source}), but mpi4py cannot be loaded ({error}): install "
            "the extra 'mpi', or start one process and use --workers"
        ) from None
    found = MPI.COMM_WORLD.Get_size()
    if found != ranks.world_size:
        raise UserError(
            f"{ranks.source} started {ranks.world_size} ranks, but mpi4py sees {found}: build mpi4py against the MPI "
            "of the launcher" + (", or export SLURM_MPI_TYPE (`srun --mpi=list`)" if ranks.source == "slurm" else "")
        )
    return Team(MPI.COMM_WORLD)
