"""`frontier submit` on a real Slurm: jobs to their end, a second submission, --after, a chain, and every refusal of sbatch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, curve, read_jsonl, toy_config
from tests.slurm.cluster import Cluster, until
from tests.submit.runs import Submitter, write_config

GOLDEN = ROOT / "tests" / "submit" / "golden"
TWO_NODES = ("--site", "local", "--nodes", "2", "--time", "10")


@pytest.fixture
def submit(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Submitter:
    """In a folder of its own on a login node of the cluster; jobs run with this Python and these sources."""
    for name in os.environ:
        if name.startswith(("FRONTIER_", "SBATCH_", "SLURM_")):
            monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.env[name])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    return Submitter(tmp_path, capsys)


def submitted(submit: Submitter, *words: str, config: str = "small.yaml") -> dict:
    code, out, said = submit(*words, "--json", config=config)
    assert code == 0, said
    return json.loads(out)


@pytest.mark.slow
def test_two_nodes_to_the_end(submit: Submitter, cluster: Cluster, shards: Path) -> None:
    """Two ranks on each of two nodes; a second submission of the run waits for the first one, or is refused."""
    run = submit.folder / "run"
    config = toy_config(run, shards)
    config["train"]["steps"] = 20
    (submit.folder / "toy.yaml").write_text(yaml.safe_dump(config))
    code, out, said = submit(*TWO_NODES, config="toy.yaml")
    assert code == 0, said
    job = read_jsonl(run / "jobs" / "submitted.jsonl")[0]["job"]
    log = run / "jobs" / f"toy-{job}.out"
    for words in (
        f"job {job}, log {log}",
        f"squeue --jobs={job}",
        f"touch {run}/STOP",
        f"scancel --signal=USR1 --batch {job}",
    ):
        assert words in out
    code, _, said = submit(*TWO_NODES, config="toy.yaml")
    assert code == 2 and f"job {job} of run {run} is" in said and f"--after {job}" in said and said.count("\n") == 1
    behind = submitted(submit, *TWO_NODES, "--after", job, "train.steps=25", config="toy.yaml")["jobs"][0]
    assert cluster.state(behind["job"]) == "PENDING" and behind["depend"] == f"afterany:{job}"
    cluster.run("scancel", behind["job"])
    launch = next(line for line in out.splitlines() if line.startswith("launch   "))

    def started() -> bool:  # srun's own words
        return bool(cluster.processes(lambda p: p.name() == "srun" and p.cmdline() == launch.split()[1:]))

    until(started, 60, lambda: f"{launch}\n{cluster.processes()}\n{log.read_text()}")
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    assert len(curve(run)) == 20
    start = read_jsonl(run / "starts.jsonl")[0]
    assert (start["world_size"], start["nodes"], start["launcher"]) == (4, 2, "slurm")
    code, _, said = submit(*TWO_NODES, config="toy.yaml")
    assert code == 2 and "has all its 20 steps" in said


def test_refusals_are_one_line_with_the_mend(
    submit: Submitter, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch's own and those of a Slurm that takes a job which can never start; nothing stays in the queue."""
    made = cluster.run("scontrol", "create", "PartitionName=short", "Nodes=n1", "MaxTime=1", "MaxNodes=1")
    assert made.returncode == 0, made.stderr
    try:
        for words, line in (
            (["--partition", "gpu"], "no partition 'gpu' here: `sinfo -s` lists them; pass --partition"),
            (["--nodes", "99"], "the default partition runs no job of 99 nodes for 00:10:00"),
            (["--partition", "short"], "short runs no job of 2 nodes for 00:10:00: `scontrol show partition short`"),
            (["--sbatch-args", "--constraint=h100"], "this machine has not what site local asks for"),
            (["--sbatch-args", "--wrong"], "unrecognized option '--wrong'"),
        ):
            code, out, said = submit(*TWO_NODES, *words, "train.global_batch=12672")
            assert (code, out) == (2, ""), words
            assert line in said and said.count("\n") == 1, said
    finally:
        cluster.run("scontrol", "delete", "PartitionName=short")
    assert cluster.run("squeue", "--noheader", "--name=small").stdout == ""
    assert not (submit.folder / "runs/small/jobs/submitted.jsonl").exists()
    monkeypatch.setenv("SLURM_CONF", "/no/slurm.conf")
    monkeypatch.setattr("frontier.submit.queue.PATIENCE_S", 2)
    code, _, said = submit(*TWO_NODES)
    assert code == 75 and "sbatch does not answer" in said


def test_variables_of_sbatch_do_not_win_over_the_script(
    submit: Submitter, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TIMELIMIT", "5"), ("JOB_NAME", "other"), ("PARTITION", "high"), ("OUTPUT", "/dev/null")):
        monkeypatch.setenv(f"SBATCH_{name}", value)
    job = submitted(submit, *TWO_NODES, "--partition", "batch", "--sbatch-args", "--hold")["jobs"][0]
    shown = cluster.run("squeue", "--noheader", f"--jobs={job['job']}", "--format=%j %l %P %D").stdout.split()
    assert shown == ["small", "10:00", "batch", "2"]


@pytest.mark.parametrize("site", ["local", "frontier"])
def test_the_golden_headers_are_slurms(site: str, cluster: Cluster) -> None:
    """Of the sites whose header this cluster can meet (feature nvme, partition batch)."""
    smaller = (GOLDEN / f"{site}.sh").read_text().replace("#SBATCH -N 8", "#SBATCH -N 4")  # the cluster has four
    script = cluster.base / f"{site}.sh"
    script.write_text(smaller)
    done = cluster.run("sbatch", "--test-only", script)
    assert done.returncode == 0 and "to start at" in done.stderr, done.stderr


@pytest.mark.parametrize("export", ["NONE", "NIL"])
def test_nothing_of_the_submitting_shell(export: str, tmp_path: Path, cluster: Cluster) -> None:
    """`sbatch --export=NONE`: the script alone says what the job does, to the end."""
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\necho "rank $SLURM_PROCID $* site $FROM_SITE $HDF5_USE_FILE_LOCKING"\n')
    python.chmod(0o755)
    text = (GOLDEN / "local.sh").read_text().replace("#SBATCH -N 8", "#SBATCH -N 2")
    for name, place in (("/HERE", tmp_path), ("/PACKAGE/jobs", ROOT / "jobs"), ("/VENV", python.parent.parent)):
        text = text.replace(name, str(place))
    script, logs = tmp_path / "job.sh", tmp_path / "runs/small/jobs"
    logs.mkdir(parents=True)
    script.write_text(text)
    (tmp_path / "small.yaml").touch()
    job = cluster.run("sbatch", "--parsable", f"--export={export}", script, FROM_SITE="wrong").stdout.strip()
    assert cluster.wait(job) == "COMPLETED"
    said = next(logs.glob("*.out")).read_text()
    for rank in range(4):
        assert (
            f"rank {rank} -W ignore -u -m frontier pretrain small.yaml train.steps=40 run.dir=runs/small site  FALSE"
            in said
        )


@pytest.mark.slow  # three starts of training
def test_a_chain(submit: Submitter, cluster: Cluster, shards: Path) -> None:
    """The first job is told to save and ends with 85, the second ends the run, the third has nothing to do and is dropped."""
    run = submit.folder / "run"
    config = toy_config(run, shards)
    config["train"]["steps"] = 400
    (submit.folder / "toy.yaml").write_text(yaml.safe_dump(config))
    jobs = [row["job"] for row in submitted(submit, *TWO_NODES, "--chain", "3", config="toy.yaml")["jobs"]]
    metrics, logs = run / "metrics.jsonl", [run / "jobs" / f"toy-{job}.out" for job in jobs]
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 5, 90, lambda: logs[0].read_text())
    assert cluster.run("scancel", "--signal=USR1", "--batch", jobs[0]).returncode == 0
    assert cluster.wait(jobs[0]) == "FAILED"
    assert "not requeued: FRONTIER_REQUEUE=0" in logs[0].read_text()
    assert (
        cluster.run("squeue", "--noheader", "--states=all", "--format=%r", f"--jobs={jobs[0]}").stdout.strip()
        == "NonZeroExitCode"
    )
    assert cluster.wait(jobs[1]) == "COMPLETED", logs[1].read_text()
    assert cluster.wait(jobs[2]) == "CANCELLED"
    assert len(curve(run)) == 400
    first, second = read_jsonl(run / "starts.jsonl")
    assert first["resumed_from"] is None and second["resumed_from"] > 0
    assert not logs[2].exists() and not (run / "requeues.jsonl").exists()
    assert sys.prefix in (run / "jobs" / "toy.sh").read_text()
