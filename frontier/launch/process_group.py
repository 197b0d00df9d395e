"""The process group, the same under every launcher."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from frontier.errors import TransientError
from frontier.launch.ranks import Ranks, rendezvous

# No gloo for the world where there is an accelerator: it connects every rank with every other.
_BACKENDS = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}


@contextmanager
def process_group(
    ranks: Ranks,
    device: torch.device,
    timeout_s: int,
    store: dist.Store | None = None,
    before: Callable[[dist.Store], None] | None = None,
) -> Iterator[None]:
    """Initialise torch.distributed for the block, also for one rank: every run takes the same path.

    Args:
        store: of ranks that have met already; by default they meet here.
        before: called with the store once all ranks have met there, before any of them needs its device.

    Raises:
        TransientError: the ranks did not find each other in time, or one was lost.
    """
    if device.type == "cuda":
        _record_flight()
    timeout = timedelta(seconds=timeout_s)
    if store is None:
        store = meet(ranks, timeout_s)
    if before is not None:
        with _lost(ranks, timeout_s):
            before(store)
    # Groups made later (those of a mesh, the one that saves) take torch's own 10 or 30 minutes unless told otherwise,
    # and a hung rank would hold the others there for so long.
    usual = distributed_c10d.default_pg_timeout, distributed_c10d.default_pg_nccl_timeout
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = timeout
    try:
        with _lost(ranks, timeout_s):
            dist.init_process_group(
                _BACKENDS[device.type],
                store=store,
                rank=ranks.rank,
                world_size=ranks.world_size,
                timeout=timeout,
                device_id=device if device.type != "cpu" else None,
            )
            yield
    finally:
        distributed_c10d.default_pg_timeout, distributed_c10d.default_pg_nccl_timeout = usual
        if dist.is_initialized():
            dist.destroy_process_group()


def meet(ranks: Ranks, timeout_s: float, wait_for_all: bool = True) -> dist.Store:
    """The store on rank 0.

    Args:
        wait_for_all: rank 0 goes on once all ranks are there; without it at once.

    Raises:
        TransientError: nobody answered there in time.
    """
    address, port = rendezvous(ranks)
    timeout = timedelta(seconds=timeout_s)
    if ranks.world_size == 1 and "MASTER_PORT" not in os.environ:
        return dist.HashStore()
    if address in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # A client that finds nobody waits up to its timeout again before a second try: half of it keeps the bound.
    patience = timeout if ranks.is_main else timeout / 2
    try:
        # Whoever does not wait is not counted: rank 0 would miss it.
        waits = wait_for_all or not ranks.is_main
        store = dist.TCPStore(address, port, ranks.world_size, ranks.is_main, timeout=patience, wait_for_workers=waits)
        store.set_timeout(timeout)
        return store
    except (RuntimeError, dist.DistError) as error:
        raise TransientError(
            f"rank {ranks.rank} of {ranks.world_size} ({ranks.source}) found no other ranks at {address}:{port} "
            f"within {timeout_s:.0f} s: check MASTER_ADDR, MASTER_PORT and that all ranks started ({str(error)[:120]})"
        ) from None


@contextmanager
def _lost(ranks: Ranks, timeout_s: int) -> Iterator[None]:
    """Raises TransientError where the block lost another rank."""
    try:
        yield
    except RuntimeError as error:  # c10d's DistError is one
        if not lost_rank(error):
            raise
        raise TransientError(
            f"rank {ranks.rank} on {socket.gethostname()} lost contact with another rank, which died, hung for "
            f"{timeout_s} s (parallel.timeout_s) or lost its network: its own output says why; start again to go on from the "
            f"newest checkpoint ({str(error).splitlines()[0][:160]})"
        ) from None


def _record_flight() -> None:
    """Let NCCL (RCCL) keep its last collectives and dump them when one times out; what the user has set stays.

    The dumps of all ranks go to node-local storage, not to the run folder: a file a rank would be a storm on a shared one.
    """
    where = os.path.join(tempfile.gettempdir(), f"frontier_flight_{os.environ.get('SLURM_JOB_ID', os.getpid())}_rank_")
    for names, value in (
        (("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"), "2000"),
        (("TORCH_NCCL_DUMP_ON_TIMEOUT",), "1"),
        (("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"), where),
    ):
        if not any(name in os.environ for name in names):
            os.environ.update(dict.fromkeys(names, value))


def lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone, as far as the backends' words tell."""
    text = str(error).lower()
    signs = ("connection closed by peer", "connection reset by peer", "timed out", "timeout", "remote process exited")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)
