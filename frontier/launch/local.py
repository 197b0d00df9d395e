"""`--ranks N` without a launcher: N copies of this command on this machine, one exit code."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from frontier.errors import EXIT_REQUEUE, EXIT_TRANSIENT, EXIT_USER


def _first_failure(codes: Sequence[int | None]) -> tuple[int, int] | None:
    """(rank, code) of the rank to blame: one that a signal ended, else one that met a user's mistake, else one that
    failed, before one that merely lost contact with another."""
    failed = [(r, code) for r, code in enumerate(codes) if code is not None and code not in (0, EXIT_REQUEUE)]
    order = {EXIT_USER: 1, EXIT_TRANSIENT: 3}
    return min(failed, key=lambda item: (0 if item[1] < 0 else order.get(item[1], 2), item[0]), default=None)


def end_with_parent() -> Callable[[], None] | None:
    """For a child between fork and exec: the kernel is to kill it when its parent is gone (Linux; None elsewhere).

    Ranks left behind by a killed launcher would train on, unseen, in the run folder in which the next start goes on.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    if prctl is None:
        return None
    parent, set_death_signal = os.getpid(), 1

    def before_exec() -> None:
        prctl(set_death_signal, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def free_port() -> int:
    """A TCP port that was free a moment ago on the loopback address.

    Drawn below the range that systems hand out to outgoing connections, which would take it again soon.
    """
    draw = random.SystemRandom()
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := draw.randrange(15000, 32000)))
            except OSError:
                continue
            return port


def run_local(command: Sequence[str], ranks: int, grace_s: float = 10.0, settle_s: float = 2.0) -> int:
    """Start `command` `ranks` times with torchrun's variables and wait.

    SIGUSR1, SIGTERM and SIGINT are passed on to every rank. When a rank dies of an error the others are ended after
    `grace_s` seconds, `settle_s` where it was a user's mistake. When this process dies, so do the ranks.

    Returns:
        0, the requeue code when the ranks asked for it, the transient code when a signal ended a rank, or the code
        of the rank that failed first: of its cause, which may show up to `settle_s` later than its effects.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    if "OMP_NUM_THREADS" not in os.environ:
        shared["OMP_NUM_THREADS"] = str(threads)
    children: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        asked.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    try:
        for rank in range(ranks):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            child = subprocess.Popen(command, env=environment, preexec_fn=end_with_parent())
            children.append(child)
            if asked:  # while it was being started, so it was not passed on to this one
                child.send_signal(asked[-1])
        return _wait(children, grace_s, settle_s)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[bytes]], grace_s: float, settle_s: float) -> int:
    """Until all ranks have ended, by themselves or by force; one exit code."""
    failed_at: float | None = None
    blamed: tuple[int, int] | None = None
    deadline = float("inf")
    while True:
        codes = [child.poll() for child in children]
        running, now = None in codes, time.monotonic()
        candidate = _first_failure(codes)
        if candidate is not None and failed_at is None:
            failed_at = now
        settled = failed_at is not None and (not running or now > failed_at + settle_s)
        if candidate is not None and blamed is None and (candidate[1] < 0 or candidate[1] == EXIT_USER or settled):
            rank, code = blamed = candidate
            deadline = now + (settle_s if code == EXIT_USER else grace_s)
            if code not in (EXIT_USER, EXIT_TRANSIENT):  # there a rank itself has said why
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                print(f"frontier: rank {rank} ended with {how}; ending the others", file=sys.stderr)
        if now > deadline:
            deadline = float("inf")
            for rank, child in enumerate(children):
                if child.poll() is None:
                    if blamed is not None and blamed[1] == EXIT_TRANSIENT:
                        print(
                            f"frontier: rank {rank} hung: it had not ended {grace_s:.0f} s after rank {blamed[0]} lost "
                            "contact with it; killed, start again to go on from the newest checkpoint",
                            file=sys.stderr,
                        )
                    child.kill()
        if not running:
            break
        time.sleep(0.05)
    if blamed is not None:
        return EXIT_TRANSIENT if blamed[1] < 0 else blamed[1]
    return EXIT_REQUEUE if EXIT_REQUEUE in codes else 0
