"""One attempt at a point: the run as a process of its own session, its time limit, and how it ended."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from frontier.launch.local import end_with_parent
from frontier_profiling.sweep.grid import Point
from frontier_profiling.sweep.outcome import Outcome, classify, kernel_kills, lost_nodes, tail
from frontier_profiling.sweep.state import Place
from frontier_profiling.sweep.study import Study

SETTLE_S = 10.0


class Stopped(BaseException):
    """This sweep was asked to end."""


class NodeLost(Stopped):
    """srun lost a node of the allocation, or starts nothing there: no result of this point, nor of any that follows. Its words."""


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """SIGTERM, SIGUSR1 and SIGHUP raise `Stopped` in the main thread, so that what runs is ended and marked."""

    def stop(number: int, _frame: object) -> None:
        raise Stopped(signal.Signals(number).name)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command(study: Study, point: Point, where: Place, env: Mapping[str, str]) -> list[str]:
    """What runs a point here: `srun` inside a Slurm allocation, else as many ranks on this machine.

    A job that jobs/study.sh began tells in FRONTIER_STEP_WORDS what its site's srun takes, and in FRONTIER_PYTHON_WORDS what runs
    Python on its nodes.
    """
    module = ["frontier_profiling.measure.reading"] if point.data == "only" else ["frontier", "pretrain"]
    run = ["-m", *module, str(where.config)]
    if "SLURM_JOB_ID" not in env:
        return [sys.executable, *run, "--ranks", str(point.ranks)]
    per_node = -(-point.ranks // point.nodes)
    minutes = -(-study.time_limit_s // 60) + 1  # Slurm's own guard: a step outlives its srun
    srun = [
        "srun",
        f"--nodes={point.nodes}",
        f"--ntasks={point.ranks}",
        f"--ntasks-per-node={per_node}",
        f"--time={minutes}",
    ]
    site = shlex.split(env.get("FRONTIER_STEP_WORDS", ""))
    python = shlex.split(env.get("FRONTIER_PYTHON_WORDS", "")) or [sys.executable]
    return [*srun, "--kill-on-bad-exit=1", *site, *shlex.split(study.job.srun_args), *python, *run]


def environment(study: Study, point: Point) -> dict[str, str]:
    """Of the ranks. Threads: the study's, else under Slurm what is set there, else an equal share of this machine's cores."""
    env = dict(os.environ)
    if study.threads is not None:
        env["OMP_NUM_THREADS"] = str(study.threads)
    elif "SLURM_JOB_ID" not in env:
        env["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // point.ranks))
    return env


def attempt(study: Study, point: Point, where: Place, number: int) -> Outcome:
    """Run the point once. Its output goes to log.txt. Raises `Stopped` (also for a lost node) or KeyboardInterrupt after ending
    all of its ranks.
    """
    env = environment(study, point)
    words = command(study, point, where, env)
    kills, began = kernel_kills(), time.monotonic()
    with open(where.log, "ab") as log:
        log.write(f"--- attempt {number}, {time.strftime('%Y-%m-%d %H:%M:%S')}: {shlex.join(words)}\n".encode())
        log.flush()
        start = log.tell()
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
        except OSError as error:
            return Outcome("failed", f"{words[0]} cannot be started: {error.strerror}")
        try:
            code = process.wait(study.time_limit_s)
        except subprocess.TimeoutExpired:
            end(process, gently=words[0] == "srun")
            return Outcome("timeout", f"not done after {study.time_limit_s} s", wall_s=time.monotonic() - began)
        except BaseException:
            end(process, gently=words[0] == "srun")
            raise
        end(process, gently=False)  # ranks that outlived their launcher
    text = tail(where.log, start)
    if words[0] == "srun" and code and (lost := lost_nodes(text)):
        raise NodeLost("\n".join(lost))
    status, reason = classify(code, text, kills, kernel_kills())
    return Outcome(status, reason, code, time.monotonic() - began)


def end(process: subprocess.Popen[bytes], gently: bool) -> None:
    """End the process and its whole session. gently: SIGTERM first, which srun hands to the ranks of other nodes."""
    try:
        if gently:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(SETTLE_S)
            except subprocess.TimeoutExpired:
                pass
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def seen_command(study: Study, point: Point, where: Place) -> str:
    """The line that reproduces a measured row."""
    threads = f"OMP_NUM_THREADS={study.threads} " if study.threads else ""
    verb = "python -m frontier_profiling.measure.reading" if point.data == "only" else "frontier pretrain"
    return f"{threads}{verb} {where.config} run.dir=NEW --ranks {point.ranks}"
