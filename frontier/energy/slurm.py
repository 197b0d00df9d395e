"""Energy of a finished job from Slurm's accounting (`sacct`, field ConsumedEnergyRaw)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from frontier.energy.source import Access, Unavailable

FIELDS = ("JobID", "State", "ElapsedRaw", "NNodes", "ConsumedEnergyRaw")
NO_VALUE = (2**32 - 2, 2**32 - 1, 2**64 - 2, 2**64 - 1)
"""Slurm's NO_VAL and INFINITE."""
SCALES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class JobRecord:
    """A job's joules: of the whole, and of each step; None where Slurm measured nothing."""

    job: str
    joules: float | None
    seconds: float | None
    steps: dict[str, float | None]


def joules(text: str) -> float | None:
    """ConsumedEnergyRaw (joules) or ConsumedEnergy (`1.53M`); None where empty, 0 or Slurm's "no value".

    0 is what Slurm writes where its energy plugin is off; a job that ran has used something.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text.strip())
    if not found or float(found[1]) in (0.0, *map(float, NO_VALUE)):
        return None
    return float(found[1]) * SCALES[found[2]]


def parse(text: str, fields: Sequence[str] | None = None) -> list[JobRecord]:
    """Jobs of `sacct --parsable2` output, in its order; `fields` where it has no header line.

    The whole is the job's own line. Where that has no figure it is the largest of the steps, not their sum: steps of a job share its nodes, whose energy
    each of them is charged with. Raises Unavailable where a line does not fit the fields.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    names = list(fields) if fields else (lines.pop(0).split("|") if lines else [])
    if "JobID" not in names:
        raise Unavailable("sacct output without a JobID column: give --parsable2 with a header")
    energy = next((name for name in ("ConsumedEnergyRaw", "ConsumedEnergy") if name in names), None)
    jobs: dict[str, JobRecord] = {}
    for line in lines:
        cells = line.split("|", len(names) - 1)
        if len(cells) < len(names):
            raise Unavailable(f"sacct line with {len(cells)} of {len(names)} fields: {line[:80]}")
        row = dict(zip(names, cells, strict=True))
        job, _, step = row["JobID"].partition(".")
        used = joules(row[energy]) if energy else None
        record = jobs.setdefault(job, JobRecord(job, None, None, {}))
        if step:
            record.steps[step] = used
        else:
            elapsed = row.get("ElapsedRaw", "")
            jobs[job] = JobRecord(job, used, float(elapsed) if elapsed.isdigit() else None, record.steps)
    return [_whole(record) for record in jobs.values()]


def _whole(record: JobRecord) -> JobRecord:
    if record.joules is not None:
        return record
    known = [used for used in record.steps.values() if used is not None]
    return JobRecord(record.job, max(known) if known else None, record.seconds, record.steps)


def job_energy(job: str, access: Access | None = None) -> JobRecord:
    """Ask sacct. Raises Unavailable where there is no sacct or it does not know the job."""
    access = access or Access()
    found = parse(access.run(["sacct", "-j", job, "--parsable2", f"--format={','.join(FIELDS)}"]))
    if not found:
        raise Unavailable(f"sacct knows no job {job}")
    return found[0]
