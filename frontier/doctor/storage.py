"""A folder's file system: kind, space, and what a small file takes to write through to the disk and to read back."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

from frontier.doctor.checks import Check, error, ok, warning

PIECE = 4 << 20
SCARCE = 5 * 2**30
"""Less than this is a WARNING, bytes."""
FULL, FULL_PART = 2**30, 0.05
"""Nearly full, an ERROR: less than the smaller of both is free (bytes; part of the file system)."""
WHY = {
    "working_dir": "free some space: a checkpoint takes 12 bytes a parameter",
    "local": "remove what earlier jobs left there, stage less, or leave the node out: environment and shards are copied there",
}
NETWORK = ("lustre", "nfs", "nfs4", "gpfs", "beegfs", "ceph", "wekafs", "daos")


def kind(folder: Path) -> str:
    """Type of the mounted file system that holds `folder`, from /proc/mounts; "unknown" elsewhere."""
    folder = folder.resolve()
    best, found = -1, "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, name, *_ = line.split()
            mount = mount.replace("\\040", " ")
            if (folder == Path(mount) or Path(mount) in folder.parents) and len(mount) >= best:
                best, found = len(mount), name
    return found


def measure(folder: Path, size: int, limit_s: float) -> tuple[float, float]:
    """(GB/s written and synchronised, GB/s read) of one file of up to `size` bytes; writing stops after `limit_s`.

    The file is removed from the page cache before it is read, where the kernel agrees. Raises OSError.
    """
    piece = os.urandom(PIECE)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as handle:
        written, start = 0, time.perf_counter()
        while written < size and time.perf_counter() - start < limit_s:
            written += handle.write(piece)
        os.fsync(handle.fileno())
        write_s = time.perf_counter() - start
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        handle.seek(0)
        read, start = 0, time.perf_counter()
        while (got := len(handle.read(PIECE))) and time.perf_counter() - start < limit_s:
            read += got
        read_s = time.perf_counter() - start
    return written / write_s / 1e9, read / read_s / 1e9


def nearly_full(free: int, total: int) -> bool:
    return free < min(FULL, FULL_PART * total)


def look(name: str, folder: Path, size: int, *, needed: bool) -> list[Check]:
    """Checks `name` (space, kind) and `name`.write and .read (GB/s).

    A file system that is nearly full is an ERROR; a folder that is not there or cannot be written is one where it is `needed`.
    """
    judge = error if needed else warning
    try:
        state = os.statvfs(folder)
    except OSError as problem:
        return [
            judge(name, f"{folder}: {problem.strerror}", f"make {folder}, name another folder, or leave the node out")
        ]
    system, free, total = kind(folder), state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
    space = WHY.get(name, "free some space, or leave the node out")
    try:
        write, read = measure(folder, size, limit_s=3.0)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "is full" if problem.errno == errno.ENOSPC else "is over its quota"
            return [error(name, f"{folder} ({system}) {what}", space, free / 2**30, "GiB")]
        mend = {
            "working_dir": "go to a folder that you may write to",
            "tmpdir": "export TMPDIR=<a folder that you may write to>",
        }.get(name, f"make {folder} writable, or leave the node out")
        return [judge(name, f"{folder} ({system}) cannot be written: {problem.strerror}", mend)]
    text = f"{folder}: {system}, {free / 2**30:.1f} GiB free"
    if nearly_full(free, total):
        full = f"{folder} ({system}) is nearly full: {free / 2**20:.0f} of {total / 2**20:.0f} MiB free"
        first = error(name, full, space, free / 2**30, "GiB")
    elif free < SCARCE:
        first = warning(name, text, space, free / 2**30, "GiB")
    elif system in ("nfs", "nfs4") and needed:
        first = warning(name, f"{text}; NFS serves many ranks slowly", "run from scratch storage", free / 2**30, "GiB")
    else:
        first = ok(name, text, free / 2**30, "GiB")
    return [
        first,
        ok(f"{name}.write", f"{write:.2f} GB/s written through to the disk", write, "GB/s"),
        ok(f"{name}.read", f"{read:.2f} GB/s read by one process", read, "GB/s"),
    ]


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Loaders with workers, and NCCL inside a node, use it."""
    if not folder.exists():
        return ok("shared_memory", f"no {folder} here")
    try:
        state = os.statvfs(folder)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as handle:
            handle.write(b"x")
    except OSError as problem:
        mend = "remove what others left there (ls -l /dev/shm), or leave the node out"
        return error("shared_memory", f"{folder} cannot be written: {problem.strerror}", mend)
    free, total = state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
    text = f"{folder} has {free / 2**30:.2f} of {total / 2**30:.2f} GiB free"
    if nearly_full(free, total):
        mend = "remove what others left there (ls -l /dev/shm), or leave the node out"
        return error("shared_memory", f"{text}: nearly full", mend, free / 2**30, "GiB")
    if free < 2**30:
        mend = "docker run --shm-size=8g, or data.workers=0: loaders with workers and NCCL use it"
        return warning("shared_memory", text, mend, free / 2**30, "GiB")
    return ok("shared_memory", text, free / 2**30, "GiB")


def free_gib(folder: Path | None) -> float | None:
    """Space of a folder; None where it cannot be told."""
    try:
        return shutil.disk_usage(folder).free / 2**30 if folder is not None else None
    except OSError:
        return None


def locking(env: dict[str, str], folder: Path) -> list[Check]:
    """HDF5 locks files that it opens; network file systems without `flock` refuse."""
    if kind(folder) in NETWORK and env.get("HDF5_USE_FILE_LOCKING", "").upper() not in ("FALSE", "0", "BEST_EFFORT"):
        return [
            warning(
                "env.HDF5_USE_FILE_LOCKING",
                f"unset on {kind(folder)}: opening shards fails where the mount has no flock",
                "export HDF5_USE_FILE_LOCKING=FALSE",
            )
        ]
    return []
