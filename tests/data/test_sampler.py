"""The sampler's promises: same batches on any number of ranks, every sample once an epoch, own blocks only, in order."""

from __future__ import annotations

import numpy as np
import pytest

from frontier.data.sampler import Sampler, default_block, inner_orders, shuffled
from frontier.errors import UserError


def batches(sampler: Sampler, steps: range, ranks: int) -> list[np.ndarray]:
    return [np.concatenate([sampler.members(s, r, ranks) for r in range(ranks)]) for s in steps]


@pytest.mark.parametrize(("block", "window"), [(8, 8), (8, 2), (8, 1), (1, 1)])
def test_batches_do_not_depend_on_ranks(block: int, window: int) -> None:
    sampler = Sampler(1003, 64, block, window, seed=5)
    alone = batches(sampler, range(40), 1)
    for ranks in (2, 4, 8):
        for ours, theirs in zip(batches(sampler, range(40), ranks), alone, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("samples", "block"), [(1003, 8), (1000, 8), (64, 64), (65, 1)])
def test_every_sample_at_most_once_an_epoch_and_only_the_remainder_is_missing(samples: int, block: int) -> None:
    sampler = Sampler(samples, 16, block, block, seed=1)
    windows = -(-4 * samples // (16 * sampler.window))  # whole windows, at least four epochs
    stream = np.concatenate(batches(sampler, range(windows * sampler.window), 1))
    for epoch in range(3):
        seen = stream[stream[:, 0] == epoch, 1]
        assert len(np.unique(seen)) == len(seen)
        assert len(seen) == sampler.epoch_samples == samples // block * block


def test_what_an_epoch_leaves_out_differs() -> None:
    sampler = Sampler(103, 10, 10, 10, seed=0)
    stream = np.concatenate(batches(sampler, range(100), 1))
    left_out = [frozenset(range(103)) - frozenset(stream[stream[:, 0] == e, 1].tolist()) for e in range(6)]
    assert len(set(left_out)) > 3


def test_a_rank_reads_only_its_blocks_each_once() -> None:
    sampler = Sampler(4096, 64, 16, 8, seed=2)
    for window in range(6):
        starts = [{(b.epoch, b.start) for b in sampler.blocks(window, r, 4)} for r in range(4)]
        assert sum(map(len, starts)) == len(set().union(*starts)) == sampler.blocks_per_window
        for rank in range(4):
            of_steps = np.concatenate([sampler.members(window * 8 + t, rank, 4) for t in range(8)])
            of_blocks = np.concatenate([b.members for b in sampler.blocks(window, rank, 4)])
            assert sorted(map(tuple, of_steps)) == sorted(map(tuple, of_blocks))


def test_every_block_gives_its_share_to_every_batch() -> None:
    sampler = Sampler(4096, 64, 16, 8, seed=2)
    for step in range(8):
        members = sampler.members(step)
        for block in sampler.blocks(0):
            inside = (members[:, 1] - block.start) % sampler.samples < sampler.block
            assert inside.sum() == sampler.per_block == 2


def test_seeds_and_epochs_differ() -> None:
    a, b = Sampler(512, 32, 16, 16, 0), Sampler(512, 32, 16, 16, 1)
    assert not np.array_equal(a.members(0), b.members(0))
    assert not np.array_equal(a.members(0)[:, 1], a.members(16)[:, 1])


def test_default_block() -> None:
    assert default_block(4800, 256, 12288) == 16
    assert default_block(10**6, 2048, 150528) == 64
    assert default_block(10**6, 2048, 6 * 2**20) == 2
    assert default_block(64, 64, 10) == 1


def test_refusals() -> None:
    with pytest.raises(UserError, match="exceeds the 64 samples"):
        Sampler(64, 128, 1, 1, 0)
    with pytest.raises(UserError, match="does not divide"):
        Sampler(640, 64, 16, 3, 0)
    with pytest.raises(UserError, match="no multiple"):
        Sampler(640, 36, 16, 2, 0)
    with pytest.raises(UserError, match="divide over 3 ranks"):
        Sampler(640, 64, 16, 16, 0).check_ranks(3)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 4097])
def test_the_shuffle_is_a_permutation(n: int) -> None:
    keys = np.random.default_rng(n).integers(2**64, size=6, dtype=np.uint64)
    places = shuffled(np.arange(n), n, keys)
    assert sorted(places.tolist()) == list(range(n))
    assert np.array_equal(shuffled(np.arange(n)[::-1], n, keys), places[::-1])


def test_the_shuffle_is_even() -> None:
    """Over many keys every block comes at every place equally often, and neighbours are not kept together."""
    n, draws = 24, 4000
    counts, together = np.zeros((n, n)), 0
    for seed in range(draws):
        keys = np.random.default_rng(seed).integers(2**64, size=6, dtype=np.uint64)
        places = shuffled(np.arange(n), n, keys)
        counts[np.arange(n), places] += 1
        together += int((np.abs(np.diff(places)) == 1).sum())
    expected = draws / n
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5
    assert together / draws == pytest.approx(2 * (n - 1) / n, rel=0.05)


def test_the_order_inside_blocks_is_even() -> None:
    """Over many blocks every position comes at every place equally often, and neighbouring blocks have unlike orders."""
    n, draws = 16, 8000
    keys = np.random.default_rng(5).integers(2**64, size=2, dtype=np.uint64)
    orders = inner_orders(np.arange(draws), n, keys)
    assert (np.sort(orders, 1) == np.arange(n)).all()
    counts = np.zeros((n, n))
    for place in range(n):
        np.add.at(counts[place], orders[:, place], 1)
    chi2 = ((counts - draws / n) ** 2 / (draws / n)).sum()
    freedom = (n - 1) ** 2
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5
    assert (orders[1:] == orders[:-1]).mean() == pytest.approx(1 / n, rel=0.05)
    assert not np.array_equal(orders, inner_orders(np.arange(draws), n, keys + np.uint64(1)))


def test_a_billion_samples_take_no_memory() -> None:
    """Blocks of one rank of 75,264 in an archive whose shuffle would be 16 million long as a table."""
    import tracemalloc

    sampler = Sampler(10**9, 75_264, 64, 64, seed=0)
    tracemalloc.start()
    blocks = sampler.blocks(3, rank=75_000, ranks=75_264)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(blocks) == 1 and len(blocks[0].members) == 64
    assert peak < 1e6
