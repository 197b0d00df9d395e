"""Combinations of parallelisms that cannot work are refused with the mend, before any process group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frontier.errors import UserError
from frontier.launch.mesh import ParallelDims
from frontier.models.mae import MAE, MAEConfig
from frontier.parallel.tensor import check_divides
from tests.conftest import run_frontier


def test_order_of_the_mesh() -> None:
    """Tensor groups are consecutive ranks, shard groups next, replicas farthest."""
    dims = ParallelDims.from_strategy("hybrid_2", 16, tensor=4)
    assert (dims.replicate, dims.shard, dims.tensor, dims.data_ranks) == (2, 2, 4, 16)
    assert [dims.replica(rank) for rank in (0, 7, 8, 15)] == [0, 0, 1, 1]
    same = ParallelDims.from_strategy("hybrid_2", 16, tensor=4, sequence_parallel=False)
    assert same.data_ranks == 4
    assert [same.data_rank(rank) for rank in (0, 3, 4, 15)] == [0, 0, 1, 3]


def test_tensor_degree_must_divide() -> None:
    with pytest.raises(UserError, match="parallel.tensor=4 does not divide 6 ranks: choose among 1, 2, 3, 6"):
        ParallelDims.from_strategy("full_shard", 6, tensor=4)
    with pytest.raises(
        UserError, match=r"does not fit 8 / tensor 2 = 4 ranks: choose among hybrid_1, hybrid_2, hybrid_4"
    ):
        ParallelDims.from_strategy("hybrid_8", 8, tensor=2)
    with torch.device("meta"):
        model = MAE(MAEConfig.preset("vit_3b", image_size=224))
    check_divides(model, 8)
    with pytest.raises(
        UserError, match=r"parallel.tensor=3 does not divide the .* heads .* this model takes 1, 2, 4, 8, 16"
    ):
        check_divides(model, 3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("parallel.tensor=2", "parallel.strategy=ddp"), "use no_shard"),
        (("parallel.tensor=3",), "does not divide 2 ranks: choose among 1, 2"),
        (("parallel.prefetch=2", "parallel.strategy=shard_grad_op"), "parallel.prefetch has no effect"),
        (("parallel.offload=true", "parallel.strategy=ddp"), "use no_shard"),
        (("parallel.sequence_parallel=false",), "no effect without parallel.tensor"),
        (("parallel.activation_checkpointing=some",), "selective"),
        (("parallel.tensor=2", "train.global_batch=31"), "global_batch=31"),
    ],
)
def test_one_line_and_exit_2(toy: Path, overrides: tuple[str, ...], words: str) -> None:
    done = run_frontier("pretrain", toy, *overrides, "--dry-run", "--world-size", "2")
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
