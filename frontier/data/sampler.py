"""Which samples make up a batch: a function of (seed, step), never of a rank.

The samples form a circle that is cut, each epoch at another place, into blocks of B consecutive ones; the blocks of
all epochs, shuffled inside their epoch, form one endless stream. A window of W global batches is made of the next
W*G/B whole blocks (G = global batch), and every block gives B/W of its samples to each batch of its window. A rank owns
consecutive blocks of a window, so it reads only its own blocks, once, in order, while the composition of a batch does
not depend on the number of ranks. Position in the stream is the step number alone: nothing to save, nothing to restore. The
shuffle is a formula, not a table: a rank's memory for it depends neither on the data nor on the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from frontier.errors import UserError

MAX_BLOCK = 64
MAX_BLOCK_BYTES = 16 * 2**20


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def default_block(samples: int, global_batch: int, sample_bytes: int) -> int:
    """Largest power of two up to 64 samples and 16 MiB for which a window of whole batches fits in the data."""
    block = 1
    limit = min(MAX_BLOCK, samples // global_batch, MAX_BLOCK_BYTES // max(1, sample_bytes))
    while block * 2 <= limit:
        block *= 2
    return block


@dataclass(frozen=True)
class Block:
    """B consecutive samples of the circle, read as one piece (two where the circle closes).

    Attributes:
        epoch: pass over the data that it belongs to.
        start: first sample.
        order: [B] position inside the block of each sample, in the order in which the batches of the window take them.
        members: [B, 2] int64 (epoch, sample) in that order.
    """

    epoch: int
    start: int
    order: np.ndarray
    members: np.ndarray


@dataclass(frozen=True)
class Blocks:
    """The n blocks of a window that a rank owns, in stream order, as arrays: what `Block` says of one.

    Attributes: `epochs` [n], `starts` [n], `orders` [n, B], `members` [n, B, 2], all int64.
    """

    epochs: np.ndarray
    starts: np.ndarray
    orders: np.ndarray
    members: np.ndarray


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, samples: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Where the circle is cut in this epoch, the keys of the order of its blocks, and two of the order inside them."""
    random = _generator(seed, 1, epoch)
    cut, keys = int(random.integers(samples)), random.integers(2**64, size=_ROUNDS + 2, dtype=np.uint64)
    return cut, keys[:_ROUNDS], keys[_ROUNDS:]


_ROUNDS = 6


def _scrambled(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, a bijection of uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def inner_orders(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """[n, size] a permutation of 0 ... size - 1 for each of n blocks: the order of hashes of (block, position).

    A generator a block would cost more than copying a block of small images.
    """
    block = _scrambled(indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + keys[:1])
    hashes = _scrambled(block[:, None] + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    # A bijection of unlike numbers: no two of a block are equal.
    return np.argsort(_scrambled(hashes ^ keys[1]), axis=1)


def shuffled(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Where a shuffle of 0 ... n - 1 puts `positions`, without making the shuffle: constant memory for any n.

    A Feistel network over the smallest even number of bits that holds n, walked on until the value is below n: a bijection for
    any round function (Luby and Rackoff 1988; cycle walking: Black and Rogaway 2002). The round function is the
    finaliser of SplitMix64.
    """
    half = np.uint64((max(2, (n - 1).bit_length()) + 1) // 2)
    low = (np.uint64(1) << half) - np.uint64(1)
    result = positions.astype(np.uint64)
    outside = np.ones(len(result), bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & low
        for key in keys:
            left, right = right, left ^ (_scrambled(right + key) & low)
        result[outside] = (left << half) | right
        outside = result >= n
    return result.astype(np.int64)


@dataclass(frozen=True)
class Sampler:
    """The plan of a run.

    Attributes:
        samples: N, size of the data.
        global_batch: G.
        block: B, consecutive samples read together.
        window: W, global batches mixed together; divides B.
        seed: of the run.
    """

    samples: int
    global_batch: int
    block: int
    window: int
    seed: int

    def __post_init__(self) -> None:
        if self.global_batch > self.samples:
            raise UserError(
                f"train.global_batch={self.global_batch} exceeds the {self.samples} samples of the data: "
                "use a smaller batch or more data"
            )
        if self.block > self.samples:
            raise UserError(
                f"data.block={self.block} exceeds the {self.samples} samples of the data: use a smaller block"
            )
        if self.block % self.window:
            raise UserError(f"data.window={self.window} does not divide data.block={self.block}: choose a divisor")
        if self.global_batch % self.per_block:
            raise UserError(
                f"train.global_batch={self.global_batch} is no multiple of block/window="
                f"{self.block}/{self.window}={self.per_block}: change data.block or data.window"
            )

    @classmethod
    def plan(
        cls, samples: int, global_batch: int, seed: int, sample_bytes: int, block: int | None, window: int | None
    ) -> Sampler:
        """Fill in the defaults; they depend on the data and the global batch, never on the ranks."""
        chosen = block or default_block(samples, global_batch, sample_bytes)
        return cls(samples, global_batch, chosen, window or chosen, seed)

    @property
    def per_block(self) -> int:
        """Samples a block gives to each batch of its window."""
        return self.block // self.window

    @property
    def blocks_per_window(self) -> int:
        return self.global_batch // self.per_block

    @property
    def blocks_per_epoch(self) -> int:
        return self.samples // self.block

    @property
    def epoch_samples(self) -> int:
        """Samples of one epoch: all but the remainder of the last block, which differs from epoch to epoch."""
        return self.blocks_per_epoch * self.block

    def check_ranks(self, ranks: int) -> None:
        """Raises UserError where whole blocks do not fall evenly on the ranks."""
        if self.blocks_per_window % ranks:
            raise UserError(
                f"{self.blocks_per_window} blocks of a window do not divide over {ranks} ranks: make "
                f"train.global_batch a multiple of {ranks * self.per_block} or set data.window={self.block}"
            )

    def window_blocks(self, window: int, rank: int = 0, ranks: int = 1) -> Blocks:
        """The blocks of a window that a rank owns, in stream order."""
        own = self.blocks_per_window // ranks
        first = window * self.blocks_per_window + rank * own
        epochs, places = np.divmod(np.arange(first, first + own), self.blocks_per_epoch)
        starts, orders = np.empty(own, np.int64), np.empty((own, self.block), np.int64)
        for epoch in (int(e) for e in np.unique(epochs)):
            chosen = epochs == epoch
            cut, keys, inner = _epoch(self.seed, epoch, self.samples)
            indices = shuffled(places[chosen], self.blocks_per_epoch, keys)
            starts[chosen] = (cut + indices * self.block) % self.samples
            orders[chosen] = inner_orders(indices, self.block, inner)
        members = np.empty((own, self.block, 2), np.int64)
        members[..., 0] = epochs[:, None]
        members[..., 1] = (starts[:, None] + orders) % self.samples
        return Blocks(epochs, starts, orders, members)

    def blocks(self, window: int, rank: int = 0, ranks: int = 1) -> list[Block]:
        """The same, one by one."""
        found = self.window_blocks(window, rank, ranks)
        return [
            Block(int(epoch), int(start), order, members)
            for epoch, start, order, members in zip(
                found.epochs, found.starts, found.orders, found.members, strict=True
            )
        ]

    def turn(self, step: int) -> slice:
        """Where in each block's order the samples of a step lie."""
        turn = step % self.window
        return slice(turn * self.per_block, (turn + 1) * self.per_block)

    def members(self, step: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """[local_batch, 2] of (epoch, sample) in the order in which the rank sees them."""
        part = self.turn(step)
        return np.concatenate([b.members[part] for b in self.blocks(step // self.window, rank, ranks)])
