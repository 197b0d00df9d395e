"""Who am I: rank, world and node, from whichever launcher started this process."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from frontier.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """The place of this process in the job. `source` names the launcher it was read from."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    source: str
    node_count: int | None = None
    """Where the launcher tells it; nodes may have unequal numbers of ranks."""

    @property
    def nodes(self) -> int:
        return self.node_count or max(1, self.world_size // max(1, self.local_world_size))

    @property
    def is_main(self) -> bool:
        return self.rank == 0


_LAUNCHERS: tuple[tuple[str, tuple[str, str, str, str]], ...] = (
    ("torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")),
    # SLURM_STEP_NUM_TASKS exists only inside an srun step; SLURM_NTASKS is set in the batch shell as well.
    ("slurm", ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")),
    ("pals", ("PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE")),
    (
        "openmpi",
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    ("mpich", ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")),
)


def tasks_of_nodes(text: str) -> list[int]:
    """Tasks of every node of a step, from Slurm's short form: `8(x2),4` -> [8, 8, 4]."""
    found = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(part[1]) for part in found if part for _ in range(int(part[2] or 1))]


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise UserError(
            f"environment variable {name}={env[name]!r} is not a number: unset it or set it right"
        ) from None


def discover(env: Mapping[str, str] | None = None) -> Ranks:
    """Read the launcher's variables, in the order torchrun -> Slurm step -> PALS -> Open MPI -> MPICH -> alone.

    Raises:
        UserError: where a launcher's variables contradict each other.
    """
    env = os.environ if env is None else env
    for source, (rank, world, local_rank, local_world) in _LAUNCHERS:
        if rank not in env or world not in env:
            continue
        r, w = _number(env, rank), _number(env, world)
        per_node = tasks_of_nodes(env.get(local_world, "")) if source == "slurm" else []
        if per_node:
            node = _number(env, "SLURM_NODEID") if "SLURM_NODEID" in env else 0
            local_size = per_node[node] if node < len(per_node) else per_node[0]
        else:
            local_size = _number(env, local_world) if local_world in env else w
        local = _number(env, local_rank) if local_rank in env else r % local_size
        if not (0 <= r < w and 0 <= local < local_size):
            raise UserError(
                f"{rank}={r}, {world}={w}, {local_rank}={local} contradict each other: start the ranks anew"
            )
        return Ranks(r, w, local, local_size, source, len(per_node) or None)
    return Ranks(0, 1, 0, 1, "alone")


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: `frontier[00012-14,18],x` -> `frontier00012`."""
    head, bracket, rest = nodelist.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


def rendezvous(ranks: Ranks, env: Mapping[str, str] | None = None) -> tuple[str, int]:
    """(address, port) where rank 0 listens. MASTER_ADDR and MASTER_PORT win where they are set.

    Without them: the first host of the Slurm step, the loopback address on one node, or MPI's word for it. The port
    follows from the job's id, so that all ranks compute the same one and two jobs of a node rarely meet.
    """
    env = os.environ if env is None else env
    job = next(
        (
            env[k]
            for k in (
                "SLURM_JOB_ID",
                "PALS_APID",
                "PBS_JOBID",
                "PMIX_NAMESPACE",
                "OMPI_MCA_ess_base_jobid",
                "HYDI_CONTROL_FD",
            )
            if k in env
        ),
        "",
    )
    step = env.get("SLURM_STEP_ID", "")
    derived = 20000 + int.from_bytes(hashlib.sha256(f"{job}.{step}".encode()).digest()[:4], "big") % 12000
    port = int(env.get("MASTER_PORT", derived))
    if "MASTER_ADDR" in env:
        return env["MASTER_ADDR"], port
    if ranks.nodes == 1:
        return "127.0.0.1", port
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        if name in env:
            return first_host(env[name]), port
    try:
        from mpi4py import MPI
    except ImportError:
        raise UserError(
            f"{ranks.nodes} nodes under {ranks.source} and no MASTER_ADDR: export MASTER_ADDR=<host of rank 0> or install mpi4py"
        ) from None
    import socket

    return MPI.COMM_WORLD.bcast(socket.gethostname(), root=0), port
