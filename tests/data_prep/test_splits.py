"""Splits and order by place: blocks of ground, the gap, the leak check; and any plan partitions the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.places import EARTH_KM, blocks, curve_position, nearest_km, split_distances
from data_prep.plan import PlanOptions, make_plan
from data_prep.source import Band, ImageColumn, Listing, Source
from data_prep.splits import assign_splits
from frontier.data.sampler import Sampler
from frontier.errors import UserError


def listing(n: int, seed: int = 0, classes: int = 3, groups: int | None = None, places: bool = True) -> Listing:
    random = np.random.default_rng(seed)
    ids = [b"s%05d" % k for k in range(n)]
    where = np.stack([random.uniform(-180, 180, n), np.degrees(np.arcsin(random.uniform(-1, 1, n)))], 1)
    return Listing(
        ids,
        random.integers(0, classes, n).astype(np.int32),
        ids if groups is None else [b"g%d" % random.integers(groups) for _ in range(n)],
        [""] * n,
        tuple("abc"[:classes]),
        places=where if places else None,
    )


class Listed(Source):
    """A source that is only planned."""

    name = "listed"
    images = {"x": ImageColumn((1, 2, 2), "uint8", (Band("b"),))}  # noqa: RUF012

    def __init__(self, found: Listing) -> None:
        self.found = found

    def describe(self) -> dict[str, Any]:
        return {"kind": "listed"}

    def listing(self) -> Listing:
        return self.found

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        raise NotImplementedError


def haversine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    (lon1, lat1), (lon2, lat2) = np.radians(a).T[:, :, None], np.radians(b).T[:, None, :]
    h = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_KM * np.arcsin(np.sqrt(np.clip(h, 0, 1)))


def test_distances_equal_the_haversine_formula() -> None:
    places = listing(300).places
    assert places is not None
    found = nearest_km(places[:100], places[100:])
    assert np.allclose(found, haversine(places[:100], places[100:]).min(1), atol=1e-6)
    splits = np.array(["test"] * 100 + ["train"] * 200)
    told = split_distances(places, splits)["test-train"]
    assert told["nearest_km"] == pytest.approx(found.min(), abs=1e-3)


def test_blocks_are_about_as_large_as_asked_and_close_at_the_antimeridian() -> None:
    places = listing(40_000, seed=1).places
    assert places is not None
    names = blocks(places, 500.0)
    # The ground has 5.1e8 km², so about 2,040 blocks of 500 km; all sizes alike but at the poles.
    assert len(set(names)) == pytest.approx(4 * np.pi * EARTH_KM**2 / 500**2, rel=0.05)
    west, east = np.array([[-179.9999, 10.0]]), np.array([[180.0, 10.0]])
    assert blocks(west, 500.0) == blocks(east, 500.0)
    sizes = [
        haversine(p, p).max() for p in (places[[k for k, n in enumerate(names) if n == name]] for name in names[:60])
    ]
    assert max(sizes) <= 500 * 2**0.5 * 1.3


def test_blocks_go_whole_to_one_split_and_the_fraction_is_reached() -> None:
    found = listing(5000, seed=2)
    splits, check = assign_splits(found, 7, (0.1, 0.2), "place", 800.0)
    assert found.places is not None
    home: dict[bytes, str] = {}
    for block, split in zip(blocks(found.places, 800.0), splits, strict=True):
        assert home.setdefault(block, split) == split
    assert splits.count("test") == pytest.approx(1000, abs=20)
    assert splits.count("val") == pytest.approx(500, abs=20)
    assert check["by"] == "place" and set(check["distances"]) == {"test-train", "val-train", "test-val"}


def test_the_gap_keeps_training_samples_away() -> None:
    found = listing(3000, seed=3)
    splits, check = assign_splits(found, 0, (0.0, 0.1), "place", 1000.0, gap_km=150.0)
    assert found.places is not None
    kept = np.array(splits)
    assert check["left_out"] == (kept == "").sum() > 0
    distances = haversine(found.places[kept == "test"], found.places[kept == "train"])
    assert distances.min() >= 150
    assert check["distances"]["test-train"]["nearest_km"] == pytest.approx(distances.min(), abs=1e-3)


def test_refusals() -> None:
    with pytest.raises(UserError, match="knows no places"):
        assign_splits(listing(9, places=False), 0, (0, 0.5), "place")
    with pytest.raises(UserError, match="--gap-km"):
        assign_splits(listing(9, places=False), 0, (0, 0.5), gap_km=1)
    with pytest.raises(UserError, match="--block-km"):
        assign_splits(listing(9), 0, (0, 0.5), "place", 0.0)
    found = listing(9)
    assert found.places is not None
    found.places[4] = np.nan
    with pytest.raises(UserError, match="1 samples have no place, such as s00004"):
        assign_splits(found, 0, (0, 0.5), "place")
    with pytest.raises(UserError, match="--order place"):
        make_plan(Listed(listing(9, places=False)), PlanOptions(order="place"))


def test_the_curve_visits_every_cell_once_and_steps_to_a_neighbour() -> None:
    """The centres of a 64 x 64 grid, in the order of the curve: each step goes one cell up, down, left or right."""
    n = 64
    x, y = np.meshgrid(np.arange(n), np.arange(n))
    places = np.stack([(x.ravel() + 0.5) / n * 360 - 180, (y.ravel() + 0.5) / n * 180 - 90], 1)
    order = np.argsort(curve_position(places))
    steps = np.abs(np.diff(x.ravel()[order])) + np.abs(np.diff(y.ravel()[order]))
    assert (steps == 1).all()
    assert curve_position(np.array([[np.nan, 0.0]]))[0] > curve_position(places).max()


def test_order_by_place_keeps_neighbours_in_one_shard() -> None:
    found = listing(4000, seed=4)
    assert found.places is not None

    def spread(order: str) -> float:
        plan = make_plan(Listed(found), PlanOptions(order=order, samples_per_shard=50))
        assert found.places is not None
        return float(np.mean([np.std(found.places[list(shard.rows)], axis=0).mean() for shard in plan.shards]))

    assert spread("place") < spread("random") / 3


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 400),
    seed=st.integers(0, 5),
    groups=st.one_of(st.none(), st.integers(1, 50)),
    fractions=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    by=st.sampled_from(["class", "place"]),
    order=st.sampled_from(["random", "place"]),
    each=st.integers(1, 130),
)
def test_any_plan_partitions_the_samples(
    n: int,
    seed: int,
    groups: int | None,
    fractions: tuple[float, float],
    by: str,
    order: str,
    each: int,
) -> None:
    found = listing(n, seed, groups=groups)
    options = PlanOptions(seed, *fractions, split_by=by, block_km=3000, order=order, samples_per_shard=each)
    splits, _ = assign_splits(found, seed, fractions, by, 3000)
    if "train" not in splits:
        with pytest.raises(UserError, match="nothing is left to train on"):
            make_plan(Listed(found), options)
        return
    plan = make_plan(Listed(found), options)
    rows = [row for shard in plan.shards for row in shard.rows]
    assert sorted(rows) == list(range(n))
    assert len({shard.file for shard in plan.shards}) == len(plan.shards)
    assert all(1 <= len(shard.rows) <= each for shard in plan.shards)
    home: dict[bytes, str] = {}
    for shard in plan.shards:
        for row in shard.rows:
            assert home.setdefault(found.groups[row], shard.split) == shard.split
    assert make_plan(Listed(found), options).fingerprint == plan.fingerprint


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(8, 700),
    log_block=st.integers(0, 4),
    log_window=st.integers(0, 4),
    share=st.integers(1, 3),
    log_ranks=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_any_sampler_gives_every_sample_once_an_epoch_to_one_rank(
    samples: int, log_block: int, log_window: int, share: int, log_ranks: int, seed: int
) -> None:
    block, ranks = 1 << log_block, 1 << log_ranks
    window = min(block, 1 << log_window)
    batch = block // window * ranks * share
    if max(batch, block) > samples:
        return
    sampler = Sampler(samples, batch, block, window, seed)
    windows = -(-2 * samples // (batch * window))
    steps = range(windows * window)
    split = [[sampler.members(step, rank, ranks) for rank in range(ranks)] for step in steps]
    assert all(len(part) == batch // ranks for parts in split for part in parts)
    stream = np.concatenate([part for parts in split for part in parts])
    alone = np.concatenate([sampler.members(step) for step in steps])
    assert np.array_equal(stream, alone)
    seen = stream[stream[:, 0] == 0, 1]
    assert len(np.unique(seen)) == len(seen) == samples // block * block
