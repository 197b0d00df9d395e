"""Slurm and PBS as `frontier submit` uses them: hand a script over, ask what became of jobs, and turn refusals into one line with the mend."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence

from frontier.errors import TransientError, UserError
from frontier.submit.render import Job, hms
from frontier.submit.settings import queue_variable

PATIENCE_S = 90
"""For a command of the scheduler."""

HEADER = ("ACCOUNT", "JOB_NAME", "OPEN_MODE", "OUTPUT", "REQUEUE", "NO_REQUEUE", "SIGNAL", "TIMELIMIT")
"""SBATCH_<these> would win over the script's header."""

OVER = (
    "COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
)  # fmt: skip
"""States of a job of Slurm that will not run again; a requeued one waits under the same id."""

NEVER = re.compile(r"PartitionConfig|Partition(Node|Time)Limit|(QOS|Assoc)Max\w+PerJob\w*|InvalidAccount|InvalidQOS")
"""squeue's reasons for jobs that wait for ever."""

MENDS = (
    (r"invalid partition|Unknown queue", "no partition '{job.partition}' here: {list} lists them; pass --partition"),
    (r"Invalid account|Account_Name|InvalidAccount", "account '{job.account}' may not run here: pass --account, one of your allocations that has {job.partition}"),
    (r"invalid qos|InvalidQOS", "{words}: leave --qos out, or name one that your account has"),
    (r"time limit|TimeLimit|MaxWall", "{time} is longer than {job.partition} allows: pass a shorter --time; the run goes on in the next job"),
    (r"Node count|Requested node configuration|More processors|NodeLimit|MaxNode|PartitionConfig|all possible destinations", "{job.partition} runs no job of {job.nodes} nodes for {time}: {limits} tells its limits; pass other --nodes, --time or --partition"),
    (r"Invalid feature|generic resource|filesystems", "this machine has not what site {job.site.name} asks for ({words}): pass --site for this machine; `local` is for any Slurm"),
    (r"dependency", "{words}: --after takes the number of one of your jobs"),
    (r"MaxSubmit|Job violates accounting|would exceed", "{words}: you have as many jobs in the queue as you may; wait for one"),
)  # fmt: skip
"""(what the scheduler says, the line for the user)"""

SILENT = re.compile(
    r"Unable to contact|timed out|Connection refused|try again|Zero Bytes|cannot connect", re.IGNORECASE
)


def submit(job: Job, more: Sequence[str], depend: str) -> str:
    """Hand the job's script over; returns the job's id.

    Args:
        more: further words for sbatch or qsub.
        depend: such as afterany:123, or "".

    Raises:
        UserError: it was refused, or could never start (then it is cancelled).
        TransientError: the scheduler does not answer.
    """
    if job.site.scheduler == "pbs":
        words = ["qsub", *(["-W", f"depend={depend}"] if depend else []), *more, str(job.path)]
    else:
        waits = [f"--dependency={depend}", "--kill-on-invalid-dep=yes"] if depend else []
        words = ["sbatch", "--parsable", *waits, *more, str(job.path)]
    over = {f"SBATCH_{word}" for word in HEADER} | {queue_variable(job.site)}
    done = run(words, {key: value for key, value in os.environ.items() if key not in over})
    if done is None:
        raise UserError(
            f"no {words[0]} here, and {job.site.name} uses it: submit on its login node, or look at the script with --dry-run"
        )
    if done.returncode:
        raise explain(job, done.stderr, words)
    job_id = done.stdout.strip().split(";")[0]
    if job.site.scheduler == "slurm":
        asked = run(["squeue", "--noheader", f"--jobs={job_id}", "--format=%r"])
        reason = asked.stdout.strip() if asked else ""
        if NEVER.search(reason):
            run(["scancel", job_id])
            raise explain(job, reason, words)
    return job_id


def explain(job: Job, said: str, words: Sequence[str]) -> UserError:
    """A refusal as an error of one line."""
    said = " ".join(re.sub(r"^(sbatch|qsub): (error: )?", "", line) for line in said.splitlines())
    if SILENT.search(said):
        return TransientError(
            f"{words[0]} does not answer ({said}): try again in some minutes; the script is {job.path}"
        )
    for pattern, mend in MENDS:
        if re.search(pattern, said, re.IGNORECASE):
            slurm = job.site.scheduler == "slurm"
            text = mend.format(
                job=job,
                words=said,
                time=hms(job.seconds),
                list="`sinfo -s`" if slurm else "`qstat -Q`",
                limits=f"`scontrol show partition {job.partition or ''}`" if slurm else "`qstat -Qf`",
            )
            return UserError(text.replace("None", "the default partition"))
    return UserError(f"{shlex.join(words)} refuses: {said or 'without a word'}")


def alive(job: Job, ids: Sequence[str]) -> dict[str, str]:
    """id -> state, of the jobs that wait or run.

    Raises:
        TransientError: the scheduler does not answer.
    """
    if job.site.scheduler == "slurm":
        return {key: state.lower() for key, state in (slurm_states(ids) or {}).items() if state not in OVER}
    states = {job_id: _pbs_state(job_id) for job_id in ids}
    return {job_id: state for job_id, state in states.items() if state}


def slurm_states(ids: Sequence[str]) -> dict[str, str] | None:
    """id -> state, of those that Slurm's controller still knows: the living and those that ended minutes ago. None: no squeue here.

    Raises:
        TransientError: it does not answer.
    """
    if not ids:
        return {}
    done = run(["squeue", "--noheader", "--states=all", "--format=%i %T", f"--jobs={','.join(ids)}"])
    if done is None:
        return None
    if "Invalid job id" in done.stderr:  # one long gone
        each = [slurm_states([one]) or {} for one in ids] if len(ids) > 1 else []
        return {key: state for one in each for key, state in one.items()}
    if done.returncode:
        raise TransientError(f"squeue does not answer ({' '.join(done.stderr.split())}): try again in some minutes")
    rows = [line.split() for line in done.stdout.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def _pbs_state(job_id: str) -> str:
    done = run(["qstat", "-f", job_id])
    found = re.search(r"job_state = (\w)", done.stdout) if done and done.returncode == 0 else None
    return (
        {"Q": "queued", "R": "running", "H": "held"}.get(found[1], found[1]) if found and found[1] not in "FX" else ""
    )


def run(words: Sequence[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str] | None:
    """A command of the scheduler; None where there is none. Raises TransientError where it hangs."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, env=env)
    except FileNotFoundError:
        return None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TransientError(f"{words[0]} does not answer: {error}; try again in some minutes") from None
