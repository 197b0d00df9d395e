"""Mode submitted: Slurm jobs that walk the study's points, and what became of them.

A job runs `frontier sweep OUT --mode measured --only …` inside its allocation; locks on the points keep two jobs from running the
same one. So this side only writes scripts, remembers job ids, and asks which jobs are still there.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template

from frontier.claim import HeldError, claimed
from frontier.errors import TransientError, UserError
from frontier.submit.queue import OVER, run, slurm_states
from frontier.submit.render import filled, hms
from frontier.submit.shell import site_shell
from frontier.submit.site import Site, jobs_folder, load_site
from frontier_profiling.sweep.grid import Point
from frontier_profiling.sweep.outcome import OUT_OF_MEMORY, tail
from frontier_profiling.sweep.state import FINAL, LOST_RUNNERS, Place, forget_runner, lost_too_often, place, write_text
from frontier_profiling.sweep.study import Study

START_S = 120
"""Added to a job's time for every point: starting ranks and reading what they left."""

SCRIPT = Template(
    """#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$per_node
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --time=$time
#SBATCH --output=$log
#SBATCH --open-mode=append
$directives
# shellcheck disable=SC1091,SC2034,SC2317
set -euo pipefail
cd $here
export FRONTIER_VENV=$${FRONTIER_VENV:-$prefix}
export FRONTIER_RANKS_PER_NODE=$per_node
export FRONTIER_REQUEUE=0 # the next `frontier sweep` submits what is left
$site
source $jobs/site.env
source $jobs/common.sh
source $jobs/study.sh
job_begin
$setup
out=$out
run=$$out/jobs/$batch
job_study "$$out" "$$out" --no-report --only $points
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
        site = load_site(study.job.site or "local")
        return SCRIPT.substitute(
            name=f"{study.name}-{self.name}"[:120],
            nodes=self.nodes,
            per_node=self.ranks_per_node,
            time=hms(self.seconds),
            log=shlex.quote(str(out.absolute() / "jobs" / f"{self.name}-%j.log")),
            directives="\n".join(self._directives(site)),
            here=shlex.quote(os.getcwd()),
            prefix=shlex.quote(sys.prefix),
            site=site_shell(site).strip(),
            jobs=shlex.quote(str(jobs_folder())),
            setup=study.job.setup.strip() or "# no --job-setup",
            out=shlex.quote(str(out.absolute())),
            batch=self.name,
            points=" ".join(shlex.quote(point.id) for point in self.points),
        )

    def _directives(self, site: Site) -> Iterator[str]:
        """The site's lines of the header; the account and what else --sbatch-args say lie over them."""
        if site.partition is not None:
            yield f"#SBATCH {site.queue_flag} {site.partition}"
        values = {
            "nodes": self.nodes,
            "ranks_per_node": self.ranks_per_node,
            "time": hms(self.seconds),
            "name": self.name,
        }
        for line in site.directives:
            yield f"#SBATCH {filled(line, values)}"


def batches(study: Study, found: Sequence[Point], jobs: str) -> list[Batch]:
    """many: a job a point; one: a job for all points of a number of nodes, cut where the site's longest job ends.

    Raises:
        UserError: the site's partition takes no job of so many nodes, or none as long as a point.
    """
    each = study.time_limit_s + START_S
    for nodes in sorted({point.nodes for point in found}):
        if (limit := known_limit(study, nodes)) and each > limit:
            raise UserError(
                f"time_limit_s={study.time_limit_s}: a point takes up to {hms(each)} with its start, and a job of {nodes} nodes "
                f"lasts {hms(limit)} at most: --set time_limit_s={limit - START_S}"
            )
    if jobs == "many":
        return [Batch(point.id, point.nodes, each, (point,)) for point in found]
    out = []
    for nodes in sorted({point.nodes for point in found}):
        own = [point for point in found if point.nodes == nodes]
        room = max(1, (known_limit(study, nodes) or 2 * 3600) // each)
        for index, start in enumerate(range(0, len(own), room), 1):
            part = tuple(own[start : start + room])
            name = f"n{nodes}" if len(own) <= room else f"n{nodes}-part{index}"
            out.append(Batch(name, nodes, each * len(part), part))
    return out


def known_limit(study: Study, nodes: int) -> int | None:
    """Seconds of the longest job of so many nodes: the study's word, else the site's; None: unknown."""
    hours = load_site(study.job.site).longest(nodes) if study.job.site else None
    return study.job.time_limit_s or (round(3600 * hours) if hours else None)


def check_site(study: Study) -> None:
    """Raise UserError for a site without Slurm, or for an account that is missing."""
    if study.job.site is None:
        return
    site = load_site(study.job.site)
    if site.scheduler != "slurm":
        raise UserError(
            f"site {site.name} has {site.scheduler.upper()}, and studies are submitted to Slurm: predict (--mode predicted)"
        )
    words = shlex.split(study.job.sbatch_args)
    given = any(word.startswith(("-A", "--account")) for word in words) or "SBATCH_ACCOUNT" in os.environ
    if site.account and not given:
        raise UserError(f'site {site.name} needs an account: --sbatch-args "-A abc123", or export SBATCH_ACCOUNT')


def submit(study: Study, out: Path, found: Sequence[Point], jobs: str, say: Callable[[str], None]) -> int:
    """Submit every point that is pending and in no job; returns the number of jobs.

    Raises:
        UserError: no sbatch here, or it refuses; jobs submitted before that stay and are remembered.
        TransientError: another call is submitting this study.
    """
    check_site(study)
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
    done = run(words)
    if done is None:
        raise UserError("no sbatch here: submit from a machine with Slurm, or use --mode measured or --dry-run")
    if done.returncode:
        raise UserError(f"{shlex.join(words)} refuses: {' '.join(done.stderr.split())}")
    return done.stdout.strip().split(";")[0]


def collect(study: Study, out: Path, found: Sequence[Point]) -> None:
    """Look what became of the points whose job is gone: out of memory, timeout, lost (pending again), or failed after several losses.

    Without an answer of squeue nothing is known of jobs, and the status files stay as they are.
    """
    places = [place(out, point) for point in found]
    open_places = [where for where in places if where.status()["status"] not in FINAL]
    ids = {str(job) for where in open_places if (job := where.status().get("slurm_job_id"))}
    try:
        known_jobs = slurm_states(sorted(ids))
    except TransientError:
        return
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


def ended(ids: set[str]) -> dict[str, str]:
    """job -> its last state by sacct, where there is one."""
    if not ids:
        return {}
    words = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State"]
    done = run([*words, "--jobs=" + ",".join(sorted(ids))])
    if done is None or done.returncode:
        return {}
    lines = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    return {job: state.split()[0] for job, state, *_ in lines if state}
