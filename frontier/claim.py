"""One worker a directory: a lock that dies with its process, and a heartbeat where locks do not reach."""

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


class HeldError(UserError):
    """Another live process has the directory."""


@contextmanager
def claimed(directory: Path, name: str = CLAIM, who: str = "`frontier shards write`") -> Iterator[None]:
    """Hold `directory` for this process; `who` says in messages what kind of process holds it.

    The kernel's lock on `directory`/`name` ends with its holder, however that dies. Where a file system keeps locks to
    one host (or has none), the file names the holder's host, and its age tells whether that one is alive.

    Raises:
        HeldError: another live process has it.
        UserError: the directory cannot be written.
    """
    path = directory / name
    descriptor = _open_locked(path, who)
    try:
        _refuse_other_host(path, descriptor, who)
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


def _open_locked(path: Path, who: str) -> int:
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
            raise HeldError(
                f"{path.parent}: another {who} ({holder}) is writing there: wait for it, or give another directory"
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


def _refuse_other_host(path: Path, descriptor: int, who: str) -> None:
    try:
        host = json.loads(os.pread(descriptor, 4096, 0))["host"]
    except (ValueError, KeyError, TypeError):
        return
    age = time.time() - os.fstat(descriptor).st_mtime
    if host != socket.gethostname() and age < _STALE_S:
        raise HeldError(
            f"{path.parent}: another {who} ({_holder(descriptor)}) was writing there {age:.0f} s ago: "
            f"wait for it; if it is dead, run again in {_STALE_S - age:.0f} s"
        )
