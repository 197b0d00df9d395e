"""Clusters of token counts: the bounds hold for any lengths, the cuts are the best ones, and the index tensors say what they should."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from frontier.errors import UserError
from gpna.batching import cluster, dbscan, pack, padding_bound, waste

LENGTHS = st.lists(
    st.one_of(st.integers(0, 40), st.sampled_from([676, 832, 1152]), st.integers(0, 15_000)), max_size=60
)
BOUND = st.one_of(st.integers(0, 3000), st.floats(0.001, 0.999))
CHAIN = list(range(1, 15_000, 60))


def shapes(lengths: np.ndarray, clusters: list[np.ndarray]) -> list[list[int]]:
    return [sorted(lengths[rows].tolist()) for rows in clusters]


def sustainbench(samples: int, seed: int) -> np.ndarray:
    """The data sets' token counts and series, half of the samples each: the harder mix."""
    random = np.random.default_rng(seed)
    sets = random.choice([676, 832, 1152, 2352, 6272, 12544], samples)
    return np.where(random.random(samples) < 0.5, sets, random.integers(200, 15_001, samples))


@settings(max_examples=300, deadline=None)
@given(LENGTHS, BOUND, st.none() | st.integers(1, 40_000), st.sampled_from(["dbscan", "greedy"]), st.randoms())
@example(CHAIN, 64, None, "dbscan", Random(0))
@example(CHAIN, 64, 9000, "greedy", Random(0))
def test_any_lengths_keep_the_bounds(found, max_padding, max_tokens, method, random) -> None:
    lengths = np.array(found, dtype=np.int64)
    clusters = cluster(lengths, max_padding, max_tokens, method)
    assert sorted(np.concatenate([*clusters, np.empty(0, int)]).tolist()) == list(range(len(lengths)))
    bound = padding_bound(lengths, max_padding)
    for rows in clusters:
        least, most = lengths[rows].min(), lengths[rows].max()
        assert most - least <= bound
        assert max_tokens is None or len(rows) == 1 or len(rows) * most <= max_tokens
        assert (most == 0) == (least == 0), "samples without tokens stand apart"
    if isinstance(max_padding, float):
        assert waste(lengths, clusters) <= max_padding
    again = cluster(lengths, max_padding, max_tokens, method)
    assert all(np.array_equal(a, b) for a, b in zip(clusters, again, strict=True))
    shuffled = lengths.copy()
    random.shuffle(shuffled)
    assert shapes(shuffled, cluster(shuffled, max_padding, max_tokens, method)) == shapes(lengths, clusters)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=200), st.integers(1, 500))
def test_dbscan_is_scikit_learns(found, eps) -> None:
    lengths = np.array(found)
    values, inverse, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    labels = DBSCAN(eps=eps, min_samples=1).fit(values[:, None], sample_weight=counts).labels_[inverse]
    theirs = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    assert sorted(sorted(rows.tolist()) for rows in dbscan(lengths, eps)) == sorted(theirs)
    for method in ("dbscan", "greedy"):  # both refine it
        assert all(len(set(labels[rows])) == 1 for rows in cluster(lengths, eps, method=method))


def test_dbscan_alone_chains_and_the_split_does_not() -> None:
    lengths = np.array(CHAIN)
    assert len(dbscan(lengths, 64)) == 1 and waste(lengths, dbscan(lengths, 64)) > 0.99
    assert max(np.ptp(lengths[rows]) for rows in cluster(lengths, 64)) <= 64
    assert waste(lengths, cluster(lengths, 64)) < 0.005


def partitions(items: list[int]):
    """All set partitions."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for k in range(len(rest)):
            yield [*rest[:k], [items[0], *rest[k]], *rest[k + 1 :]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(0, 20), st.none() | st.integers(1, 90))
def test_against_every_partition(found, bound, cap) -> None:
    lengths = np.array(found)
    cost = max(1, round(0.05 * int(lengths.sum())))
    allowed = [
        parts
        for parts in partitions(list(range(len(lengths))))
        if all(
            np.ptp(lengths[rows]) <= bound and (cap is None or len(rows) == 1 or len(rows) * lengths[rows].max() <= cap)
            for rows in parts
        )
    ]
    assert len(cluster(lengths, bound, cap, "greedy")) == min(len(parts) for parts in allowed)

    def price(parts) -> int:
        return sum(len(rows) * int(lengths[rows].max()) for rows in parts) + cost * len(parts)

    best = min(price(parts) for parts in allowed)
    assert price(cluster(lengths, bound, cap, cluster_cost=0.05)) == best


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 15_000) | st.integers(1, 60) | st.sampled_from([676, 832]), min_size=1, max_size=150),
    st.integers(0, 8000),
    st.none() | st.integers(1, 60_000),
    st.sampled_from([0.0, 0.0003, 0.002, 0.05]),
)
def test_against_the_plain_programme(found, bound, cap, share) -> None:
    """Every opening of every run tried, in O(n^2)."""
    lengths = np.sort(found)
    cost, best = max(1, round(share * int(lengths.sum()))), [0]
    for j, longest in enumerate(lengths.tolist()):
        best.append(
            min(
                best[i] + longest * (j + 1 - i) + cost
                for i in range(j + 1)
                if longest - lengths[i] <= bound and (cap is None or i == j or longest * (j + 1 - i) <= cap)
            )
        )
    clusters = cluster(np.array(found), bound, cap, cluster_cost=share)
    price = sum(len(rows) * max(found[k] for k in rows) for rows in clusters) + cost * len(clusters)
    assert price == best[-1]


@pytest.mark.parametrize("samples", [64, 256, 1024])
def test_the_default_wastes_at_most_two_percent(samples: int) -> None:
    for seed in range(10):
        lengths = sustainbench(samples, seed)
        assert waste(lengths, cluster(lengths, method="one")) > 1
        found = cluster(lengths)
        assert waste(lengths, found) <= 0.02
        assert len(found) <= 50


def test_one_and_each() -> None:
    lengths = np.array([3, 0, 9, 3])
    assert [rows.tolist() for rows in cluster(lengths, method="one")] == [[1], [0, 3, 2]]
    assert [rows.tolist() for rows in cluster(lengths, method="each")] == [[1], [0], [3], [2]]
    assert cluster(np.empty(0, int)) == []
    assert waste(lengths, cluster(lengths, method="one")) == 12 / 15


def test_a_sample_above_the_cap_stands_alone() -> None:
    lengths = np.array([10, 10, 10, 50])
    assert shapes(lengths, cluster(lengths, 100, 20)) == [[10, 10], [10], [50]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_padding": -1}, "max_padding is -1"),
        ({"max_padding": 256.0}, "share of the mean token count"),
        ({"max_padding": True}, "max_padding is True"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"cluster_cost": -0.1}, "cluster_cost is -0.1"),
        ({"method": "kmeans"}, "'kmeans' are unknown"),
    ],
)
def test_refusals(options, words) -> None:
    with pytest.raises(UserError, match=words):
        cluster(np.array([1, 2]), **options)


def test_packing_holds_every_token_where_it_belongs() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(0, 12, 20)
    rows = random.permutation(int(lengths.sum()) + 30)  # 30 rows of the buffer are nobody's
    index = np.split(rows[: lengths.sum()], np.cumsum(lengths)[:-1])
    packing = pack(index, cluster(lengths, 3))
    assert packing.samples == 20
    seen = []
    for part in packing.clusters:
        assert part.samples.dtype == part.tokens.dtype == torch.int64
        there = torch.ones_like(part.tokens, dtype=torch.bool) if part.there is None else part.there
        assert part.there is None or not part.there.all()
        assert (part.tokens[~there] == 0).all()
        for sample, tokens, real in zip(part.samples.tolist(), part.tokens, there, strict=True):
            assert tokens[real].tolist() == index[sample].tolist()
            assert real.tolist() == sorted(real.tolist(), reverse=True), "padding comes last"
            seen.append(sample)
    assert sorted(seen) == list(range(20))


def test_runs_of_the_buffer_are_told() -> None:
    index = [np.arange(a, b) for a, b in itertools.pairwise([0, 4, 8, 13, 18, 20, 23])]
    plain = pack(index, cluster(np.array([4, 4, 5, 5, 2, 3]), 0)).plain()
    assert [(part["start"], part["length"], part["samples"].tolist()) for part in plain] == [
        (18, 2, [4]), (20, 3, [5]), (0, 4, [0, 1]), (8, 5, [2, 3]),
    ]  # fmt: skip
    padded = pack(index, cluster(np.array([4, 4, 5, 5, 2, 3]), 1, method="greedy")).plain()
    assert [sorted(part) for part in padded] == [["samples", "there", "tokens"]] * 2
    shuffled = pack([np.array([1, 0]), np.array([2, 3])], [np.array([0, 1])]).plain()
    assert sorted(shuffled[0]) == ["samples", "tokens"], "no padding, but no run"
    moved = pack(index, cluster(np.array([4, 4, 5, 5, 2, 3]), 1)).to("meta")
    assert {t.device.type for part in moved.plain() for t in part.values() if isinstance(t, torch.Tensor)} == {"meta"}


def test_packing_refuses_what_is_no_partition() -> None:
    one = [np.arange(2), np.arange(2, 4)]
    with pytest.raises(UserError, match="each must be in one cluster"):
        pack(one, [np.array([0])])
    with pytest.raises(UserError, match="each must be in one cluster"):
        pack(one, [np.array([0, 1]), np.array([1])])
    with pytest.raises(UserError, match="token is in two samples"):
        pack([np.arange(2), np.arange(1, 3)], [np.array([0, 1])])
