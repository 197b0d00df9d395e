"""Node-local copies of shards: each node copies what it reads once, before training, and reads it there.

A copy is made under a temporary name while its sha256 is computed, compared with the manifest's, and renamed: a name without
a leading dot is a whole shard. What is there already and right stays; what does not fit, or cannot be written, is read
from where it was. Folder: STAGE/NAME-FINGERPRINT, so that several data sets and runs share one stage.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frontier.data.shards import ShardSet
from frontier.errors import UserError

COPIES = 4
"""Shards copied side by side."""
PIECE = 8 << 20
SPARE = 64 << 20
"""Bytes that stay free on the stage's disk."""


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
        text = (
            f"staged {len(self.paths)} of {shards} shards in {self.folder}: {self.copied} copied "
            f"({self.bytes / 2**30:.2f} GiB, {self.seconds:.1f} s), {self.kept} there already"
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


def stage(shards: ShardSet, root: Path, limit: int | None = None) -> Staged:
    """Copy the shards of the split to `root`, the first that fit in `limit` bytes and in the free space.

    Never raises for what the stage's disk does, and never leaves half a shard under its own name.
    """
    begun = time.perf_counter()
    staged = Staged(stage_folder(root, shards))
    try:
        staged.folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(staged.folder)
        free = shutil.disk_usage(staged.folder).free - SPARE
    except OSError as error:
        staged.left.append(f"{staged.folder}: {error.strerror}")
        staged.failed = True
        return staged
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

    def place(entry: dict[str, Any]) -> tuple[bool, str | None]:
        """(whether it was copied, why it could not be)"""
        try:
            return _place(shards.path / entry["file"], staged.folder / entry["file"], entry), None
        except OSError as error:
            return False, f"{staged.folder}: {error.strerror or error}"
        except UserError as error:
            return False, str(error)

    with ThreadPoolExecutor(COPIES, "stage") as pool:
        for entry, (copied, why) in zip(chosen, pool.map(place, chosen), strict=True):
            if why is not None:
                staged.left.insert(0, why)
                staged.failed = True
                continue
            staged.paths[entry["file"]] = staged.folder / entry["file"]
            staged.copied += copied
            staged.kept += not copied
            staged.bytes += entry["bytes"] if copied else 0
    staged.seconds = time.perf_counter() - begun
    return staged


def _size_is(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _place(source: Path, target: Path, entry: dict[str, Any]) -> bool:
    """Make sure that `target` is the shard; whether it had to be copied. Raises OSError, UserError."""
    if _size_is(target, entry["bytes"]):
        with open(target, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]:
                return False
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp-{socket.gethostname()}-{os.getpid()}")
    try:
        digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(PIECE))
        with open(source, "rb", buffering=0) as origin, open(temporary, "wb", buffering=0) as copy:
            while got := origin.readinto(buffer):
                digest.update(buffer[:got])
                size += got
                piece = buffer[:got]
                while piece:
                    piece = piece[copy.write(piece) :]
        if size != entry["bytes"] or digest.hexdigest() != entry["sha256"]:
            raise UserError(f"{source} is not what its manifest says: see `frontier shards verify`")
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
