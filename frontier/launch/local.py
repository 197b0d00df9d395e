"""`--ranks N` without a launcher: N copies of this command on this machine, one exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from frontier.errors import EXIT_REQUEUE, EXIT_USER


def _first_failure(codes: Sequence[int | None]) -> tuple[int, int] | None:
    """(rank, code) of the rank to blame: one that a signal ended before one that failed for want of it."""
    failed = [(r, code) for r, code in enumerate(codes) if code is not None and code not in (0, EXIT_REQUEUE)]
    return min(failed, key=lambda item: (item[1] >= 0, item[0]), default=None)


def free_port() -> int:
    """A TCP port that was free a moment ago on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_local(command: Sequence[str], ranks: int, grace_s: float = 30.0) -> int:
    """Start `command` `ranks` times with torchrun's variables and wait.

    SIGUSR1, SIGTERM and SIGINT are passed on to every rank. When a rank dies of an error the others are ended after
    `grace_s` seconds. Returns 0, the requeue code when the ranks asked for it, or the first failing rank's code.
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
    children = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(ranks)
    ]

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    blamed: tuple[int, int] | None = None
    deadline = float("inf")
    try:
        running = True
        while running:
            codes = [child.poll() for child in children]
            running = None in codes
            if blamed is None and (blamed := _first_failure(codes)):
                rank, code = blamed
                deadline = time.monotonic() + (0 if code == EXIT_USER else grace_s)
                if code != EXIT_USER:  # there the rank itself has said why
                    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                    print(f"frontier: rank {rank} ended with {how}; ending the others", file=sys.stderr)
            if time.monotonic() > deadline:
                for child in children:
                    if child.poll() is None:
                        child.kill()
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if blamed is not None:
        return 128 - blamed[1] if blamed[1] < 0 else blamed[1]
    return EXIT_REQUEUE if EXIT_REQUEUE in codes else 0
