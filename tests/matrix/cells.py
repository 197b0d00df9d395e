"""The cells of the parallelism matrix: ranks x strategy x variant, as overrides of one small run."""

from __future__ import annotations

from dataclasses import dataclass

from frontier.errors import UserError
from frontier.launch.mesh import ParallelDims

RANKS = (1, 2, 4, 8)
STRATEGIES: dict[str, tuple[str, int]] = {
    "ddp": ("ddp", 1),
    "no_shard": ("no_shard", 1),
    "shard_grad_op": ("shard_grad_op", 1),
    "full_shard": ("full_shard", 1),
    "hybrid_2": ("hybrid_2", 1),
    "zero_1": ("zero_1", 1),
    "zero_2": ("zero_2", 1),
    "zero_3": ("zero_3", 1),
    "tensor_2": ("no_shard", 2),
    "tensor_2+full_shard": ("full_shard", 2),
    "tensor_2+hybrid_2": ("hybrid_2", 2),
}
"""Name of a row -> (parallel.strategy, parallel.tensor)."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "checkpointing": ("parallel.activation_checkpointing=full",),
    "accumulation": ("train.micro_batch=2",),
}
FURTHER: dict[str, tuple[str, tuple[str, ...]]] = {
    "selective checkpointing": ("full_shard", ("parallel.activation_checkpointing=selective",)),
    "prefetch 0": ("full_shard", ("parallel.prefetch=0",)),
    "prefetch 2": ("full_shard", ("parallel.prefetch=2",)),
    "same samples in a tensor group": ("tensor_2+full_shard", ("parallel.sequence_parallel=false",)),
    "optimizer offload": ("zero_2", ("parallel.offload=true",)),
}
"""Options beyond the matrix: name -> (row that they change, overrides)."""
STEPS, STOP = 30, 12
"""Length of a run, and where the first side of a stop-and-resume ends."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: its folder.
        overrides: of the small run's config.
    """

    name: str
    ranks: int
    strategy: str
    variant: str
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, ranks: int, strategy: str, variant: str, more: tuple[str, ...]) -> Cell:
        word, tensor = STRATEGIES[strategy]
        name = f"{ranks}-{strategy}-{variant}".replace(" ", "_")
        return cls(name, ranks, strategy, variant, (f"parallel.strategy={word}", f"parallel.tensor={tensor}", *more))

    @property
    def fits(self) -> bool:
        """Whether the strategy exists on that many ranks."""
        word, tensor = STRATEGIES[self.strategy]
        try:
            ParallelDims.from_strategy(word, self.ranks, tensor)
        except UserError:
            return False
        return True


def matrix(ranks: tuple[int, ...] = RANKS, strategies: tuple[str, ...] = tuple(STRATEGIES)) -> list[Cell]:
    """Every cell that exists, and on 4 ranks the further options."""
    cells = [Cell.of(r, s, v, more) for r in ranks for s in strategies for v, more in VARIANTS.items()]
    if 4 in ranks:
        cells += [Cell.of(4, s, name, more) for name, (s, more) in FURTHER.items() if s in strategies]
    return [cell for cell in cells if cell.fits]
