"""sacct's energy, and what `python -m frontier.energy` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frontier.energy.__main__ import main
from frontier.energy.slurm import FIELDS, joules, parse
from frontier.energy.source import Unavailable
from frontier.errors import UserError
from tests.energy.test_devices import LOGS, answering, real_logs
from tests.energy.test_meter import nothing
from tests.energy.trees import CrayNode

SONAR = [
    "JobID",
    "JobIDRaw",
    "User",
    "Account",
    "State",
    "Start",
    "End",
    "AveCPU",
    "AveDiskRead",
    "AveDiskWrite",
    "AveRSS",
    "AveVMSize",
]
SONAR += [
    "ElapsedRaw",
    "ExitCode",
    "Layout",
    "MaxRSS",
    "MaxVMSize",
    "MinCPU",
    "ReqCPUS",
    "ReqMem",
    "ReqNodes",
    "Reservation",
    "Submit",
]
SONAR += [
    "Suspended",
    "SystemCPU",
    "TimelimitRaw",
    "UserCPU",
    "NodeList",
    "Partition",
    "AllocTRES",
    "Priority",
    "JobName",
]

JOB = """JobID|State|ElapsedRaw|NNodes|ConsumedEnergyRaw
1234567|COMPLETED|3600|2|{}
1234567.batch|COMPLETED|3600|1|7200000
1234567.extern|COMPLETED|3600|2|14000000
1234567.0|COMPLETED|3500|2|13900000
"""


@real_logs
def test_real_sacct_without_an_energy_column_measures_nothing() -> None:
    text = (LOGS / "sonar_slurm/src_testdata_sacct-output.txt").read_text()
    records = parse(text, SONAR)
    assert len(records) > 20
    first = records[0]
    assert (first.job, first.seconds) == ("973821", 7164)
    assert list(first.steps) == ["batch", "extern", "0"]
    assert all(r.joules is None and not any(r.steps.values()) for r in records)


@real_logs
def test_real_sacct_lines_with_an_energy_column() -> None:
    text = (LOGS / "sonar_slurm/src_testdata_sacct-output.txt").read_text()
    lines = [f"{i}|{line}" for i, line in enumerate(text.splitlines())]
    records = parse("\n".join(lines), ["ConsumedEnergyRaw", *SONAR])
    assert records[0].steps == {"batch": 1.0, "extern": 2.0, "0": 3.0}
    assert records[0].joules == 3.0  # line 0 of the job itself says 0: the largest step stands for it
    assert records[1].joules == 4.0


def test_what_slurm_writes_for_nothing_is_none() -> None:
    assert [joules(t) for t in ("", "0", "4294967294", "18446744073709551614", "N/A")] == [None] * 5
    assert [joules(t) for t in ("1530000", "1.53M", "2K")] == [1_530_000, 1_530_000, 2000]


@pytest.mark.parametrize(("own", "whole"), [("14100000", 14_100_000), ("", 14_000_000), ("0", 14_000_000)])
def test_a_job_is_not_the_sum_of_its_steps(own: str, whole: float) -> None:
    (record,) = parse(JOB.format(own))
    assert record.joules == whole
    assert record.steps["0"] == 13_900_000


def test_odd_sacct_output_says_so() -> None:
    with pytest.raises(Unavailable, match="JobID"):
        parse("slurm_load_jobs error: Unable to contact slurm controller\n")
    with pytest.raises(Unavailable, match="fields"):
        parse("|".join(FIELDS) + "\n123|COMPLETED\n")


def test_command_without_any_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"], nothing(tmp_path)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source"] is None and found["power_w"] is None
    assert all(not s["usable"] and s["reason"] for s in found["sources"].values())
    main([], nothing(tmp_path))
    assert "not measured" in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing to watch"):
        main(["--watch", "1"], nothing(tmp_path))
    with pytest.raises(UserError, match="--watch"):
        main(["--watch", "0"], nothing(tmp_path))


def test_command_on_a_cray_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with CrayNode(tmp_path / "pm", watts=1200.0):
        assert main(["--json"], nothing(tmp_path, pm_counters=tmp_path / "pm")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source"] == "Cray pm_counters"
    assert found["power_w"] == pytest.approx(1200, rel=0.01)
    assert found["sensor_w"] == 1200
    assert found["parts_w"]["accel0"] == pytest.approx(200, rel=0.05)
    assert found["sources"]["rapl"]["reason"]


def test_command_for_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    access = nothing(tmp_path, run=answering(JOB.format("14100000")))
    assert main(["--job", "1234567", "--json"], access) == 0
    assert json.loads(capsys.readouterr().out)["energy_j"] == 14_100_000
    main(["--job", "1234567"], access)
    assert "14,100,000 J = 3.917 kWh" in capsys.readouterr().out
    with pytest.raises(UserError, match="--job 5"):
        main(["--job", "5"], nothing(tmp_path))
