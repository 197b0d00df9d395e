"""One object owns the topology: replicate x shard, in consecutive ranks, and every sum that follows from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frontier.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def divisors(n: int) -> list[int]:
    """All divisors of n, ascending."""
    return [d for d in range(1, n + 1) if n % d == 0]


@dataclass(frozen=True)
class ParallelDims:
    """Degrees of the mesh. Rank = replicate_index * shard + shard_index: shard groups are consecutive ranks.

    Attributes:
        strategy: the word of the config.
        replicate: copies of the sharded model (gradients are all-reduced across them).
        shard: ranks that share one copy.
        world_size: replicate x shard.
    """

    strategy: str
    replicate: int
    shard: int
    world_size: int

    def __post_init__(self) -> None:
        if self.replicate * self.shard != self.world_size:
            raise UserError(
                f"mesh replicate {self.replicate} x shard {self.shard} is not the world of {self.world_size} ranks: "
                "change parallel.strategy or the number of ranks"
            )

    @classmethod
    def from_strategy(cls, strategy: str, world_size: int) -> ParallelDims:
        """Degrees of a strategy word on `world_size` ranks.

        Raises:
            UserError: hybrid_k whose k does not divide the world; names the ones that do.
        """
        if strategy in ("ddp", "no_shard"):
            return cls(strategy, world_size, 1, world_size)
        if strategy in ("shard_grad_op", "full_shard"):
            return cls(strategy, 1, world_size, world_size)
        match = re.fullmatch(r"hybrid_([1-9]\d*)", strategy)
        if not match:
            raise UserError(f"parallel.strategy '{strategy}' is unknown: see jobs/configs for examples")
        k = int(match[1])
        if world_size % k:
            words = ", ".join(f"hybrid_{d}" for d in divisors(world_size))
            raise UserError(f"parallel.strategy {strategy} does not fit {world_size} ranks: choose among {words}")
        return cls(strategy, world_size // k, k, world_size)

    @property
    def data_ranks(self) -> int:
        """Ranks that see different samples."""
        return self.replicate * self.shard

    @property
    def reshard_after_forward(self) -> bool:
        """Whether full weights are dropped between forward and backward (FULL_SHARD and HYBRID_k, not ZeRO-2)."""
        return self.strategy not in ("shard_grad_op", "no_shard", "ddp") and self.shard > 1

    def mesh(self, device_type: str) -> DeviceMesh:
        """A 1-D mesh ("shard") when nothing is replicated, else the 2-D mesh ("replicate", "shard")."""
        from torch.distributed.device_mesh import init_device_mesh

        if self.replicate == 1:
            return init_device_mesh(device_type, (self.shard,), mesh_dim_names=("shard",))
        return init_device_mesh(device_type, (self.replicate, self.shard), mesh_dim_names=("replicate", "shard"))

    def as_dict(self) -> dict[str, int]:
        return {"replicate": self.replicate, "shard": self.shard}


@dataclass(frozen=True)
class BatchPlan:
    """How the global batch falls on ranks and micro-batches.

    Attributes:
        global_batch: images of one optimizer step.
        local_batch: images of one rank in it.
        micro_batch: images of one forward pass.
        accumulation: forward passes of one step.
    """

    global_batch: int
    local_batch: int
    micro_batch: int
    accumulation: int

    @classmethod
    def divide(cls, global_batch: int, micro_batch: int | None, data_ranks: int) -> BatchPlan:
        """Raises UserError where the batch does not divide, naming sizes that do."""
        if global_batch % data_ranks:
            low = global_batch // data_ranks * data_ranks
            fit = [size for size in (low, low + data_ranks) if size]
            raise UserError(
                f"train.global_batch={global_batch} does not divide over {data_ranks} ranks: "
                f"use {' or '.join(map(str, fit))}"
            )
        local = global_batch // data_ranks
        micro = local if micro_batch is None else min(micro_batch, local)
        if local % micro:
            raise UserError(
                f"train.micro_batch={micro} does not divide the {local} images of a rank "
                f"(train.global_batch={global_batch} on {data_ranks} ranks): use one of {', '.join(map(str, divisors(local)))}"
            )
        return cls(global_batch, local, micro, local // micro)
