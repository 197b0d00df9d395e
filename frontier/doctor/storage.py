"""A folder's file system: kind, space, and what a small file takes to write through to the disk and to read back."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from pathlib import Path

from frontier.doctor.checks import Check, error, ok, warning

PIECE = 4 << 20
SCARCE = 5 * 2**30
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


def look(name: str, folder: Path, size: int, *, needed: bool) -> list[Check]:
    """Checks `name` (space, kind) and `name`.write and .read (GB/s). `needed`: a folder that cannot be written is an ERROR."""
    judge = error if needed else warning
    try:
        state = os.statvfs(folder)
    except OSError as problem:
        return [judge(name, f"{folder}: {problem.strerror}", f"make {folder}, or name another folder")]
    system, free = kind(folder), state.f_bavail * state.f_frsize
    mend = "go to a folder that you may write to" if needed else "export TMPDIR=<a folder that you may write to>"
    try:
        write, read = measure(folder, size, limit_s=3.0)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "is full" if problem.errno == errno.ENOSPC else "is over its quota"
            return [judge(name, f"{folder} ({system}) {what}", "free some space", free / 2**30, "GiB")]
        return [judge(name, f"{folder} ({system}) cannot be written: {problem.strerror}", mend)]
    text = f"{folder}: {system}, {free / 2**30:.1f} GiB free"
    if free < SCARCE:
        first = warning(name, text, "free some space: a checkpoint takes 12 bytes a parameter", free / 2**30, "GiB")
    elif system in ("nfs", "nfs4") and needed:
        first = warning(name, f"{text}; NFS serves many ranks slowly", "run from scratch storage", free / 2**30, "GiB")
    else:
        first = ok(name, text, free / 2**30, "GiB")
    return [
        first,
        ok(f"{name}.write", f"{write:.2f} GB/s written through to the disk", write, "GB/s"),
        ok(f"{name}.read", f"{read:.2f} GB/s read by one process", read, "GB/s"),
    ]


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
