"""The loader's promises: what the sampler says, from the right places, in memory that nobody else writes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from frontier.data.loader import Batch, Loader
from frontier.data.sampler import Sampler
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from tests.data.sets import write_set

COUNT = 103


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 255, (COUNT, 3, 32, 32), dtype=np.uint8),
        "series": random.integers(0, 60000, (COUNT, 4, 5), dtype=np.uint16),
        "series_mask": random.integers(0, 2, (COUNT, 4), dtype=np.uint8),
        "lon": random.uniform(-180, 180, COUNT),
        "label": random.integers(-1, 9, COUNT).astype(np.int32),
        "sample_id": np.array([f"{i:04d}".encode() for i in range(COUNT)]),
    }


@pytest.fixture(
    scope="module", params=[{}, {"chunks": 1, "compression": "gzip", "shuffle": True}], ids=["plain", "gzip"]
)
def shards(
    request: pytest.FixtureRequest, stored: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_set(
        tmp_path_factory.mktemp("set"),
        {"image": (stored["image"], "CHW"), "series": (stored["series"], "TC")},
        arrays={"series_mask": (stored["series_mask"], "T")},
        columns={name: stored[name] for name in ("lon", "label", "sample_id")},
        masks={"series": "series_mask"},
        per_shard=30,
        **request.param,
    )


COLUMNS = ("image", "series", "series_mask", "lon", "label")


def take(loader: Loader, first: int, steps: int) -> list[Batch]:
    batches = loader.batches(first)
    found = [next(batches) for _ in range(steps)]
    loader.close()
    return found


@pytest.mark.parametrize(("block", "window"), [(8, 8), (8, 2), (1, 1)])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_column_is_that_of_the_members(
    shards: Path, stored: dict[str, np.ndarray], block: int, window: int, workers: int
) -> None:
    """Over several epochs, so also where the circle closes in the middle of a block."""
    sampler = Sampler(COUNT, 16, block, window, seed=4)
    for rank in range(2):
        for step, batch in enumerate(take(Loader(ShardSet(shards), COLUMNS, sampler, rank, 2, workers), 3, 25), 3):
            wanted = sampler.members(step, rank, 2)
            assert np.array_equal(batch.members, wanted[np.argsort(wanted[:, 1], kind="stable")])
            for name in COLUMNS:
                assert np.array_equal(batch.columns[name], stored[name][batch.members[:, 1]]), (step, name)
            assert batch.images is batch.columns["image"]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_gathered_and_read_windows_are_the_same(
    shards: Path, stored: dict[str, np.ndarray], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a window's blocks are read or its batches gathered, and whatever the window before did; also from within a window."""
    sampler, first = Sampler(COUNT, 16, 8, 4, seed=4), 6
    there = ShardSet.in_cache
    turns: dict[str, list[Batch]] = {}
    for way in ("as it is", "never", "now and then"):
        asked = iter([False, True, True, False, False, True, False, True] * 9)
        now_and_then = lambda *of, asked=asked: next(asked) and there(*of)  # noqa: E731
        found = {"as it is": there, "never": lambda *_: False, "now and then": now_and_then}[way]
        monkeypatch.setattr(ShardSet, "in_cache", found)
        turns[way] = take(Loader(ShardSet(shards), COLUMNS, sampler, 0, 1, workers), first, 40)
    for step, of_ways in enumerate(zip(*turns.values(), strict=True), first):
        wanted = sampler.members(step)
        for batch in of_ways:
            assert np.array_equal(batch.members, wanted[np.argsort(wanted[:, 1], kind="stable")])
            for name in COLUMNS:
                assert np.array_equal(batch.columns[name], stored[name][batch.members[:, 1]]), (step, name)


def test_only_what_is_in_the_cache_as_it_is_wanted_is_gathered(
    shards: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    opened = ShardSet(shards)
    assert opened.in_cache("image", np.array([0, 50, COUNT - 1])) == ("plain" in request.node.name)
    monkeypatch.setattr("os.preadv", lambda *_: (_ for _ in ()).throw(BlockingIOError))
    assert not ShardSet(shards).in_cache("image", np.array([0]))
    monkeypatch.setattr("os.preadv", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    assert not ShardSet(shards).in_cache("image", np.array([0]))


def test_a_shard_cut_while_its_batches_are_gathered_is_named(shards: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    batches = Loader(ShardSet(copy), "image", Sampler(COUNT, 8, 4, 4, 0), 0, 1, 0).batches(0)
    next(batches)
    for file in copy.glob("*.h5"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 8])
    with pytest.raises(UserError, match="truncated|ends early"):
        list(itertools.islice(batches, 30))


def test_one_name_is_one_column(shards: Path, stored: dict[str, np.ndarray]) -> None:
    loader = Loader(ShardSet(shards), "series", Sampler(COUNT, 8, 4, 4, 0), 0, 1, 1)
    (batch,) = take(loader, 0, 1)
    assert list(batch.columns) == ["series"]
    assert batch.images.dtype == torch.uint16
    assert np.array_equal(batch.images, stored["series"][batch.members[:, 1]])


@pytest.mark.parametrize("keep", ["batches", "views"])
def test_memory_that_somebody_holds_is_not_written(shards: Path, stored: dict[str, np.ndarray], keep: str) -> None:
    """All batches, or a slice of each, kept over many windows."""
    loader = Loader(ShardSet(shards), "image", Sampler(COUNT, 8, 4, 4, 0), 0, 1, 2)
    held, batches = [], loader.batches(0)
    for _ in range(40):
        batch = next(batches)
        held.append((batch.members.numpy().copy(), batch.images if keep == "batches" else batch.images[2:5, 1]))
    loader.close()
    for members, images in held:
        expected = stored["image"][members[:, 1]]
        assert np.array_equal(images, expected if keep == "batches" else expected[2:5, 1])


def test_memory_is_used_again(shards: Path) -> None:
    loader = Loader(ShardSet(shards), "image", Sampler(COUNT, 8, 4, 4, 0), 0, 1, 1)
    for _, batch in zip(range(40), loader.batches(0), strict=False):
        del batch
    loader.close()
    assert sum(memory.rows for memory in loader._memories) <= 3 * 4 * 8  # three windows


def test_supply_counts_what_was_read(shards: Path) -> None:
    loader = Loader(ShardSet(shards), "image", Sampler(COUNT, 8, 4, 4, 0), 0, 1, 0)
    assert loader.supply().samples_per_s is None
    take(loader, 0, 8)
    supply = loader.supply()
    assert (supply.samples, supply.bytes, supply.threads) == (64, 64 * 3 * 32 * 32, 1)
    assert supply.samples_per_s == pytest.approx(64 / supply.seconds)


def test_refusals(shards: Path) -> None:
    sampler = Sampler(COUNT, 8, 4, 4, 0)
    with pytest.raises(UserError, match="'sample_id' is of type .* only numbers"):
        Loader(ShardSet(shards), ("image", "sample_id"), sampler, 0, 1, 0)
    with pytest.raises(UserError, match="no image column 'imag'.*did you mean image"):
        Loader(ShardSet(shards), "imag", sampler, 0, 1, 0)


def test_a_damaged_shard_stops_the_batches(shards: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    opened = ShardSet(copy)
    for file in copy.glob("*.h5"):
        file.write_bytes(b"\0" * (file.stat().st_size // 2))
    with pytest.raises(UserError, match="truncated"):
        take(Loader(opened, "image", Sampler(COUNT, 8, 4, 4, 0), 0, 1, 2), 0, 1)
