"""Chunked layouts: read outside HDF5 where that can be, and always the same numbers as through h5py."""

from __future__ import annotations

import os
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from frontier.data.chunks import DEFLATE, Chunks, find_chunks, fletcher32, overfull, read_chunk
from frontier.data.hdf5 import OpenShard
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from tests.data.sets import write_set

DIRECT = {
    "plain": {"chunks": 1},
    "plain of 3": {"chunks": 3},
    "gzip": {"chunks": 1, "compression": "gzip"},
    "gzip of 4, shuffle": {"chunks": 4, "compression": "gzip", "shuffle": True},
    "all": {"chunks": 1, "compression": "gzip", "shuffle": True, "fletcher32": True},
    "checksum": {"chunks": 2, "fletcher32": True},
    "shuffle": {"chunks": 2, "shuffle": True},
}
THROUGH_H5PY = {"lzf": {"chunks": 1, "compression": "lzf", "shuffle": True, "fletcher32": True}}


def values(dtype: str, n: int = 20) -> np.ndarray:
    """Smooth enough to compress, with an odd number of bytes for uint8."""
    random = np.random.default_rng(0)
    return (np.cumsum(random.integers(-3, 4, (n, 3, 5, 7)), axis=-1) + 100).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("layout", [*DIRECT, *THROUGH_H5PY])
def test_equal_to_what_was_stored(tmp_path: Path, layout: str, dtype: str) -> None:
    stored = values(dtype)
    how = (DIRECT | THROUGH_H5PY)[layout]
    shards = ShardSet(write_set(tmp_path / "s", {"image": (stored, "CHW")}, **how))
    assert np.array_equal(shards.read("image", 0, 20), stored)
    for start, stop in ((0, 1), (2, 9), (6, 8), (13, 20), (5, 5)):
        assert np.array_equal(shards.read("image", start, stop), stored[start:stop])
    places = np.random.default_rng(1).permutation(30)[:15]
    out = np.zeros((30, *stored.shape[1:]), dtype)
    shards.read("image", 3, 18, out, places)
    assert np.array_equal(out[places], stored[3:18])
    assert not out[np.setdiff1d(np.arange(30), places)].any(), "the rest is left alone"
    order = np.random.default_rng(2).integers(0, 20, 40)
    assert np.array_equal(shards.take("image", order), stored[order])
    assert (shards._shard(0)._chunks["image"] is not None) == (layout in DIRECT)


def test_chunks_that_cut_samples_and_holes_go_through_h5py(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver=("v110", "v110")) as file:
        cut = file.create_dataset("cut", data=values("uint8"), chunks=(2, 3, 5, 2))
        hole = file.create_dataset("hole", (8, 4), np.uint8, chunks=(2, 4))
        hole[0:4] = 1
        doubled = file.create_dataset("whole", data=np.ones((8, 4), np.uint8), chunks=(2, 4))
        assert find_chunks(cut) is None
        assert find_chunks(hole) is None
        assert find_chunks(doubled) is not None
        assert find_chunks(file.create_dataset("contiguous", data=np.ones(3))) is None


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 65535, 200001])
@pytest.mark.parametrize("fill", ["random", "zeros", "ones"])
def test_fletcher32_is_fletchers(size: int, fill: str) -> None:
    """Against the definition, word by word; and the sums never become 0 unless all is 0."""
    data = {
        "random": np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes(),
        "zeros": bytes(size),
        "ones": b"\xff" * size,
    }[fill]
    first = second = 0
    padded = data + b"\0" * (size % 2)
    for i in range(0, len(padded), 2):
        first += padded[i] << 8 | padded[i + 1]
        first = (first & 0xFFFF) + (first >> 16)
        second += first
        second = (second & 0xFFFF) + (second >> 16)
    assert fletcher32(data) == second << 16 | first


def test_damage_is_found(tmp_path: Path) -> None:
    """A flipped byte in stored data: by the checksum where there is one, by deflate's own otherwise."""
    for name, words in (("all", "checksum of chunk 0"), ("gzip", "chunk 0 cannot be decompressed")):
        path = write_set(tmp_path / name, {"image": (values("uint16"), "CHW")}, **DIRECT[name])
        shards = ShardSet(path)
        shards.read("image", 1, 2)
        chunks = shards._shard(0)._chunks["image"]
        assert chunks is not None
        with open(path / "train-00000.h5", "r+b") as file:
            file.seek(int(chunks.offsets[0]) + 20)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0x55]))
        with pytest.raises(UserError, match=f"train-00000.h5: {'the ' if name == 'all' else ''}{words}"):
            shards.read("image", 0, 1)
        assert np.array_equal(shards.read("image", 1, 7), values("uint16")[1:7])


def test_a_chunk_that_inflates_beyond_all_bounds_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 KB that deflate makes 20 MB of, in the place of a chunk of 210 bytes."""
    monkeypatch.setattr("frontier.data.chunks._HARMLESS", 1 << 20)
    deflater = zlib.compressobj(9)
    bomb = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(20)) + deflater.flush()
    (tmp_path / "bomb").write_bytes(bomb)
    where = np.zeros(1, np.int64)
    chunks = Chunks(1, 210, 2, (DEFLATE,), where, where + len(bomb), where)
    tracemalloc.start()
    try:
        with (
            open(tmp_path / "bomb", "rb") as file,
            pytest.raises(UserError, match="decodes to 218 bytes instead of 210"),
        ):
            read_chunk(file.fileno(), chunks, 0, np.empty(210, np.uint8), tmp_path / "bomb")
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


def test_what_stores_more_than_it_holds_is_refused_before_hdf5_inflates_it(tmp_path: Path) -> None:
    """In chunks that cut samples, which HDF5 reads; what does not compress at all is no such thing."""
    stored = {"image": {"shape": [3, 5, 7], "dtype": "uint8"}}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        image = file.create_dataset("image", data=values("uint8"), chunks=(2, 3, 5, 2), compression="gzip")
        noise = np.random.default_rng(0).integers(0, 256, (40, 1000), dtype=np.uint8)
        for filters in ({"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True, "compression": "gzip"}):
            assert not overfull(file.create_dataset(f"noise{len(file)}", data=noise, chunks=(1, 7), **filters))
        assert not overfull(image)
    out = np.empty((2, 3, 5, 7), np.uint8)
    OpenShard(tmp_path / "x.h5", 20, stored, {}).read_into("image", 0, 2, out)
    assert np.array_equal(out, values("uint8")[:2])
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["image"].id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(64 << 20)))
    with pytest.raises(UserError, match=r"'image' stores [0-9,]+ bytes, more than the [0-9,]+ that it holds"):
        OpenShard(tmp_path / "x.h5", 20, stored, {}).read_into("image", 0, 2, out)


@pytest.mark.parametrize("layout", ["all", "lzf"])
def test_survives_fork_and_threads(tmp_path: Path, layout: str) -> None:
    stored = values("uint16", 60)
    how = (DIRECT | THROUGH_H5PY)[layout]
    shards = ShardSet(write_set(tmp_path / "s", {"image": (stored, "CHW")}, **how), open_shards=2)
    assert np.array_equal(shards.read("image", 0, 60), stored)
    child = os.fork()
    if child == 0:
        os._exit(0 if not shards._open and np.array_equal(shards.read("image", 0, 60), stored) else 1)
    assert os.waitpid(child, 0)[1] == 0
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(r, stored[7:44]) for r in pool.map(lambda _: shards.read("image", 7, 44), range(24)))


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    path = write_set(tmp_path / "s", {"image": (values("uint8"), "CHW")}, **DIRECT["all"])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        shards = ShardSet(path)
        shards.read("image", 0, 20)
        shards.close()
    assert len(os.listdir("/proc/self/fd")) <= before


READ = """
import sys, hashlib
sys.modules["hdf5plugin"] = None if sys.argv[2] == "absent" else sys.modules.get("hdf5plugin")
if sys.modules["hdf5plugin"] is None and sys.argv[2] != "absent":
    del sys.modules["hdf5plugin"]
from frontier.data.shards import ShardSet
from frontier.errors import UserError
try:
    shards = ShardSet(sys.argv[1])
    print(hashlib.sha256(shards.read("image", 0, len(shards)).tobytes()).hexdigest())
except UserError as error:
    print(error)
"""


def run(*args: Any) -> str:
    import subprocess

    environment = {k: v for k, v in os.environ.items() if k != "HDF5_PLUGIN_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, args)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_plugin_filters_are_found_by_themselves(tmp_path: Path) -> None:
    import hashlib

    hdf5plugin = pytest.importorskip("hdf5plugin")
    stored = values("uint16")
    path = write_set(tmp_path / "s", {"image": (stored, "CHW")}, chunks=1, **hdf5plugin.Zstd(clevel=1))
    assert run(path, "present") == hashlib.sha256(stored.tobytes()).hexdigest()
    told = run(path, "absent")
    assert "train-00000.h5" in told and "install hdf5plugin" in told and "\n" not in told
