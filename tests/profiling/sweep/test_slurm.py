"""Submitted studies against stand-ins for sbatch, squeue and sacct: scripts, job ids, and what becomes of jobs that are gone."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from frontier.errors import UserError
from frontier_profiling.sweep.command import joined, parser
from frontier_profiling.sweep.execute import command
from frontier_profiling.sweep.grid import points
from frontier_profiling.sweep.slurm import batches
from frontier_profiling.sweep.state import place
from frontier_profiling.sweep.study import read_study
from tests.conftest import ROOT
from tests.profiling.sweep.fakes import DRIVER, environment, status, statuses, study, sweep

FAKES = {
    "srun": "true",
    "sbatch": 'echo "$@" >> "$SLURM_FAKE/sbatch.txt"; n=$(wc -l < "$SLURM_FAKE/sbatch.txt"); touch "$SLURM_FAKE/job$n"; echo "$n;cluster"',
    "squeue": 'for f in "$SLURM_FAKE"/job*; do [ -e "$f" ] && echo "${f##*/job} $( [ -s "$f" ] && cat "$f" || echo RUNNING )"; done; true',
    "sacct": 'cat "$SLURM_FAKE/sacct.txt" 2>/dev/null',
}
DDP, FULL, HYBRID = (f"vit_debug-{word}-r2" for word in ("ddp", "full_shard", "hybrid_1"))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which the stand-ins keep their state: a file a job."""
    tools, state = tmp_path / "bin", tmp_path / "slurm"
    tools.mkdir()
    state.mkdir()
    for name, body in FAKES.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod((tools / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_FAKE", str(state))
    return state


def submit(path: Path, out: Path, *more: str, state: Path, **behaviour: str):
    return sweep(path, "--out", out, "--mode", "submitted", *more, behaviour=behaviour, SLURM_FAKE=str(state))


def run_script(script: Path, job: str, state: Path, **behaviour: str) -> None:
    """What Slurm would do, with fake runs instead of srun: a python that hands `… -m frontier sweep WORDS` to the driver."""
    driver, python = script.parent / "driver.py", script.parent / "env" / "bin" / "python"
    driver.write_text(DRIVER)
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/bash\nwhile [ "$1" != sweep ]; do shift; done\nshift\nexec {sys.executable} {driver} "$@"\n'
    )
    python.chmod(0o755)
    more = {"SLURM_JOB_ID": job, "SLURM_FAKE": str(state), "FRONTIER_VENV": str(python.parent.parent)}
    done = subprocess.run(
        ["bash", script], capture_output=True, text=True, cwd=ROOT, env=environment(behaviour, **more)
    )
    assert done.returncode in (0, 75), done.stdout + done.stderr


def test_one_job_walks_the_points_and_a_later_call_gathers(tmp_path: Path, slurm: Path) -> None:
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    setup = tmp_path / "setup.sh"
    setup.write_text("export FROM_SETUP=1\n")
    done = submit(path, out, "--sbatch-args", "-A abc -p batch", "--job-setup", str(setup), state=slurm)
    assert done.returncode == 0, done.stderr
    script = out / "jobs" / "n1.sh"
    assert (slurm / "sbatch.txt").read_text() == f"--parsable -A abc -p batch {script}\n"
    text = script.read_text()
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=2\n#SBATCH --exclusive\n#SBATCH --requeue\n" in text
    assert "#SBATCH --time=00:09:00\n" in text and "export FROM_SETUP=1" in text
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", "-x", str(script)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert {status(out, p)["slurm_job_id"] for p in (DDP, FULL, HYBRID)} == {"1"}
    assert set(statuses(out).values()) == {"pending"}

    assert submit(path, out, state=slurm).returncode == 0  # the job is still there: nothing is submitted twice
    assert len((slurm / "sbatch.txt").read_text().splitlines()) == 1

    run_script(script, "1", slurm, ddp="oom")
    (slurm / "job1").unlink()
    assert sweep(out, "--collect", SLURM_FAKE=str(slurm)).returncode == 0  # study.yaml still says submitted
    assert statuses(out) == {"ddp": "oom", "full_shard": "done", "hybrid_1": "done"}
    assert len((slurm / "sbatch.txt").read_text().splitlines()) == 1


def test_points_of_lost_jobs_are_submitted_again(tmp_path: Path, slurm: Path) -> None:
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    assert submit(path, out, "--jobs-per-study", "many", state=slurm).returncode == 0
    assert [status(out, p)["slurm_job_id"] for p in (DDP, FULL, HYBRID)] == ["1", "2", "3"]
    for point, job in ((DDP, "1"), (FULL, "2")):  # both were killed with their sweep
        place = out / "points" / point / "status.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "status": "running", "slurm_job_id": job}))
        (slurm / f"job{job}").unlink()
    (slurm / "sacct.txt").write_text("1|OUT_OF_MEMORY|\n2|NODE_FAIL|\n")
    assert submit(path, out, "--collect", state=slurm).returncode == 0
    assert statuses(out) == {"ddp": "oom", "full_shard": "pending", "hybrid_1": "pending"}
    assert "NODE_FAIL" in status(out, FULL)["reason"] and status(out, HYBRID)["slurm_job_id"] == "3"
    assert submit(path, out, "--jobs-per-study", "many", state=slurm).returncode == 0
    assert len((slurm / "sbatch.txt").read_text().splitlines()) == 4  # only the one that was lost
    assert status(out, DDP)["status"] == "oom" and status(out, FULL)["slurm_job_id"] == "4"


def test_ends_of_jobs_by_squeue_alone(tmp_path: Path, slurm: Path) -> None:
    """Without sacct: what a job was doing when its time ended is a timeout where it was the first thing that it did."""
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    (slurm.parent / "bin" / "sacct").write_text("#!/bin/bash\nexit 1\n")
    assert submit(path, out, state=slurm).returncode == 0

    def becomes(point: str, **facts: object) -> None:
        where = out / "points" / point / "status.json"
        where.write_text(json.dumps({**json.loads(where.read_text()), **facts}))

    becomes(DDP, status="done")
    becomes(FULL, status="pending", reason="interrupted (SIGTERM)", started=1.0)
    (slurm / "job1").write_text("TIMEOUT")
    assert submit(path, out, "--retry", "failed", state=slurm).returncode in (0, 75)
    assert {status(out, point)["status"] for point in (FULL, HYBRID)} == {"pending"}
    assert [status(out, point).get("lost_runners") for point in (FULL, HYBRID)] == [1, 0]  # hybrid_1 had not begun
    assert {status(out, point)["slurm_job_id"] for point in (FULL, HYBRID)} == {"2"}
    becomes(FULL, status="running", started=2.0)
    (slurm / "job2").write_text("TIMEOUT")
    submit(path, out, "--collect", state=slurm)
    assert "job 2 reached its time limit" in status(out, FULL)["reason"] and status(out, FULL)["status"] == "timeout"
    assert status(out, HYBRID)["status"] == "pending"


def test_a_dead_job_s_lock_of_another_host_does_not_keep_others_away(tmp_path: Path, slurm: Path) -> None:
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    assert submit(path, out, "--jobs-per-study", "many", state=slurm).returncode == 0
    for point, pid in ((DDP, 7), (FULL, 8)):
        where = out / "points" / point
        known = {**status(out, point), "status": "running", "host": "n1", "pid": 7}
        (where / "status.json").write_text(json.dumps(known))
        (where / ".running").write_text(json.dumps({"host": "n1", "pid": pid}))
    (slurm / "job1").write_text("FAILED")
    (slurm / "job2").write_text("FAILED")
    submit(path, out, "--collect", state=slurm)
    assert status(out, DDP)["status"] == "pending"
    assert status(out, FULL)["status"] == "running"  # by somebody else than that job


def test_options_for_slurm_may_begin_with_a_dash() -> None:
    words = joined(["x", "--srun-args", "-c7", "--sbatch-args", "--exclusive", "--collect"])
    options = parser().parse_args(words)
    assert (options.srun_args, options.sbatch_args, options.collect) == ("-c7", "--exclusive", True)


def test_jobs_are_cut_where_the_longest_job_ends(tmp_path: Path) -> None:
    grid = {
        "model": "vit_debug",
        "strategy": ["ddp", "full_shard", "hybrid_1"],
        "nodes": [1, 4],
        "micro_batch": 8,
        "data": "shards",
    }
    loaded = read_study(study(tmp_path / "s.yaml", grid=grid, time_limit_s=880, job={"time_limit_s": 2000}))
    found = batches(loaded, points(loaded, 2), "one")
    assert [(b.name, b.nodes, len(b.points), b.seconds) for b in found] == [
        ("n1-part1", 1, 2, 2000), ("n1-part2", 1, 1, 1000), ("n4-part1", 4, 2, 2000), ("n4-part2", 4, 1, 1000)
    ]  # fmt: skip
    assert len(batches(loaded, points(loaded, 2), "many")) == 6
    loaded = read_study(study(tmp_path / "s.yaml", grid=grid, time_limit_s=880, job={"time_limit_s": 900}))
    with pytest.raises(
        UserError,
        match="time_limit_s=880: a point takes up to 00:16:40 .* lasts 00:15:00 at most: --set time_limit_s=780",
    ):
        batches(loaded, points(loaded, 2), "many")


def test_a_quote_that_is_not_closed_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No closing quotation: close it"):
        read_study(study(tmp_path / "s.yaml", job={"sbatch_args": "--comment='a"}))


def test_without_slurm_it_says_so(tmp_path: Path) -> None:
    bare = {"PATH": "/nowhere"}
    done = sweep(study(tmp_path / "s.yaml"), "--out", tmp_path / "out", "--mode", "submitted", **bare)
    assert done.returncode == 2 and "no sbatch here" in done.stderr


def test_a_site_gives_header_account_and_longest_job(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SBATCH_ACCOUNT", raising=False)
    grid = {"model": "vit_debug", "strategy": ["ddp", "full_shard", "hybrid_1"], "nodes": [2, 100], "micro_batch": 8}
    path = study(tmp_path / "s.yaml", grid=grid, time_limit_s=3000, config={"data": {"image_size": 32}})
    done = submit(path, tmp_path / "out", "--site", "frontier", state=slurm)
    assert done.returncode == 2 and 'site frontier needs an account: --sbatch-args "-A abc123"' in done.stderr
    done = submit(path, tmp_path / "out", "--site", "aurora", state=slurm)
    assert done.returncode == 2 and "site aurora has PBS" in done.stderr
    done = submit(path, tmp_path / "out", "--site", "frontear", state=slurm)
    assert done.returncode == 2 and "did you mean frontier?" in done.stderr

    assert submit(path, tmp_path / "out", "--site", "frontier", "--sbatch-args", "-A abc", state=slurm).returncode == 0
    scripts = {script.stem: script.read_text() for script in (tmp_path / "out" / "jobs").glob("*.sh")}
    # Frontier's bins: two hours for 2 nodes, so a job takes two points of 52 minutes; six hours for 100.
    assert sorted(scripts) == ["n100", "n2-part1", "n2-part2"]
    text = scripts["n2-part1"]
    header = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --ntasks-per-node=8" in header and "#SBATCH --time=01:44:00" in header
    assert "#SBATCH -p batch" in header and "#SBATCH --network=disable_rdzv_get" in header
    assert "rocm/7.1.1" in text and "--gpu-bind=closest" in text and "job_begin" in text
    stored = yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())
    assert stored["job"]["site"] == "frontier" and status(tmp_path / "out", "vit_debug-ddp-n100")["slurm_job_id"]


def test_srun_words_of_the_site_come_before_the_study_s(tmp_path: Path) -> None:
    """As jobs/study.sh hands them over, quoted by bash."""
    path = study(tmp_path / "s.yaml", job={"srun_args": "--label"})
    loaded = read_study(path)
    point = points(loaded, 2)[0]
    env = {
        "SLURM_JOB_ID": "1", "FRONTIER_STEP_WORDS": "'-c7' '--cpu-bind=mask_cpu:0xfe,0xfe00'",
        "FRONTIER_PYTHON_WORDS": "'singularity' 'run' '-B' '/a b' 'python3'",
    }  # fmt: skip
    words = command(loaded, point, place(tmp_path, point), env)
    at = words.index("-c7")
    assert words[at : at + 3] == ["-c7", "--cpu-bind=mask_cpu:0xfe,0xfe00", "--label"]
    assert words[at + 3 : at + 10] == ["singularity", "run", "-B", "/a b", "python3", "-m", "frontier"]
    assert sys.executable in command(loaded, point, place(tmp_path, point), {"SLURM_JOB_ID": "1"})


LOST_NODE = "srun: error: Task launch for StepId=7.1 failed on node n2: Communication connection failure"


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (LOST_NODE, "pending"),
        ("srun: error: Node failure on n2", "pending"),
        ("srun: error: n2: task 1: Killed", "failed"),
        (f"rank 0 quotes: {LOST_NODE}", "failed"),
    ],
    ids=["no start", "no node", "a killed rank", "a quotation"],
)
def test_a_lost_node_is_no_result(
    tmp_path: Path,
    slurm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    said: str,
    known: str,
) -> None:
    """The point waits, the sweep ends with 85, and the job script hears which node it was."""
    from frontier.cli import main

    (slurm.parent / "bin" / "srun").write_text(f"#!/bin/bash\necho '{said}' >&2\nexit 233\n")
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_JOB_NUM_NODES", "1")):
        monkeypatch.setenv(name, value)
    code = main(["sweep", str(path), "--out", str(out), "--mode", "measured", "--no-report"])
    assert set(statuses(out).values()) == {known}
    if known == "failed":
        assert code == 75
        return
    assert code == 85
    assert said in capfd.readouterr().err.splitlines()
    assert [(out / "points" / point / "log.txt").exists() for point in (DDP, FULL)] == [True, False]  # tried elsewhere
