"""Starting a run under `--ranks N`, finding its processes, hurting it at a chosen moment, waiting no longer than allowed.

Nothing here knows what is right: `checks.py` judges, `scenarios.py` says what should happen.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.001
"""Saves of the toy model take milliseconds: a slower eye would never see one."""

KILL, TERM, USR1, STOP, CONT = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGSTOP, signal.SIGCONT


class Missed(Exception):
    """The moment for the fault never came: the run ended, or took too long to get there."""


@dataclass
class Outcome:
    """How one start ended, and what was done to it."""

    code: int | None
    """None: it did not end within its bound and was killed by the harness."""
    out: str
    err: str
    injected: str
    seconds: float
    """From the fault (or the start, where there was none) to the end of the last process."""
    lingering: list[int] = field(default_factory=list)
    """Processes that outlived the launcher by more than the bound."""

    @property
    def lines(self) -> list[str]:
        """What the user reads when it fails, without the backends' own chatter."""
        return [line for line in self.err.splitlines() if line.strip() and not line.startswith(("[W", "[rank", "[E"))]


@dataclass
class Run:
    """A run folder with its config; `start` may be called as often as it takes."""

    config: Path
    dir: Path
    ranks: int
    overrides: tuple[str, ...] = ()
    starts: int = 0

    @property
    def metrics(self) -> Path:
        return self.dir / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.dir / "checkpoints"

    def start(self, *overrides: str) -> Attempt:
        return Attempt(self, [*self.overrides, *overrides])

    def finish(self, bound_s: float, *overrides: str) -> Outcome:
        """A start that nobody disturbs."""
        with self.start(*overrides) as attempt:
            return attempt.wait(bound_s)


class Attempt:
    """One start of a run, in a session of its own so that every process of it can be found and none be left behind."""

    def __init__(self, run: Run, overrides: Sequence[str]) -> None:
        self.run = run
        self.ranks = run.ranks
        self.injected: list[str] = []
        self._pids: list[int] = []
        self.started = self.hurt_at = time.monotonic()
        command = [sys.executable, "-m", "frontier", "pretrain", str(run.config), f"run.dir={run.dir}", *overrides]
        if run.ranks > 1:
            command += ["--ranks", str(run.ranks)]
        run.dir.parent.mkdir(parents=True, exist_ok=True)
        run.starts += 1
        logs = [run.dir.parent / f"{run.dir.name}.{run.starts}.{name}" for name in ("out", "err")]
        self._logs = [open(path, "w+") for path in logs]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=self._logs[0],
            stderr=self._logs[1],
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.alive():
            send(pid, KILL)
        self.process.wait()
        for log in self._logs:
            log.close()

    # -- who is there

    @property
    def launcher(self) -> int:
        return self.process.pid

    def alive(self) -> list[int]:
        """Every process of this start that runs or is stopped (zombies have ended)."""
        found = []
        for entry in os.scandir("/proc"):
            if (
                entry.name.isdigit()
                and (stat := _stat(int(entry.name)))
                and stat[1] == self.launcher
                and stat[0] != "Z"
            ):
                found.append(int(entry.name))
        return found

    def rank_pids(self, timeout_s: float = 60) -> list[int]:
        """Process ids by rank, as soon as all ranks have been started; the launcher itself where there is one rank."""
        if self.ranks == 1:
            return [self.launcher]
        if self._pids:
            return self._pids
        deadline = time.monotonic() + timeout_s
        while True:
            found: dict[int, int] = {}
            for pid in _children(self.launcher):
                rank = _environment(pid).get("RANK")
                if rank is not None:
                    found[int(rank)] = pid
            if len(found) == self.ranks:
                self._pids = [found[r] for r in range(self.ranks)]
                return self._pids
            self._still_there(deadline, "its ranks to start")

    # -- moments

    def _still_there(self, deadline: float, what: str) -> None:
        if self.process.poll() is not None:
            raise Missed(f"ended with {self.process.returncode} while waiting for {what}: {self._tail()}")
        if time.monotonic() > deadline:
            raise Missed(f"waited too long for {what}")
        time.sleep(POLL_S)

    def until(self, there: Callable[[], Any], what: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not there():
            self._still_there(deadline, what)

    def until_step(self, step: int, timeout_s: float = 120) -> None:
        """Until metrics.jsonl holds `step` *of this start* or a later one."""
        self.until(lambda: self._last_step() >= step, f"step {step}", timeout_s)

    def _last_step(self) -> int:
        # Rows of an earlier start that will be dropped are no progress of this one.
        try:
            if self.run.metrics.stat().st_mtime < self._born:
                return 0
            with open(self.run.metrics, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                row = json.loads(file.read().rstrip(b"\n").rsplit(b"\n", 1)[-1])
            return row["step"] if row["time"] >= self._born else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    @property
    def _born(self) -> float:
        return time.time() - (time.monotonic() - self.started)

    def until_saving(self, timeout_s: float = 120) -> None:
        """Until a save has begun: its temporary folder is there."""
        self.until(lambda: any(n.startswith(".step_") for n in names(self.run.checkpoints)), "a save", timeout_s)

    def until_committed(self, timeout_s: float = 120) -> None:
        """Until a checkpoint appears that was not there before."""
        before = set(names(self.run.checkpoints))
        self.until(
            lambda: any(n.startswith("step_") for n in set(names(self.run.checkpoints)) - before),
            "a new checkpoint",
            timeout_s,
        )

    # -- faults

    def hurt(self, what: str) -> None:
        """Note a fault; the clock of the bound starts here."""
        self.injected.append(what)
        self.hurt_at = time.monotonic()

    def signal(self, number: signal.Signals, *who: int | str) -> None:
        """Send a signal to ranks by number, to "launcher" or to "all" ranks."""
        pids = self.rank_pids() if any(w != "launcher" for w in who) else []
        if "all" in who:
            targets = dict(enumerate(pids))
        else:
            targets = {w: self.launcher if w == "launcher" else pids[int(w)] for w in who}  # type: ignore[misc]
        self.hurt(f"{number.name} to {', '.join(w if isinstance(w, str) else f'rank {w}' for w in targets)}")
        for pid in targets.values():
            send(pid, number)

    # -- the end

    def wait(self, bound_s: float) -> Outcome:
        """Until every process of this start has ended, at most `bound_s` seconds after the fault."""
        deadline = self.hurt_at + bound_s
        code: int | None = None
        try:
            code = self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        while (lingering := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.02)
        seconds = time.monotonic() - self.hurt_at
        out, err = (self._read(log) for log in self._logs)
        return Outcome(code, out, err, "; ".join(self.injected) or "nothing", seconds, lingering)

    @staticmethod
    def _read(log: Any) -> str:
        log.flush()
        return Path(log.name).read_text(errors="replace")

    def _tail(self) -> str:
        return self._read(self._logs[1]).strip()[-300:]


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _stat(pid: int) -> tuple[str, int] | None:
    """(state, session) of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[3])


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _environment(pid: int) -> dict[str, str]:
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in data.decode(errors="replace").split("\0") if "=" in line)


def make_config(path: Path, shards: Path, steps: int, strategy: str, **sections: dict[str, Any]) -> Path:
    """A complete config of a run whose steps take some 30 ms on two slow cores, saved every third step."""
    config: dict[str, Any] = {
        "run": {"dir": "set by the harness", "seed": 3},
        "model": {"family": "mae", "preset": "vit_debug"},
        "data": {"shards": str(shards), "augment": {"symmetries": True, "crop_scale": [0.4, 1.0]}},
        "parallel": {"timeout_s": 10, "strategy": strategy},
        "train": {"steps": steps, "global_batch": 16, "base_lr": 4e-3, "warmup_steps": 5, "clip_norm": 0.5},
        "checkpoint": {"every_steps": 3},
        "log": {"progress": "lines", "every_steps": 1000},
    }
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def make_shards(out: Path) -> Path:
    """128 train samples of 32 px in shards of 16."""
    size = ("--scenes", "160", "--size", "32", "--samples-per-shard", "16")
    subprocess.run(
        [sys.executable, "-m", "frontier", "shards", "write", *size, "--workers", "1", "--seed", "0", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return out
