"""One object owns the topology, replicate x shard x tensor, and every sum that follows from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frontier.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


WHOLE_MODEL = ("ddp", "no_shard")
FULLY_SHARDED = ("shard_grad_op", "full_shard", "zero_1", "zero_2", "zero_3")


def divisors(n: int) -> list[int]:
    """All divisors of n, ascending."""
    return [d for d in range(1, n + 1) if n % d == 0]


@dataclass(frozen=True)
class ParallelDims:
    """Degrees of the mesh. Rank = (replicate_index * shard + shard_index) * tensor + tensor_index.

    So tensor groups are consecutive ranks (inside a node), shard groups lie next, replicas are farthest apart.

    Attributes:
        strategy: the word of the config.
        replicate: copies of the sharded model (gradients are all-reduced across them).
        shard: ranks among which parameters, gradients and optimizer state are cut.
        tensor: ranks that compute one block together (`frontier.parallel.tensor`).
        world_size: replicate x shard x tensor.
        sequence_parallel: the ranks of a tensor group hold different samples between the blocks.
    """

    strategy: str
    replicate: int
    shard: int
    world_size: int
    tensor: int = 1
    sequence_parallel: bool = True

    def __post_init__(self) -> None:
        if self.replicate * self.shard * self.tensor != self.world_size:
            raise UserError(
                f"mesh replicate {self.replicate} x shard {self.shard} x tensor {self.tensor} is not the world of "
                f"{self.world_size} ranks: change parallel.strategy, parallel.tensor or the number of ranks"
            )

    @classmethod
    def from_strategy(
        cls, strategy: str, world_size: int, tensor: int = 1, sequence_parallel: bool = True
    ) -> ParallelDims:
        """Degrees of a strategy word on `world_size` ranks, `tensor` of which work together on each block.

        Raises:
            UserError: a tensor degree or a hybrid_k that does not divide the ranks; names the ones that do.
        """
        if world_size % tensor:
            raise UserError(
                f"parallel.tensor={tensor} does not divide {world_size} ranks: choose among "
                f"{', '.join(map(str, divisors(world_size)))}"
            )
        ranks = world_size // tensor
        if strategy in WHOLE_MODEL:
            return cls(strategy, ranks, 1, world_size, tensor, sequence_parallel)
        if strategy in FULLY_SHARDED:
            return cls(strategy, 1, ranks, world_size, tensor, sequence_parallel)
        match = re.fullmatch(r"hybrid_([1-9]\d*)", strategy)
        if not match:
            raise UserError(f"parallel.strategy '{strategy}' is unknown: see jobs/configs for examples")
        k = int(match[1])
        if ranks % k:
            words = ", ".join(f"hybrid_{d}" for d in divisors(ranks))
            beside = f" / tensor {tensor} = {ranks}" if tensor > 1 else ""
            raise UserError(
                f"parallel.strategy {strategy} does not fit {world_size}{beside} ranks: choose among {words}"
            )
        return cls(strategy, ranks // k, k, world_size, tensor, sequence_parallel)

    @property
    def data_ranks(self) -> int:
        """Ranks that load different samples: all of them, or one a tensor group without sequence parallelism."""
        return self.world_size if self.sequence_parallel else self.replicate * self.shard

    def data_rank(self, rank: int) -> int:
        """Which of the `data_ranks` shares of the batch belongs to `rank`."""
        return rank if self.sequence_parallel else rank // self.tensor

    def replica(self, rank: int) -> int:
        """Which copy of the model `rank` holds a part of."""
        return rank // (self.shard * self.tensor)

    @property
    def reshard_after_forward(self) -> bool:
        """Whether full weights are dropped between forward and backward (FULL_SHARD and HYBRID_k, not ZeRO-2)."""
        return self.strategy not in ("shard_grad_op", "no_shard", "ddp") and self.shard > 1

    def meshes(self, device_type: str) -> tuple[DeviceMesh, DeviceMesh | None]:
        """(mesh of FSDP, mesh of the tensor group or None). FSDP's is 1-D ("shard") when nothing is replicated, else the
        2-D ("replicate", "shard"); both are slices of one mesh.
        """
        from torch.distributed.device_mesh import init_device_mesh

        degrees = {"replicate": self.replicate, "shard": self.shard, "tensor": self.tensor}
        if self.replicate == 1:
            del degrees["replicate"]
        if self.tensor == 1:
            del degrees["tensor"]
        whole = init_device_mesh(device_type, tuple(degrees.values()), mesh_dim_names=tuple(degrees))
        data = tuple(name for name in degrees if name != "tensor")
        if self.tensor == 1:
            return whole, None
        return whole[data if len(data) > 1 else data[0]], whole["tensor"]

    def process_groups(self) -> int:
        """Groups that one rank is in: the world, its axes of degree above 1, and the writers of checkpoints."""
        return 2 + sum(degree > 1 for degree in (self.replicate, self.shard, self.tensor))

    def as_dict(self) -> dict[str, int]:
        return {"replicate": self.replicate, "shard": self.shard, "tensor": self.tensor}


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
