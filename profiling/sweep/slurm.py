"""Mode submitted: Slurm jobs that walk the study's points, and what became of them.

A job runs `frontier sweep OUT --mode measured --only …` inside its allocation; locks on the points keep two jobs from running the
same one. So this side only writes scripts, remembers job ids, and asks which jobs are still there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template

from frontier.claim import HeldError, claimed
from frontier.errors import TransientError, UserError
from frontier_profiling.sweep.grid import Point
from frontier_profiling.sweep.outcome import OUT_OF_MEMORY, tail
from frontier_profiling.sweep.state import FINAL, LOST_RUNNERS, Place, forget_runner, lost_too_often, place, write_text
from frontier_profiling.sweep.study import Study

START_S = 120
"""Added to a job's time for every point: starting ranks and reading what they left."""

OVER = (
    "COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
)  # fmt: skip
"""States of a job that will not run again; a requeued one waits under the same id."""

SCRIPT = Template(
    """#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$per_node
#SBATCH --exclusive
#SBATCH --time=$time
#SBATCH --output=$log
#SBATCH --open-mode=append
set -euo pipefail
cd $here
$setup
exec $python -m frontier sweep $out --mode measured --no-report --only $points
"""
)


@dataclass(frozen=True)
class Batch:
    """One job to submit."""

    name: str
    nodes: int
    seconds: int
    points: tuple[Point, ...]

    @property
    def ranks_per_node(self) -> int:
        """Of the point that has most: without it Slurm allots one core a node, and refuses the steps of more ranks."""
        return max(-(-point.ranks // point.nodes) for point in self.points)

    def script(self, study: Study, out: Path) -> str:
        out = out.absolute()
        return SCRIPT.substitute(
            name=f"{study.name}-{self.name}"[:120],
            nodes=self.nodes,
            per_node=self.ranks_per_node,
            time=hms(self.seconds),
            log=shlex.quote(str(out / "jobs" / f"{self.name}-%j.log")),
            here=shlex.quote(os.getcwd()),
            setup=study.job.setup.strip() or "# no --job-setup",
            python=shlex.quote(sys.executable),
            out=shlex.quote(str(out)),
            points=" ".join(shlex.quote(point.id) for point in self.points),
        )


def hms(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def batches(study: Study, found: Sequence[Point], jobs: str) -> list[Batch]:
    """many: a job a point; one: a job for all points of a number of nodes, cut where the site's longest job ends."""
    each = study.time_limit_s + START_S
    if jobs == "many":
        return [Batch(point.id, point.nodes, each, (point,)) for point in found]
    room = max(1, study.job.time_limit_s // each)
    out = []
    for nodes in sorted({point.nodes for point in found}):
        own = [point for point in found if point.nodes == nodes]
        for index, start in enumerate(range(0, len(own), room), 1):
            part = tuple(own[start : start + room])
            name = f"n{nodes}" if len(own) <= room else f"n{nodes}-part{index}"
            out.append(Batch(name, nodes, each * len(part), part))
    return out


def submit(study: Study, out: Path, found: Sequence[Point], jobs: str, say: Callable[[str], None]) -> int:
    """Submit every point that is pending and in no job; returns the number of jobs.

    Raises:
        UserError: no sbatch here, or it refuses; jobs submitted before that stay and are remembered.
        TransientError: another call is submitting this study.
    """
    try:
        with claimed(out, ".submitting", "`frontier sweep`"):
            waiting = [point for point in found if _free(place(out, point))]
            (out / "jobs").mkdir(exist_ok=True)
            todo = batches(study, waiting, jobs)
            for batch in todo:
                script = out / "jobs" / f"{batch.name}.sh"
                write_text(script, batch.script(study, out))
                job = _sbatch(study, script)
                for point in batch.points:
                    where = place(out, point)
                    if where.status()["status"] == "pending":  # the job may have begun already
                        facts = {"slurm_job_id": job, "submitted": time.time(), "job_log": batch.name, "started": None}
                        where.set("pending", f"in job {job}", **facts)
                say(f"job {job}: {batch.nodes} nodes, {hms(batch.seconds)}, {len(batch.points)} points, {script}")
            return len(todo)
    except HeldError as error:
        raise TransientError(str(error)) from None


def _free(where: Place) -> bool:
    known = where.status()
    return known["status"] == "pending" and not known.get("slurm_job_id")


def _sbatch(study: Study, script: Path) -> str:
    words = ["sbatch", "--parsable", *shlex.split(study.job.sbatch_args), str(script)]
    done = _run(words)
    if done is None:
        raise UserError("no sbatch here: submit from a machine with Slurm, or use --mode measured or --dry-run")
    if done.returncode:
        raise UserError(f"{shlex.join(words)} refuses: {' '.join(done.stderr.split())}")
    return done.stdout.strip().split(";")[0]


def collect(study: Study, out: Path, found: Sequence[Point]) -> None:
    """Look what became of the points whose job is gone: out of memory, timeout, lost (pending again), or failed after several losses.

    Without squeue nothing is known of jobs, and the status files stay as they are.
    """
    places = [place(out, point) for point in found]
    open_places = [where for where in places if where.status()["status"] not in FINAL]
    ids = {str(job) for where in open_places if (job := where.status().get("slurm_job_id"))}
    known_jobs = states(ids)
    if known_jobs is None:
        return
    alive = {job for job, state in known_jobs.items() if state not in OVER}
    ends = {job: state for job, state in known_jobs.items() if state in OVER} | ended(ids - set(known_jobs))
    for where in open_places:
        known = where.status()
        job = known.get("slurm_job_id")
        if not job and known["status"] == "running":
            with suppress(HeldError), where.held():
                lost_too_often(where)
        if not job or str(job) in alive or known["status"] in FINAL:
            continue
        if ends.get(str(job)) in OVER:
            forget_runner(where, known)
        try:
            with where.held():
                if where.status() == known:
                    _gone(where, known, str(job), ends.get(str(job), ""), out, _first_of(str(job), places))
        except HeldError:
            continue  # a job on another host still has it


def _first_of(job: str, places: Sequence[Place]) -> bool:
    """Whether the job brought no point to its end: then the one that it ran had all of the job's time."""
    ends = (where.status() for where in places)
    return not any(known["status"] in FINAL and str(known.get("slurm_job_id")) == job for known in ends)


def _gone(where: Place, known: dict, job: str, state: str, out: Path, first: bool) -> None:
    # Slurm's SIGTERM lets the job's sweep mark its point as pending before it ends; `submit` clears "started".
    began = known["status"] == "running" or known.get("started") is not None
    blameless = not began and state in ("CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT", "COMPLETED")
    lost = int(known.get("lost_runners", 0)) + (not blameless)
    how = f"job {job} ended ({state})" if state else f"job {job} is gone"
    log = where.log if began else next(iter(sorted((out / "jobs").glob(f"*-{job}.log"))), where.log)
    killed = next((line for line in tail(log, 0).splitlines() if OUT_OF_MEMORY.search(line)), "")
    over = {"ended": known.get("ended") or time.time(), "slurm_job_id": None}
    if began and (state == "OUT_OF_MEMORY" or killed):
        where.set("oom", f"{how}: {' '.join(killed.split())[:250]}" if killed else how, **over)
    elif began and state == "TIMEOUT" and first:
        where.set("timeout", f"job {job} reached its time limit in Slurm while it ran this point, its first", **over)
    elif lost >= LOST_RUNNERS:
        where.set("failed", f"{how}, as {lost - 1} before it: see {log}", lost_runners=0, **over)
    else:
        where.set("pending", f"{how} without a result", slurm_job_id=None, lost_runners=lost)


def states(ids: set[str]) -> dict[str, str] | None:
    """job -> its state, of those that Slurm's controller still knows: the living and those that ended minutes ago.

    None where there is no squeue, or it does not answer.
    """
    if not ids:
        return {}
    done = _run(["squeue", "--noheader", "--format=%i %T", "--states=all", "--jobs=" + ",".join(sorted(ids))])
    if done is None:
        return None
    if done.returncode:
        if "Invalid job id" not in done.stderr:
            return None
        if len(ids) == 1:
            return {}  # long gone
        each = [states({job}) for job in sorted(ids)]
        return None if None in each else {job: state for one in each if one for job, state in one.items()}
    lines = [line.split() for line in done.stdout.splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2}


def ended(ids: set[str]) -> dict[str, str]:
    """job -> its last state by sacct, where there is one."""
    if not ids:
        return {}
    words = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State"]
    done = _run([*words, "--jobs=" + ",".join(sorted(ids))])
    if done is None or done.returncode:
        return {}
    lines = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    return {job: state.split()[0] for job, state, *_ in lines if state}


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TransientError(f"{words[0]} does not answer: {error}") from None
