"""Writing, checking and recording one shard file. One writer owns a shard from its first byte to its name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.codec import dataset_options
from data_prep.plan import PlannedShard
from data_prep.source import Source
from data_prep.statistics import block_samples, column_statistics, merge_statistics, sample_checksums
from frontier.data.hdf5 import OpenShard
from frontier.errors import TransientError, UserError

DONE_SCHEMA = "frontier-shard-done/1"
ALIGNMENT = 4096
"""Image data begins at a multiple of the page size, so that maps and direct reads need no shifting."""


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs, besides the source, to write one shard."""

    shard: PlannedShard
    ids: tuple[bytes, ...]
    labels: np.ndarray
    columns: dict[str, str]
    images: dict[str, Any]
    arrays: dict[str, Any]
    compression: str
    fingerprint: str
    directory: str


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other live writer uses."""
    return path.with_name(f".{path.name}.tmp-{socket.gethostname()}-{os.getpid()}")


def remove_stale(directory: Path) -> int:
    """Remove what killed writers of this host left behind; files of live processes stay. Returns how many."""
    removed = 0
    for path in list(directory.glob(".*.tmp-*")) + list(directory.glob("*/.*.tmp-*")):
        host, _, pid = path.name.rpartition(".tmp-")[2].rpartition("-")
        if host != socket.gethostname() or not pid.isdigit() or _alive(int(pid)):
            continue
        path.unlink(missing_ok=True)
        removed += 1
    return removed


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def done_path(shard: Path) -> Path:
    """The record beside a finished shard."""
    return shard.with_name(shard.name + ".done")


def write_shard(task: ShardTask, source: Source) -> dict[str, Any]:
    """Write one shard under a temporary name, sync it, read it back, rename it, and record it. Returns the record."""
    path = Path(task.directory) / task.shard.file
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        parts = _write_file(temporary, task, source)
        _sync(temporary)
        checked = _read_back(temporary, task)
        record = {
            "schema": DONE_SCHEMA,
            "plan": task.fingerprint,
            "file": task.shard.file,
            "split": task.shard.split,
            "samples": len(task.shard.rows),
            **checked,
            "statistics": {
                name: merge_statistics(parts[name], len(spec["bands"])) for name, spec in task.images.items()
            },
        }
        os.replace(temporary, path)
        write_json(done_path(path), record, indent=None)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return record


def disk_error(error: OSError, path: Path) -> UserError:
    """What the disk refused, in a line. HDF5 gives the system's error number as text."""
    text = " ".join(str(error).split())
    for number in (errno.ENOSPC, errno.EDQUOT):
        if error.errno == number or f"errno = {number}," in text:
            what = "the disk is full" if number == errno.ENOSPC else "the quota is used up"
            return UserError(
                f"{path.parent}: {what} while {path.name} was written: make room and run the same command again: what "
                "is finished stays"
            )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG):
        return UserError(
            f"{path}: cannot be written ({error.strerror}): give another directory, or mend the access rights"
        )
    if error.errno == errno.EISDIR:
        return UserError(f"{path}: is a folder, where a file belongs: remove it and run the same command again")
    return TransientError(f"{path}: cannot be written ({text}): run the same command again")


def _write_file(path: Path, task: ShardTask, source: Source) -> dict[str, list[dict[str, Any]]]:
    # Chunks are packed: rounded up to pages, small ones would lose what compression gained.
    aligned = {"alignment_threshold": ALIGNMENT, "alignment_interval": ALIGNMENT} if task.compression == "none" else {}
    # No chunk cache: what is written is written, and nothing but metadata is left for the end.
    with (
        _reserve(path, task) as free_reserve,
        h5py.File(path, "w", libver=("v110", "v110"), locking=False, rdcc_nbytes=0, **aligned) as file,
    ):
        try:
            return _fill(file, task, source)
        except OSError:
            free_reserve()
            raise


@contextmanager
def _reserve(path: Path, task: ShardTask) -> Iterator[Callable[[], None]]:
    """Disk space beside the shard, to be given up when the disk is full.

    HDF5 must write its metadata when it closes a file; where it cannot, it keeps the file, and the process ends in a
    segmentation fault instead of a message.
    """
    reserve = path.with_name(path.name.replace(".tmp-", ".reserve.tmp-", 1))
    chunks = len(task.shard.rows) * len(task.images | task.arrays) if task.compression != "none" else 0
    try:
        reserve.write_bytes(bytes((256 << 10) + 64 * chunks))
        yield lambda: reserve.unlink(missing_ok=True)
    finally:
        reserve.unlink(missing_ok=True)


def _fill(file: h5py.File, task: ShardTask, source: Source) -> dict[str, list[dict[str, Any]]]:
    """Write every column; returns the statistics of every input, block by block."""
    count = len(task.shard.rows)
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in task.images}
    datasets = {}
    stored = task.images | task.arrays
    for name, spec in stored.items():
        shape = tuple(spec["shape"])
        how = dataset_options(task.compression, shape)
        datasets[name] = file.create_dataset(name, (count, *shape), spec["dtype"], track_times=False, **how)
    values = {name: np.zeros(count, dtype) for name, dtype in task.columns.items()}
    values["sample_id"][:] = task.ids
    values["label"][:] = task.labels
    for start, stop, block in blocks(task.shard.rows, source):
        for name, spec in stored.items():
            array = block[name] = np.ascontiguousarray(block[name])
            if array.shape != (stop - start, *spec["shape"]) or array.dtype != np.dtype(spec["dtype"]):
                raise ValueError(f"{name}: the source gave {array.dtype} {array.shape}, planned {spec}")
            datasets[name][start:stop] = array
        for name in task.images:
            parts[name].append(column_statistics(name, task.images, task.arrays, block))
        for name in source.columns:
            values[name][start:stop] = block[name]
        values["crc32"][start:stop] = sample_checksums({name: block[name] for name in stored})
    for name in sorted(values):
        file.create_dataset(name, data=values[name], track_times=False)
    file.attrs["fingerprint"] = np.bytes_(task.fingerprint)
    file.flush()
    return parts


def stored_block(stored: dict[str, Any]) -> int:
    """Samples of a block of what the manifest calls images and arrays: as many as the writer takes at once."""
    return block_samples(
        sum(int(np.prod(spec["shape"])) * np.dtype(spec["dtype"]).itemsize for spec in stored.values())
    )


def blocks(rows: tuple[int, ...], source: Source) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """(start, stop, loaded columns) over `rows`, in pieces whose size only the data decides."""
    size = block_samples(source.sample_bytes)
    for start in range(0, len(rows), size):
        stop = min(start + size, len(rows))
        yield start, stop, source.load(rows[start:stop])


def _read_back(path: Path, task: ShardTask) -> dict[str, Any]:
    """Open as the reader does and compare every sample's checksum; returns {"bytes", "sha256"}."""
    count = len(task.shard.rows)
    stored = task.images | task.arrays
    shard = OpenShard(path, count, stored, task.columns)
    try:
        wrong = wrong_samples(shard, stored)
        if len(wrong) or shard.arrays["sample_id"][:].tolist() != list(task.ids):
            raise UserError(
                f"shard {path}: what was read back differs from what was written (first at sample "
                f"{wrong[0] if len(wrong) else 0}): the disk or memory is faulty; write elsewhere"
            )
    finally:
        shard.close()
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def wrong_samples(shard: OpenShard, stored: dict[str, Any]) -> np.ndarray:
    """Indices of the samples whose bytes, over all inputs and arrays, do not give their stored checksum."""
    expected = np.asarray(shard.arrays["crc32"][:])
    wrong = np.zeros(len(expected), bool)
    size = stored_block(stored)
    for start in range(0, len(expected), size):
        piece = slice(start, start + size)
        found = sample_checksums({name: np.asarray(shard.arrays[name][piece]) for name in stored})
        wrong[piece] = found != expected[piece]
    return np.flatnonzero(wrong)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finished_record(wanted: tuple[str, str, int, str]) -> dict[str, Any] | None:
    """The record of a shard that is whole and of this plan, else None: missing, torn, changed, of another plan.

    `wanted` = (directory, file, samples, fingerprint of the plan).
    """
    directory, file, samples, fingerprint = wanted
    path = Path(directory) / file
    try:
        record = json.loads(done_path(path).read_bytes())
        if (
            record["schema"] != DONE_SCHEMA
            or record["plan"] != fingerprint
            or record["file"] != file
            or record["samples"] != samples
            or record["bytes"] != path.stat().st_size
            or record["sha256"] != file_sha256(path)
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON atomically: temporary name, sync, rename, sync of the directory."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=indent) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
