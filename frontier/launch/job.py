"""The job around this start: which scheduler, which job, how often it began before, and when it will be ended."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontier.errors import UserError


@dataclass(frozen=True)
class Job:
    """What the environment tells.

    Attributes:
        scheduler: slurm, pbs or none.
        id: as the scheduler's commands take it (`123_4` for a task of a Slurm array); None without a job.
        restarts: starts of this job before this one.
        nodelist: the job's nodes in the scheduler's short form; "" unknown.
        end: when the scheduler ends the job, seconds since 1970; None: unknown.
        environment_stage_s: what it took to bring the environment to the nodes' own disks; None: it was not.
    """

    scheduler: str = "none"
    id: str | None = None
    restarts: int = 0
    nodelist: str = ""
    end: float | None = None
    environment_stage_s: float | None = None

    def facts(self) -> dict[str, Any]:
        """As keys of starts.jsonl."""
        return {
            "scheduler": self.scheduler,
            "job_id": self.id,
            "restarts": self.restarts,
            "nodelist": self.nodelist or None,
            "job_end": self.end,
            "environment_stage_s": self.environment_stage_s,
        }


def current_job(env: Mapping[str, str] | None = None) -> Job:
    """Read the scheduler's variables, and those of the job scripts: FRONTIER_RESTARTS, FRONTIER_JOB_END, FRONTIER_ENV_STAGE_S.

    Raises:
        UserError: a variable that should be a number is none.
    """
    env = os.environ if env is None else env
    restarts = int(_number(env, "SLURM_RESTART_COUNT", "FRONTIER_RESTARTS") or 0)
    times = _number(env, "FRONTIER_JOB_END", "SLURM_JOB_END_TIME"), _number(env, "FRONTIER_ENV_STAGE_S")
    if "SLURM_JOB_ID" in env:
        task = env.get("SLURM_ARRAY_TASK_ID")
        array = env.get("SLURM_ARRAY_JOB_ID")
        name = f"{array}_{task}" if array and task else env["SLURM_JOB_ID"]
        return Job("slurm", name, restarts, env.get("SLURM_JOB_NODELIST", ""), *times)
    if "PBS_JOBID" in env:
        return Job("pbs", env["PBS_JOBID"], restarts, _pbs_nodes(env.get("PBS_NODEFILE", "")), *times)
    return Job("none", None, restarts, "", *times)


def _number(env: Mapping[str, str], *names: str) -> float | None:
    """Of the first that is set to something."""
    name = next((name for name in names if env.get(name)), None)
    if name is None:
        return None
    try:
        value = float(env[name])
        if 0 <= value < math.inf:
            return value
    except ValueError:
        pass
    raise UserError(f"environment variable {name}={env[name]!r} is not a number: unset it or set it right")


def _pbs_nodes(file: str) -> str:
    """PBS lists a job's nodes in a file, each as often as it has ranks."""
    try:
        return ",".join(dict.fromkeys(Path(file).read_text().split())) if file else ""
    except OSError:
        return ""
