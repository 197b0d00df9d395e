"""One writer a directory: a lock that dies with its process, and a heartbeat where locks do not reach."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frontier.errors import UserError

CLAIM = ".writing"
_BEAT_S = 15.0
_STALE_S = 90.0


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process. Raises `UserError` where another live writer has it.

    The kernel's lock on `directory`/.writing ends with its holder, however that dies. Where a file system keeps locks to
    one host (or has none), the file names the holder's host, and its age tells whether that one is alive.
    """
    path = directory / CLAIM
    descriptor = _open_locked(path)
    try:
        _refuse_other_host(path, descriptor)
        content = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(
                f"{directory}: cannot be written ({error.strerror}): make room, or give another directory"
            ) from None
        over = threading.Event()

        def beat() -> None:
            while not over.wait(_BEAT_S):
                os.utime(descriptor)

        thread = threading.Thread(target=beat, name="claim", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written ({error.strerror}): give another directory") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise UserError(
                f"{path.parent}: another `frontier shards write` ({holder}) is writing there: wait for it, or give "
                "another directory"
            ) from None
        except OSError:
            return descriptor  # no locks on this file system: the heartbeat alone decides
        try:
            # The holder before us removes the file while it has the lock: ours must be the one that is there.
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"pid {int(found['pid'])} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "which has just begun"


def _refuse_other_host(path: Path, descriptor: int) -> None:
    try:
        host = json.loads(os.pread(descriptor, 4096, 0))["host"]
    except (ValueError, KeyError, TypeError):
        return
    age = time.time() - os.fstat(descriptor).st_mtime
    if host != socket.gethostname() and age < _STALE_S:
        raise UserError(
            f"{path.parent}: another `frontier shards write` ({_holder(descriptor)}) was writing there {age:.0f} s ago: "
            f"wait for it; if it is dead, run again in {_STALE_S - age:.0f} s"
        )
