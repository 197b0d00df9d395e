"""Rank discovery from recorded launcher environments, rendezvous, mesh arithmetic, batch division."""

from __future__ import annotations

import pytest

from frontier.errors import UserError
from frontier.launch.mesh import BatchPlan, ParallelDims
from frontier.launch.ranks import discover, first_host, rendezvous

SLURM = {
    "SLURM_PROCID": "11",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_NTASKS": "16",
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "frontier[00012-00013]",
}
CASES = [
    ({}, (0, 1, 0, 1, "alone")),
    ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 8, 1, 2, "torchrun")),
    (SLURM, (11, 16, 3, 8, "slurm")),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}, (0, 1, 0, 1, "alone")),  # the batch shell
    (
        {"PALS_RANKID": "13", "PMI_SIZE": "24", "PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "12", "PMI_RANK": "13"},
        (13, 24, 1, 12, "pals"),
    ),
    (
        {
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
        },
        (1, 4, 1, 4, "openmpi"),
    ),
    ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (1, 2, 1, 2, "mpich")),
    ({"RANK": "1", "WORLD_SIZE": "2", **SLURM}, (1, 2, 1, 2, "torchrun")),
]


@pytest.mark.parametrize(("env", "expected"), CASES, ids=[c[1][-1] + str(i) for i, c in enumerate(CASES)])
def test_discover(env: dict[str, str], expected: tuple) -> None:
    r = discover(env)
    assert (r.rank, r.world_size, r.local_rank, r.local_world_size, r.source) == expected


@pytest.mark.parametrize(
    ("layout", "nodes", "places"),
    [
        ("2,1", 2, [(0, 0, 2), (0, 1, 2), (1, 0, 1)]),  # srun -N2 -n3
        ("1,2", 2, [(0, 0, 1), (1, 0, 2), (1, 1, 2)]),  # srun -m arbitrary
        ("2(x2),1", 3, [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2), (2, 0, 1)]),
    ],
)
def test_nodes_with_unequal_numbers_of_ranks(layout: str, nodes: int, places: list) -> None:
    for rank, (node, local, size) in enumerate(places):
        own = {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(len(places)), "SLURM_NODEID": str(node)}
        found = discover({**SLURM, **own, "SLURM_LOCALID": str(local), "SLURM_STEP_TASKS_PER_NODE": layout})
        assert (found.rank, found.local_rank, found.local_world_size, found.nodes) == (rank, local, size, nodes)
        assert rendezvous(found, SLURM)[0] == "frontier00012"  # not the loopback address


def test_contradicting_variables() -> None:
    with pytest.raises(UserError, match="contradict"):
        discover({"RANK": "4", "WORLD_SIZE": "2"})
    with pytest.raises(UserError, match="not a number"):
        discover({"RANK": "x", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("frontier[00012-00014,00020]", "frontier00012"),
        ("nid001,nid002", "nid001"),
        ("n1", "n1"),
        ("a,b[1-2]", "a"),
        ("x[3,5-6]-hsn", "x3"),
    ],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_rendezvous() -> None:
    ranks = discover(SLURM)
    assert ranks.nodes == 2
    address, port = rendezvous(ranks, SLURM)
    assert address == "frontier00012"
    assert 20000 <= port < 32000
    assert rendezvous(ranks, SLURM) == (address, port)
    assert rendezvous(ranks, {**SLURM, "SLURM_STEP_ID": "1"})[1] != port
    assert rendezvous(ranks, {**SLURM, "MASTER_ADDR": "h", "MASTER_PORT": "3442"}) == ("h", 3442)
    assert rendezvous(discover({}), {})[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("strategy", "world", "replicate", "shard", "reshard"),
    [
        ("ddp", 8, 8, 1, False),
        ("no_shard", 8, 8, 1, False),
        ("full_shard", 8, 1, 8, True),
        ("shard_grad_op", 8, 1, 8, False),
        ("hybrid_1", 8, 8, 1, False),
        ("hybrid_2", 8, 4, 2, True),
        ("hybrid_8", 8, 1, 8, True),
    ],
)
def test_strategies(strategy: str, world: int, replicate: int, shard: int, reshard: bool) -> None:
    dims = ParallelDims.from_strategy(strategy, world)
    assert (dims.replicate, dims.shard, dims.reshard_after_forward) == (replicate, shard, reshard)


def test_impossible_mesh() -> None:
    with pytest.raises(UserError, match="hybrid_1, hybrid_2, hybrid_3, hybrid_6"):
        ParallelDims.from_strategy("hybrid_4", 6)
    with pytest.raises(UserError, match="replicate 2 x shard 2"):
        ParallelDims("hybrid_2", 2, 2, 8)


def test_batch_plan() -> None:
    assert BatchPlan.divide(2048, 8, 64) == BatchPlan(2048, 32, 8, 4)
    assert BatchPlan.divide(64, None, 4) == BatchPlan(64, 16, 16, 1)
    assert BatchPlan.divide(64, 32, 4).micro_batch == 16  # a rank's share is smaller than the micro-batch
    with pytest.raises(UserError, match="96 or 128"):
        BatchPlan.divide(100, None, 32)
    with pytest.raises(UserError, match="1, 2, 3, 6"):
        BatchPlan.divide(12, 4, 2)
