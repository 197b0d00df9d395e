"""The shard reader: values, order, laziness, forks and threads."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_prep.plan import PlanOptions
from data_prep.scenes import SceneSource
from data_prep.writer import write
from frontier.data.shards import ShardSet


@pytest.fixture(scope="module", params=["none", "lzf", "gzip"])
def scenes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / request.param
    source = SceneSource(24, seed=3, size=16, sensors=("rgb", "s1"))
    write(source, path, PlanOptions(test_fraction=0.25, samples_per_shard=5, compression=request.param))
    return path


def whole(path: Path, split: str, column: str) -> np.ndarray:
    """The same values through plain h5py."""
    parts = []
    for file in sorted(path.glob(f"{split}-*.h5")):
        with h5py.File(file, "r", locking=False) as opened:
            parts.append(opened[column][:])
    return np.concatenate(parts)


def test_values_equal_h5py(scenes: Path) -> None:
    shards = ShardSet(scenes)
    for column in ("image", "s1"):
        expected = whole(scenes, "train", column)
        assert len(shards) == len(expected) == 16
        assert np.array_equal(shards.read(column, 0, 16), expected)
        for start, stop in ((0, 0), (0, 1), (3, 11), (15, 16), (16, 16)):
            found = shards.read(column, start, stop)
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected[start:stop])
        order = np.random.default_rng(0).integers(0, 16, 40)
        assert np.array_equal(shards.take(column, order), expected[order])
        assert shards.take(column, []).shape == (0, *expected.shape[1:])
    for column in ("label", "sample_id", "lon", "time_start"):
        assert np.array_equal(shards.column(column), whole(scenes, "train", column))


def test_long_runs_equal_h5py(tmp_path: Path) -> None:
    """Runs above `LONG_RUN` take another way through the operating system."""
    write(SceneSource(8, size=128, sensors=("s2",)), tmp_path / "o", PlanOptions(samples_per_shard=5))
    shards = ShardSet(tmp_path / "o")
    assert np.array_equal(shards.read("s2", 0, 8), whole(tmp_path / "o", "train", "s2"))


def test_read_into_given_memory(scenes: Path) -> None:
    shards = ShardSet(scenes, "test")
    out = np.zeros((4, 3, 16, 16), np.uint8)
    assert shards.read("image", 2, 6, out) is out
    assert np.array_equal(out, whole(scenes, "test", "image")[2:6])
    assert np.array_equal(shards.take("image", [5, 2, 5, 3], out), whole(scenes, "test", "image")[[5, 2, 5, 3]])
    with pytest.raises(ValueError, match="wanted uint8"):
        shards.read("image", 0, 3, out)


def test_description(scenes: Path) -> None:
    shards = ShardSet(scenes)
    assert shards.image_columns == ["image", "s1"]
    assert len(shards.classes) == 8
    assert len(shards.fingerprint) == 64
    mean, std = shards.statistics("image")
    values = whole(scenes, "train", "image").astype(np.float64)
    assert mean.dtype == std.dtype == np.float32
    assert np.allclose(mean, values.mean((0, 2, 3)), rtol=1e-6)
    assert np.allclose(std, values.std((0, 2, 3)), rtol=1e-6)


def test_indices_outside(scenes: Path) -> None:
    shards = ShardSet(scenes)
    for start, stop in ((-1, 2), (0, 17), (5, 4)):
        with pytest.raises(IndexError):
            shards.read("image", start, stop)
    for indices in ([16], [-1]):
        with pytest.raises(IndexError):
            shards.take("image", indices)


def test_few_open_shards_suffice(scenes: Path) -> None:
    shards = ShardSet(scenes, open_shards=1)
    expected = whole(scenes, "train", "image")
    for index in (0, 15, 1, 14, 7):
        assert np.array_equal(shards.take("image", [index])[0], expected[index])
    assert len(shards._open) == 1


def test_descriptors_are_given_back(scenes: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        shards = ShardSet(scenes)
        shards.read("image", 0, len(shards))
        shards.close()
    del shards
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_survives_fork_and_pickling(scenes: Path) -> None:
    shards = ShardSet(scenes)
    expected = shards.read("image", 0, 16)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(shards.read("image", 0, 16), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(shards.read("image", 0, 16), expected)
    again = pickle.loads(pickle.dumps(shards))
    assert np.array_equal(again.read("image", 0, 16), expected)


def test_threads(scenes: Path) -> None:
    shards = ShardSet(scenes, open_shards=2)
    expected = shards.read("image", 0, 16)

    def work(seed: int) -> bool:
        order = np.random.default_rng(seed).integers(0, 16, 50)
        return np.array_equal(shards.take("image", order), expected[order])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))


def test_opening_reads_no_data(scenes: Path, tmp_path: Path) -> None:
    """Opening stays cheap: with the data gone but sizes right, only the structure is missed."""
    lazy = ShardSet(scenes, check=False)
    assert not lazy._open
    lazy.take("image", [0])
    assert len(lazy._open) == 1
