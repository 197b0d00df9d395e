"""Compression of shards: the codecs by name, and choosing one by measurement on the data itself.

A codec fits a chunk of one sample. `none` means no chunks: contiguous data, which the reader maps. Those of hdf5plugin
(the extra `hdf5`) need it where the shards are read as well; the manifest names the filters.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.names import BUILT_IN, CODECS
from data_prep.source import Source
from frontier.errors import UserError

_PROBE_BYTES = 32 << 20
_WORTH = 1.05
"""A codec must promise this much more than none: compression costs memory, and the plain layout is mapped."""


def dataset_options(codec: str, shape: Sequence[int]) -> dict[str, Any]:
    """Keyword arguments of `h5py.Group.create_dataset` for samples of `shape`. Raises `UserError` without hdf5plugin."""
    if codec == "none":
        return {}
    out: dict[str, Any] = {"chunks": (1, *shape), "fletcher32": True}
    if codec in ("gzip", "lzf"):
        return out | {"shuffle": True, "compression": codec}
    plugin = _plugin(codec)
    if codec == "bitshuffle-lz4":
        return out | dict(plugin.Bitshuffle(cname="lz4"))
    if codec == "blosc2-zstd":
        return out | dict(plugin.Blosc2(cname="zstd", clevel=5, filters=plugin.Blosc2.BITSHUFFLE))
    return out | {"shuffle": True} | dict(plugin.Zstd(3))


def filters(codec: str) -> list[str]:
    """What the manifest says of it, in the order of the pipeline."""
    if codec == "none":
        return []
    return [*(["shuffle"] if codec in ("gzip", "lzf", "zstd") else []), codec, "fletcher32"]


def _plugin(codec: str) -> Any:
    try:
        import hdf5plugin
    except ImportError:
        raise UserError(f"--compression {codec}: needs hdf5plugin: install the extra 'hdf5'") from None
    return hdf5plugin


def available() -> list[str]:
    """The codecs that this environment can write."""
    try:
        _plugin("")
    except UserError:
        return list(BUILT_IN)
    return list(CODECS)


def measure(source: Source, directory: Path, disk_mib_s: float | None = None) -> list[dict[str, Any]]:
    """Every codec tried on up to 32 MiB of samples spread over `source`, best promise first.

    By codec: ratio (raw bytes / stored bytes), write_mib_s and decode_mib_s (raw MiB/s of one core), and loader_mib_s, the
    smaller of decode_mib_s and disk rate x ratio: what a reader that overlaps both can give. The disk's rate is
    `disk_mib_s`, or is measured in `directory`, past the file system's cache as far as the system lets us.
    """
    count = len(source.listing().ids)
    wanted = max(1, min(count, _PROBE_BYTES // max(1, source.sample_bytes)))
    rows = np.unique(np.linspace(0, count - 1, wanted).astype(np.int64)).tolist()
    loaded = source.load(rows)
    data = {name: loaded[name] for name in (*source.images, *source.arrays)}
    raw = sum(values.nbytes for values in data.values())
    disk = disk_mib_s if disk_mib_s is not None else _disk_rate(directory)
    out = []
    for codec in available():
        stored, encode, decode = _try(codec, data)
        write = raw / (1 << 20) / max(encode, 1e-9)
        rate = raw / (1 << 20) / max(decode, 1e-9)
        ratio = raw / stored
        out.append(
            {
                "codec": codec,
                "ratio": round(ratio, 3),
                "write_mib_s": round(write, 1),
                "decode_mib_s": round(rate, 1),
                "loader_mib_s": round(min(rate, disk * ratio), 3),
                "disk_mib_s": round(disk, 3),
            }
        )
    return sorted(out, key=lambda row: -row["loader_mib_s"] * (_WORTH if row["codec"] == "none" else 1))


def _try(codec: str, data: dict[str, np.ndarray]) -> tuple[int, float, float]:
    """(stored bytes, seconds to write, seconds to read back) all samples one by one, in memory."""
    begun = time.perf_counter()
    # Without the cache of decoded chunks, or nothing would be decoded.
    with h5py.File("codec", "w", driver="core", backing_store=False, libver=("v110", "v110"), rdcc_nbytes=0) as file:
        for name, values in data.items():
            options = dataset_options(codec, values.shape[1:])
            dataset = file.create_dataset(name, values.shape, values.dtype, **options)
            for k in range(len(values)):
                dataset[k] = values[k]
        file.flush()
        encode = time.perf_counter() - begun
        stored = sum(file[name].id.get_storage_size() for name in data)
        decode = 0.0
        for name, values in data.items():
            one = np.empty(values.shape[1:], values.dtype)
            dataset = file[name]
            passes = []
            for _ in range(3):  # the best: what disturbs a pass is not the codec
                begun = time.perf_counter()
                for k in range(len(values)):
                    dataset.read_direct(one, np.s_[k])
                passes.append(time.perf_counter() - begun)
            decode += min(passes)
    return max(stored, 1), encode, decode


def _disk_rate(directory: Path) -> float:
    """MiB/s of reading 64 MiB that were just written to `directory`, after asking the system to drop them."""
    path = directory
    while not path.is_dir():
        path = path.parent
    name = path / f".codec-probe-{os.getpid()}"
    size = 64 << 20
    try:
        with open(name, "wb", buffering=0) as file:
            file.write(os.urandom(1 << 20) * (size >> 20))
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(1 << 20)
        begun = time.perf_counter()
        with open(name, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        return size / (1 << 20) / (time.perf_counter() - begun)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): give another directory") from None
    finally:
        with suppress(OSError):  # a read-only file system refuses it even where there is nothing
            name.unlink()
