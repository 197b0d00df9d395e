"""What is known of a point, in its folder: point.json, config.yaml, status.json, log.txt, run/. All written by rename.

A point is `pending`, then `running`, then done, oom, timeout, failed or skipped. Whoever runs it holds a lock on its folder,
which dies with the process; so a point that is `running` and not held has lost its runner, and the next call takes it up.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from frontier.claim import claimed
from frontier.errors import UserError
from frontier_profiling.sweep.grid import Point, fingerprint

FINAL = ("done", "oom", "timeout", "failed", "skipped")
RETRIES = ("oom", "timeout", "failed", "changed")
LOST_RUNNERS = 5
"""After so many attempts whose runner died, the point is called failed: something in it kills its runner."""


@dataclass(frozen=True)
class Place:
    """Folder of a point."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def status(self) -> dict[str, Any]:
        """A file that is absent or damaged says nothing: the point is pending."""
        known = read_json(self.folder / "status.json") or {}
        counts = [known.get(key) or 0 for key in ("attempts", "lost_runners")]
        if known.get("status") not in ("pending", "running", *FINAL) or not all(type(count) is int for count in counts):
            return {"status": "pending"}
        return known

    def set(self, status: str, reason: str = "", **facts: Any) -> None:
        """Lay the facts over what the status file holds."""
        known = self.status()
        write_text(
            self.folder / "status.json",
            json.dumps({**known, **facts, "status": status, "reason": reason, "time": time.time()}, indent=1),
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else runs the point meanwhile. Raises `frontier.claim.HeldError` where somebody does."""
        with claimed(self.folder, ".running", "`frontier sweep`"):
            yield


def forget_runner(where: Place, known: Mapping[str, Any]) -> None:
    """Remove the lock of a runner that Slurm says is gone: the age of another host's lock would keep everybody away for a
    minute and a half. Only where the lock is that runner's own, as its status names it.
    """
    holder = read_json(where.folder / ".running")
    if holder == {"host": known.get("host"), "pid": known.get("pid")}:
        (where.folder / ".running").unlink(missing_ok=True)


def place(out: Path, point: Point) -> Place:
    return Place(out / "points" / point.id)


def prepare(where: Place, point: Point, config: Mapping[str, Any], retry_changed: bool) -> None:
    """Make the folder, or check that it is of the same point.

    Raises:
        UserError: the folder holds results of another config, and they are not to be given up.
    """
    try:
        where.folder.mkdir(parents=True, exist_ok=True)
        known = read_json(where.folder / "point.json")
        mark = fingerprint(config)
        if (
            known is not None
            and known.get("config") not in (None, mark)
            and where.status()["status"] not in ("pending", "skipped")
        ):
            if not retry_changed:
                raise UserError(
                    f"{where.folder}: was run with another config than the study has now: --retry changed runs such points "
                    "again, --out DIR keeps both"
                )
            reset(where)
        write_text(where.folder / "point.json", json.dumps({"id": point.id, "config": mark, **point.axes()}, indent=1))
        write_text(where.config, yaml.safe_dump(dict(config), sort_keys=False))
    except OSError as error:
        raise UserError(f"{where.folder}: cannot be written ({error.strerror}): give another --out") from None


def reset(where: Place) -> None:
    """As if it had never run."""
    clear_run(where)
    (where.folder / "status.json").unlink(missing_ok=True)


def clear_run(where: Place) -> None:
    """Every attempt starts from nothing: steps of two of them must not mix."""
    shutil.rmtree(where.run, ignore_errors=True)


def begin(where: Place) -> int:
    """Mark the point as running here; returns the number of this attempt."""
    attempt = int(where.status().get("attempts", 0)) + 1
    where.set(
        "running",
        attempts=attempt,
        started=time.time(),
        ended=None,
        exit_code=None,
        pid=os.getpid(),
        host=socket.gethostname(),
        slurm_job_id=os.environ.get("SLURM_JOB_ID"),
    )
    return attempt


def lost_too_often(where: Place) -> bool:
    """Whether the runner of every one of the last attempts died. Call it while the point is held."""
    status = where.status()
    lost = int(status.get("lost_runners", 0)) + (status["status"] == "running")
    if status["status"] != "running":
        return False
    where.set("pending", "its runner died", lost_runners=lost)
    if lost < LOST_RUNNERS:
        return False
    where.set(
        "failed", f"its runner died {lost} times in a row: see {where.log}; --retry failed tries again", lost_runners=0
    )
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in the file, or None where there is none."""
    try:
        node = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return node if isinstance(node, dict) else None


def write_text(path: Path, text: str) -> None:
    """By rename: a reader sees the old text or the new one. Raises UserError where it cannot be written."""
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()  # on a full disk it holds what the next attempt needs
        raise UserError(f"{path}: cannot be written ({error.strerror}): make room, or give another --out") from None
