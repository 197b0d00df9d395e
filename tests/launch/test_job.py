"""The job around a start, from recorded environments."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontier.errors import UserError
from frontier.launch.job import Job, current_job

CASES = [
    ({}, Job()),
    ({"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]"}, Job("slurm", "12", 0, "n[1-2]", None)),
    (
        {"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"},
        Job("slurm", "12_3", 2),
    ),
    ({"SLURM_JOB_ID": "12", "SLURM_JOB_END_TIME": "1795288535"}, Job("slurm", "12", end=1795288535.0)),
    # What the job script says comes first, but an empty word is none; Slurm's own count comes first.
    ({"FRONTIER_JOB_END": "7", "SLURM_JOB_END_TIME": "9", "SLURM_JOB_ID": "1"}, Job("slurm", "1", end=7.0)),
    ({"FRONTIER_JOB_END": "", "SLURM_JOB_END_TIME": "9", "SLURM_JOB_ID": "1"}, Job("slurm", "1", end=9.0)),
    ({"SLURM_RESTART_COUNT": "2", "FRONTIER_RESTARTS": "1", "SLURM_JOB_ID": "1"}, Job("slurm", "1", 2)),
    ({"FRONTIER_RESTARTS": "3"}, Job(restarts=3)),
    ({"FRONTIER_ENV_STAGE_S": "41.5"}, Job(environment_stage_s=41.5)),
    ({"PBS_JOBID": "7[2].aurora", "PBS_NODEFILE": "/nowhere"}, Job("pbs", "7[2].aurora")),
]


@pytest.mark.parametrize(("env", "expected"), CASES)
def test_current_job(env: dict[str, str], expected: Job) -> None:
    assert current_job(env) == expected


def test_nodes_of_pbs(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("x1\nx1\nx2\nx2\n")
    assert current_job({"PBS_JOBID": "7", "PBS_NODEFILE": str(tmp_path / "nodes")}).nodelist == "x1,x2"


@pytest.mark.parametrize(
    "name",
    ["FRONTIER_JOB_END", "SLURM_JOB_END_TIME", "SLURM_RESTART_COUNT", "FRONTIER_RESTARTS", "FRONTIER_ENV_STAGE_S"],
)
@pytest.mark.parametrize("value", ["tomorrow", "inf", "nan", "-1"])
def test_no_number(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name}='{value}' is not a number"):
        current_job({name: value})
