"""Several ranks writing one set of shards: rank 0 decides, every rank writes its own shards, rank 0 concludes.

Under `mpiexec` or `srun` the ranks talk through mpi4py; alone there is nothing to say. Shards are dealt out by
number, one writer each, so no parallel HDF5 is needed and the bytes are those of a single process.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from frontier.errors import UserError
from frontier.launch.ranks import discover

Value = TypeVar("Value")


class Team:
    """The ranks of this job. `Team()` is one process alone; `Team(comm)` wraps an mpi4py communicator."""

    def __init__(self, comm: Any = None) -> None:
        self._comm = comm
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()

    def lead(self, work: Callable[[], Value]) -> Value:
        """What `work` returns on rank 0, on every rank; a `UserError` of rank 0 is raised on every rank."""
        if self._comm is None:
            return work()
        outcome: tuple[Value | None, UserError | None] = (None, None)
        if self.rank == 0:
            outcome = self._guarded(work)
        value, error = self._comm.bcast(outcome)
        if error is not None:
            raise error
        return value

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
            "of the launcher"
        )
    return Team(MPI.COMM_WORLD)
