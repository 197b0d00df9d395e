"""Mode measured: the points one after the other, here or inside the present Slurm allocation."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from frontier.claim import HeldError, claimed
from frontier.errors import UserError
from frontier_profiling.sweep.execute import Stopped, attempt, stop_on_signal
from frontier_profiling.sweep.grid import Point, run_config
from frontier_profiling.sweep.state import FINAL, begin, clear_run, lost_too_often, place, prepare, reset
from frontier_profiling.sweep.study import Study


def lay_out(study: Study, out: Path, found: Sequence[Point], retry: Collection[str]) -> None:
    """A folder for every point; those whose status is in `retry` are pending again.

    Raises:
        UserError: a config that no run would take; a folder that holds another point.
    """
    from frontier.config.load import validate

    for point in found:
        where = place(out, point)
        config = run_config(study, point, str(where.run))
        if not point.skip:
            try:
                validate(config)
            except UserError as error:
                raise UserError(f"study {study.name}, point {point.id}: {error}") from None
        prepare(where, point, config, "changed" in retry)
        status = where.status()["status"]
        if point.skip:
            if status != "skipped":
                where.set("skipped", point.skip)
        elif status == "skipped":
            reset(where)
        elif status in retry:
            where.set("pending", f"was {status}; asked to run again", slurm_job_id=None)


def measure(study: Study, out: Path, found: Sequence[Point], say: Callable[[str], None]) -> None:
    """Run every point that has no result yet. Passed over: points that another `frontier sweep` runs at this moment,
    and those that take more nodes than the present Slurm allocation has.

    Raises:
        UserError: another sweep measures on this machine into the same folder: both would disturb each other's times.
        Stopped, KeyboardInterrupt: after ending the ranks of the present point, which is pending again.
    """
    allocation = os.environ.get("SLURM_JOB_ID") or socket.gethostname()
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "") if "SLURM_JOB_ID" in os.environ else ""
    with ExitStack() as held:
        held.enter_context(claimed(out, f".measuring-{allocation}", "`frontier sweep`"))
        held.enter_context(stop_on_signal())
        for index, point in enumerate(found, 1):
            label = f"[{index}/{len(found)}] {point.id}"
            waits = place(out, point).status()["status"] not in FINAL
            if waits and nodes.isdigit() and point.nodes > int(nodes):
                say(f"{label}: takes {point.nodes} nodes, this allocation has {nodes}; passed over")
                continue
            try:
                _one(study, out, point, partial(_told, say, label))
            except HeldError:
                say(f"{label}: another `frontier sweep` runs it; passed over")


def _told(say: Callable[[str], None], label: str, text: str) -> None:
    say(f"{label}: {text}")


def _one(study: Study, out: Path, point: Point, say: Callable[[str], None]) -> None:
    where = place(out, point)
    if where.status()["status"] in FINAL:
        return
    with where.held():
        if where.status()["status"] in FINAL or lost_too_often(where):
            return
        clear_run(where)
        number = begin(where)
        say(f"{point.ranks} ranks, global batch {point.global_batch}, at most {study.time_limit_s} s")
        try:
            outcome = attempt(study, point, where, number)
        except (Stopped, KeyboardInterrupt) as stop:
            where.set("pending", f"interrupted ({stop.args[0] if stop.args else 'SIGINT'})", ended=time.time())
            raise
        where.set(
            outcome.status,
            outcome.reason,
            exit_code=outcome.exit_code,
            wall_s=outcome.wall_s,
            ended=time.time(),
            lost_runners=0,
        )
        took = "" if outcome.wall_s is None else f" after {outcome.wall_s:.0f} s"
        say(outcome.status + took + (f": {outcome.reason}" if outcome.reason else ""))
