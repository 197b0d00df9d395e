"""Where the ranks of a doctor's visit meet: a store on rank 0 that holds what each rank found before any collective is tried.

A collective tells only that somebody is missing. Here every rank says its host at once and sends its findings when it has them, so that rank 0
can name who never came, who came and hung, and who was lost later, and reports everything else all the same.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import resource
import socket
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from frontier.doctor.checks import Check
from frontier.errors import TransientError
from frontier.launch.ranks import Ranks, first_host, rendezvous, tasks_of_nodes

REPLY_S = 5.0
"""A rank that does not answer for so long, from a thread that does nothing else, is lost."""


class Meeting:
    """The store, with a second connection on which a thread answers rank 0's roll call while the main one is busy or waits.

    Raises:
        TransientError: rank 0 could not be reached, or could not listen.
    """

    def __init__(self, ranks: Ranks, host: str, timeout_s: int) -> None:
        self.ranks, self.host = ranks, host
        self.address, self.port = rendezvous(ranks)
        self.doing = "starting"
        """What the main thread is busy with; "" while it waits for the others."""
        self.began = time.monotonic()
        self.timeout_s = timeout_s
        if self.address in ("127.0.0.1", "localhost"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if ranks.is_main:
            _open_files(3 * ranks.world_size + 256)
        else:
            self._reach(timeout_s)
        try:
            self.store = self._connect(ranks.is_main, timeout_s)
            self.store.set(f"host/{ranks.rank}", host)
            if not ranks.is_main:
                aside = self._connect(False, timeout_s)
                self._answering = threading.Thread(target=self._answer, args=(aside,), daemon=True)
                self._answering.start()
        except RuntimeError as problem:
            what = "cannot listen" if ranks.is_main else "was lost at the first word"
            raise TransientError(f"rank 0 {what} at {self.place}: {str(problem).splitlines()[0][:120]}") from None

    @property
    def place(self) -> str:
        return f"{self.address}:{self.port}"

    def _connect(self, serve: bool, timeout_s: float) -> dist.TCPStore:
        return dist.TCPStore(
            self.address,
            self.port,
            self.ranks.world_size,
            is_master=serve,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )

    def _reach(self, timeout_s: int) -> None:
        """Try until rank 0 listens: the store's own client would fill the log with its tries."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                with socket.create_connection((self.address, self.port), timeout=max(1.0, timeout_s / 4)):
                    return
            except OSError as problem:
                if time.monotonic() > end:
                    raise TransientError(
                        f"rank {self.ranks.rank} on {self.host} does not reach rank 0 at {self.place} within {timeout_s} s "
                        f"({problem.strerror or problem})"
                    ) from None
            threading.Event().wait(0.2)  # time.sleep fails under libfaketime, with which wrong clocks are tested

    # -- every rank

    def send(self, found: Mapping[str, Any], *, aside: bool = False) -> None:
        """This rank's findings. `aside`: from another thread than the main one, which may hold the connection."""
        store = self._connect(False, REPLY_S) if aside else self.store
        store.set(f"found/{self.ranks.rank}", base64.b85encode(zlib.compress(json.dumps(found).encode())).decode())

    def ask(self, key: str, within_s: float) -> str:
        """What rank 0 said under `key`. Raises RuntimeError where it is gone or silent."""
        self.store.wait([key], timedelta(seconds=within_s))
        return self.store.get(key).decode()

    def leave(self) -> None:
        """The store must outlive the last question: rank 0 waits for the others, for a while."""
        others = self.ranks.world_size - 1
        with contextlib.suppress(RuntimeError):
            if self.ranks.is_main:
                store = self._connect(False, REPLY_S)  # the main thread may hold the other one
                store.set("roll", "end")
                store.wait(["all_left"], timedelta(seconds=REPLY_S))
            else:
                self._answering.join(REPLY_S)  # a thread in the store's code must not outlive the interpreter
                if self.store.add("left", 1) == others:
                    self.store.set("all_left", "1")

    def _answer(self, store: dist.TCPStore) -> None:
        with contextlib.suppress(RuntimeError):  # rank 0 is gone: the main thread hears of it as well
            store.wait(["roll"], timedelta(days=1))
            if store.get("roll") == b"call":
                store.set(f"alive/{self.ranks.rank}", self.doing)

    # -- rank 0

    def tell(self, key: str, word: str, *, aside: bool = False) -> None:
        (self._connect(False, REPLY_S) if aside else self.store).set(key, word)

    def came(self, *, now: bool = False) -> dict[int, str]:
        """Host of every rank that came, within the timeout from the start on."""
        until = 0.0 if now else max(self.began + self.timeout_s, time.monotonic() + 1)
        return {rank: host.decode() for rank, host in self._read("host", range(self.ranks.world_size), until).items()}

    def findings(self, ranks: Sequence[int], *, now: bool = False) -> dict[int, dict[str, Any]]:
        """What the ranks sent, or will send within the timeout."""
        until = 0.0 if now else time.monotonic() + self.timeout_s
        return {
            rank: json.loads(zlib.decompress(base64.b85decode(data)))
            for rank, data in sorted(self._read("found", ranks, until).items())
        }

    def roll_call(self, ranks: Sequence[int]) -> dict[int, str]:
        """What those of `ranks` that still answer are doing. Once a meeting."""
        self.tell("roll", "call", aside=True)
        answered = self._read("alive", [r for r in ranks if r], time.monotonic() + REPLY_S)
        return {rank: doing.decode() for rank, doing in answered.items()}

    def _read(self, what: str, ranks: Sequence[int], until: float, piece: int = 512) -> dict[int, bytes]:
        """Values of the ranks that have one by `until` (monotonic seconds)."""
        store, found = self._connect(False, REPLY_S), dict[int, bytes]()
        for first in range(0, len(ranks), piece):
            some = list(ranks[first : first + piece])
            keys = [f"{what}/{rank}" for rank in some]
            if not store.check(keys):
                with contextlib.suppress(RuntimeError):  # not in time
                    store.wait(keys, timedelta(seconds=max(0.01, until - time.monotonic())))
            if not store.check(keys):
                some = [rank for rank, key in zip(some, keys, strict=True) if store.check([key])]
                keys = [f"{what}/{rank}" for rank in some]
            if keys:
                found |= dict(zip(some, store.multi_get(keys), strict=True))
        return found


def packed(checks: Sequence[Check]) -> list[dict[str, Any]]:
    return [c.as_dict() for c in checks]


def unpacked(found: Sequence[Mapping[str, Any]]) -> list[Check]:
    return [Check(**{**one, "hosts": tuple(one["hosts"])}) for one in found]


def expand(nodelist: str) -> list[str]:
    """Hosts of a Slurm node list: `n[01-03,7],x` -> n01 n02 n03 n7 x."""
    out = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        names = [""]
        for text, inside in re.findall(r"([^\[]+)|\[([^\]]*)\]", part):
            choices = [text] if text else [n for piece in inside.split(",") for n in _numbers(piece)]
            names = [name + choice for name in names for choice in choices]
        out += names
    return out


def _numbers(piece: str) -> list[str]:
    first, dash, last = piece.partition("-")
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)] if dash else [first]


def expected_hosts(env: Mapping[str, str], ranks: Ranks) -> dict[str, int]:
    """Ranks that each host should have, from the launcher's variables; empty where they do not tell."""
    if ranks.source == "slurm" and env.get("SLURM_STEP_NODELIST"):
        hosts, counts = expand(env["SLURM_STEP_NODELIST"]), tasks_of_nodes(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
        return dict(zip(hosts, counts, strict=True)) if len(hosts) == len(counts) else {}
    if ranks.source in ("pals", "mpich", "openmpi") and env.get("PBS_NODEFILE"):
        with contextlib.suppress(OSError):
            lines = dict.fromkeys(line.split(".")[0] for line in Path(env["PBS_NODEFILE"]).read_text().split())
            return dict.fromkeys(list(lines)[: ranks.nodes], ranks.local_world_size)
    return {}


def missing_hosts(expected: Mapping[str, int], came: Mapping[int, str]) -> dict[str, str]:
    """Hosts with fewer ranks than they should have, each with the reason."""
    counts: dict[str, int] = {}
    for host in came.values():
        short = host if host in expected else host.split(".")[0]
        counts[short] = counts.get(short, 0) + 1
    return {
        host: f"{n - counts.get(host, 0)} of its {n} ranks did not come"
        for host, n in expected.items()
        if counts.get(host, 0) < n
    }


def host_of_rank_0(env: Mapping[str, str]) -> str | None:
    """As the launcher or MASTER_ADDR names it; None where that is an address."""
    if env.get("SLURM_STEP_NODELIST"):
        return first_host(env["SLURM_STEP_NODELIST"])
    name = env.get("MASTER_ADDR", "")
    return name if re.match(r"[a-zA-Z]", name) and name != "localhost" else None


def spans(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    out: list[list[int]] = []
    for n in sorted(numbers):
        if out and n == out[-1][1] + 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in out]
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more spans" if len(words) > 8 else "")


def _open_files(wanted: int) -> None:
    """Rank 0 holds three connections to every rank (two here, one of the process group)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))
