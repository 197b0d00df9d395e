"""`--ranks N` without a launcher: N copies of this command on this machine, one exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from frontier.errors import EXIT_REQUEUE


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
    first_failure: int | None = None
    deadline: float | None = None
    try:
        while any(child.poll() is None for child in children):
            for rank, child in enumerate(children):
                code = child.returncode
                if code not in (None, 0, EXIT_REQUEUE) and first_failure is None:
                    first_failure, deadline = code, time.monotonic() + (0 if code == 2 else grace_s)
                    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                    if code != 2:
                        print(f"frontier: rank {rank} ended with {how}; ending the others", file=sys.stderr)
            if deadline is not None and time.monotonic() > deadline:
                for child in children:
                    if child.poll() is None:
                        child.kill()
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    codes = [child.returncode for child in children]
    if first_failure is None:
        first_failure = next((c for c in codes if c not in (0, EXIT_REQUEUE)), None)
    if first_failure is not None:
        return 128 - first_failure if first_failure < 0 else first_failure
    return EXIT_REQUEUE if EXIT_REQUEUE in codes else 0
