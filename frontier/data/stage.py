"""Node-local copies of shards: each node copies what it reads once, before training, and reads it there.

A copy is made under a temporary name while its sha256 is computed, compared with the manifest's, and renamed: a name without
a leading dot is a whole shard. What is there already and right stays; what does not fit, or cannot be written, is read
from where it was. Folder: STAGE/NAME-FINGERPRINT, so that several data sets and runs share one stage.

A source or a disk that hangs is given up: whatever touches it runs in a thread that may be left behind.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from frontier.data.shards import ShardSet
from frontier.errors import UserError

COPIES = 4
"""Shards copied side by side."""
PIECE = 8 << 20
SPARE = 64 << 20
"""Bytes that stay free on the stage's disk."""
PATIENCE_S = 120.0
"""A copy that gets no piece further for so long is given up, and no other is begun."""

T = TypeVar("T")


class Hung(Exception):
    """Something went on for longer than it may without progress."""


def bounded(action: Callable[[Callable[[], None]], T], patience_s: float, what: str) -> T:
    """`action(beat)`, which calls `beat` at every sign of progress; returns or raises what it does.

    Raises:
        Hung: no beat for `patience_s`. The thread is left behind (a process in a hung read cannot be interrupted); should it
            wake, its next beat ends it.
    """
    last, ended, given_up = [time.monotonic()], threading.Event(), threading.Event()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def beat() -> None:
        if given_up.is_set():
            raise Hung(what)
        last[0] = time.monotonic()

    def work() -> None:
        try:
            outcome.append(action(beat))
        except BaseException as error:
            failure.append(error)
        ended.set()

    threading.Thread(target=work, name="stage", daemon=True).start()
    while not ended.wait(max(0.05, min(1.0, patience_s / 4))):
        if time.monotonic() - last[0] > patience_s:
            given_up.set()
            raise Hung(f"no progress for {patience_s:.0f} s {what}")
    if failure:
        raise failure[0]
    return outcome[0]


@dataclass
class Staged:
    """What a node has: `paths` by shard file, of those that are there and right; why others are not (`left`, the gravest
    first), and whether that is a failure rather than a want of room."""

    folder: Path
    paths: dict[str, Path] = field(default_factory=dict)
    copied: int = 0
    kept: int = 0
    bytes: int = 0
    seconds: float = 0.0
    left: list[str] = field(default_factory=list)
    failed: bool = False

    def line(self, shards: int) -> str:
        """For a person."""
        rest = shards - len(self.paths)
        rate = f", {self.bytes / 2**20 / self.seconds:.0f} MiB/s" if self.bytes and self.seconds else ""
        text = (
            f"{socket.gethostname()}: staged {len(self.paths)} of {shards} shards in {self.folder}: {self.copied} copied "
            f"({self.bytes / 2**30:.2f} GiB, {self.seconds:.1f} s{rate}), {self.kept} there already"
        )
        return text + (f", {rest} read from the origin ({self.left[0]})" if rest and self.left else "")


def stage_root(text: str) -> Path:
    """`data.stage` with the environment's variables and `~` filled in. Raises `UserError` where one is not set."""
    path = os.path.expanduser(os.path.expandvars(text))
    unset = re.search(r"\$\{?\w+\}?", path)
    if unset:
        raise UserError(
            f"data.stage={text}: {unset.group()} is not set on {socket.gethostname()}: set it, or give a path"
        )
    return Path(path)


def stage_folder(root: Path, shards: ShardSet) -> Path:
    """Where this data set's copies lie."""
    name = re.sub(r"[^\w.-]+", "_", shards.manifest["name"])[:60] or "shards"
    return root / f"{name.lstrip('.') or 'shards'}-{shards.fingerprint[:16]}"


def stage(shards: ShardSet, root: Path, limit: int | None = None, patience_s: float = PATIENCE_S) -> Staged:
    """Copy the shards of the split to `root`, the first that fit in `limit` bytes and in the free space.

    Never raises for what the stage's disk or the origin do, never leaves half a shard under its own name, and never waits
    longer than `patience_s` for a copy that does not get on.
    """
    begun = time.perf_counter()
    staged = Staged(stage_folder(root, shards))
    try:
        chosen = bounded(lambda _: _choose(shards, staged, limit), patience_s, f"at {staged.folder}")
    except (OSError, Hung) as error:
        staged.left.append(f"{staged.folder}: {error.strerror}" if isinstance(error, OSError) else str(error))
        staged.failed = True
        return staged
    hung = threading.Event()

    def place(entry: dict[str, Any]) -> tuple[bool, str | None]:
        """(whether it was copied, why it could not be)"""
        if hung.is_set():
            return False, ""
        source, target = shards.path / entry["file"], staged.folder / entry["file"]
        try:
            return bounded(
                lambda beat: _place(source, target, entry, beat), patience_s, f"copying {source} to {staged.folder}"
            ), None
        except Hung as error:
            hung.set()
            return False, str(error)
        except OSError as error:
            return False, f"{error.filename or staged.folder}: {error.strerror or error}"
        except UserError as error:
            return False, str(error)

    with ThreadPoolExecutor(COPIES, "stage") as pool:
        for entry, (copied, why) in zip(chosen, pool.map(place, chosen), strict=True):
            if why is not None:
                if why:
                    staged.left.insert(0, why)
                staged.failed = True
                continue
            staged.paths[entry["file"]] = staged.folder / entry["file"]
            staged.copied += copied
            staged.kept += not copied
            staged.bytes += entry["bytes"] if copied else 0
    staged.seconds = time.perf_counter() - begun
    return staged


def _choose(shards: ShardSet, staged: Staged, limit: int | None) -> list[dict[str, Any]]:
    """The entries to have in the stage; why the others are not goes to `staged.left`. Raises OSError."""
    staged.folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(staged.folder)
    free = shutil.disk_usage(staged.folder).free - SPARE
    chosen: list[dict[str, Any]] = []
    room = limit
    for entry in shards.entries:
        target = staged.folder / entry["file"]
        new = entry["bytes"] if not _size_is(target, entry["bytes"]) else 0
        if new > free or (room is not None and entry["bytes"] > room):
            what = "data.stage_gib" if room is not None and entry["bytes"] > room else "the free space"
            staged.left.append(f"{what} is used up")
            break
        free -= new
        room = None if room is None else room - entry["bytes"]
        chosen.append(entry)
    return chosen


def _size_is(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _place(source: Path, target: Path, entry: dict[str, Any], beat: Callable[[], None]) -> bool:
    """Make sure that `target` is the shard; whether it had to be copied. Raises OSError, UserError, Hung."""
    buffer = memoryview(bytearray(PIECE))
    if _size_is(target, entry["bytes"]):
        digest = hashlib.sha256()
        with open(target, "rb", buffering=0) as file:
            while got := file.readinto(buffer):
                digest.update(buffer[:got])
                beat()
        if digest.hexdigest() == entry["sha256"]:
            return False
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp-{socket.gethostname()}-{os.getpid()}")
    try:
        digest, size = hashlib.sha256(), 0
        with open(source, "rb", buffering=0) as origin, open(temporary, "wb", buffering=0) as copy:
            while got := origin.readinto(buffer):
                digest.update(buffer[:got])
                size += got
                piece = buffer[:got]
                while piece:
                    piece = piece[copy.write(piece) :]
                beat()
        if size != entry["bytes"] or digest.hexdigest() != entry["sha256"]:
            raise UserError(f"{source} is not what its manifest says: see `frontier shards verify`")
        beat()
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _remove_stale(folder: Path) -> None:
    """Remove what copiers of this host that were killed left behind."""
    for path in folder.rglob(".*.tmp-*"):
        host, _, pid = path.name.rpartition(".tmp-")[2].rpartition("-")
        if host == socket.gethostname() and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            path.unlink(missing_ok=True)
