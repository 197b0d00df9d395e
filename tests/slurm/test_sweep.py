"""`frontier sweep --mode submitted` on a real Slurm: jobs, steps, time limits and cancellations are Slurm's own.

In the first part ranks are stand-ins (tests/slurm/task.py), real tasks of real steps; in the slow part they train.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, curve, read_jsonl
from tests.profiling.sweep.fakes import environment, status, statuses, study, sweep
from tests.slurm.cluster import Cluster, until

STAND_IN = f"{sys.executable} -m tests.slurm.task"
GRID = {"model": "vit_debug", "strategy": ["ddp", "full_shard", "hybrid_1"], "nodes": 2, "micro_batch": 8, "data": "shards"}  # fmt: skip
DDP, FULL, HYBRID = (f"vit_debug-{word}-n2" for word in ("ddp", "full_shard", "hybrid_1"))


def toy(folder: Path, **changes: Any) -> Path:
    """Three strategies on 2 nodes with 2 ranks each."""
    return study(folder / "s.yaml", **{"mode": "submitted", "ranks_per_node": 2, "grid": GRID, **changes})


def submit(cluster: Cluster, path: Path, out: Path, *more: str, **behaviour: str):
    """`frontier sweep`; the ranks of its jobs behave as told."""
    done = sweep(path, "--out", out, "--srun-args", STAND_IN, *more, behaviour=behaviour, **clean(cluster))
    assert done.returncode in (0, 75), done.stdout + done.stderr
    return done


def clean(cluster: Cluster) -> dict[str, str]:
    return {name: cluster.env[name] for name in ("SLURM_CONF", "PATH")}


def job(out: Path, point: str) -> str:
    return str(status(out, point)["slurm_job_id"])


def logs(out: Path) -> str:
    return "\n".join(path.read_text() for path in [*out.glob("jobs/*.log"), *out.glob("points/*/log.txt")])


def await_tasks(out: Path, point: str, ranks: int = 4) -> list[dict[str, Any]]:
    """Where the ranks of the point run, once all do."""
    files = [out / "points" / point / f"task{rank}.json" for rank in range(ranks)]
    until(lambda: all(file.exists() for file in files), 90, lambda: logs(out))
    return [json.loads(file.read_text()) for file in files]


SITE = """\
name: ours
title: A cluster with GPUs
scheduler: slurm
account: false
ranks_per_node: 8
device: cuda
partition: batch
directives: [{text: "--constraint=nvme", source: suite}, {text: "--gpus-per-node={ranks_per_node}", source: suite}]
environment: [{text: "export OF_THE_SITE=1", source: suite}]
step: [{text: -c2, source: suite}, {text: "--gpus-per-task=1", source: suite}]
"""


@pytest.mark.slow
def test_one_job_walks_the_points_by_srun(tmp_path: Path, cluster: Cluster) -> None:
    """With header, environment and srun's words of a site of one's own."""
    out, path = tmp_path / "out", toy(tmp_path, time_limit_s=10)
    (tmp_path / "site.yaml").write_text(SITE)
    submit(cluster, path, out, "--site", "site.yaml", ddp="done", full_shard="lost", hybrid_1="sleep")
    assert len({job(out, point) for point in (DDP, FULL, HYBRID)}) == 1
    assert set(statuses(out).values()) == {"pending"}
    assert cluster.wait(job(out, DDP)) == "FAILED", logs(out)  # exit 75: a point failed
    submit(cluster, path, out, "--collect")
    assert statuses(out) == {"ddp": "done", "full_shard": "failed", "hybrid_1": "timeout"}, logs(out)
    rows = {row["strategy"]: row for row in json.loads((out / "rows.json").read_text())["rows"]}
    assert rows["ddp"]["nodes"] == 2 and rows["ddp"]["devices"] == 4 and rows["ddp"]["images_per_s"]
    assert "task 1: Killed" in rows["full_shard"]["error"]
    places = await_tasks(out, DDP)
    assert {(place["cores"], place["of_the_site"]) for place in places} == {("2", "1")}
    assert [place["host"] for place in places] == ["n1", "n1", "n2", "n2"]  # two ranks on each
    assert {(place["nodes"], place["address"]) for place in places} == {(2, "n1")}
    pids = [task["pid"] for point in (FULL, HYBRID) for task in await_tasks(out, point)]
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 20, lambda: f"ranks outlived their job: {pids}")


@pytest.mark.slow
def test_points_of_ended_jobs_are_taken_up_by_the_next_call(tmp_path: Path, cluster: Cluster) -> None:
    """One cancelled, one killed without a word, one cancelled in the queue; each in a job of its own."""
    grid = {**GRID, "nodes": 1}
    ddp, full, hybrid = (point.replace("-n2", "-n1") for point in (DDP, FULL, HYBRID))
    out, path = tmp_path / "out", toy(tmp_path, grid=grid)
    many = ("--jobs-per-study", "many")
    submit(cluster, path, out, *many, "--only", ddp, full, ddp="sleep", full_shard="sleep")
    submit(cluster, path, out, *many, "--sbatch-args", "--hold", ddp="sleep", full_shard="sleep")
    first = [job(out, point) for point in (ddp, full, hybrid)]
    assert len(set(first)) == 3 and cluster.state(first[2]) == "PENDING"
    tasks = [*await_tasks(out, ddp, 2), *await_tasks(out, full, 2)]
    assert {task["host"] for task in tasks} == {"n1", "n2"}  # whole nodes
    cluster.run("scancel", first[0], first[2])
    os.kill(status(out, full)["pid"], signal.SIGKILL)  # the job's sweep
    assert [cluster.wait(number) for number in first] == ["CANCELLED", "FAILED", "CANCELLED"]
    until(lambda: not any(psutil.pid_exists(task["pid"]) for task in tasks), 20, lambda: f"ranks left: {tasks}")

    submit(cluster, path, out, *many, "--sbatch-args", "")
    second = [job(out, point) for point in (ddp, full, hybrid)]
    assert not set(first) & set(second), logs(out)
    assert [cluster.wait(number) for number in second] == ["COMPLETED"] * 3, logs(out)
    submit(cluster, path, out, "--collect")
    assert statuses(out) == {"ddp": "done", "full_shard": "done", "hybrid_1": "done"}
    assert [status(out, point)["attempts"] for point in (ddp, full, hybrid)] == [2, 2, 1]
    submit(cluster, path, out, *many)  # nothing is left to submit
    assert [job(out, point) for point in (ddp, full, hybrid)] == second


def test_inside_an_allocation(tmp_path: Path, cluster: Cluster) -> None:
    """`salloc … frontier sweep --mode measured`: points that take more nodes than there are wait for another one."""
    out, grid = tmp_path / "out", {**GRID, "strategy": "ddp", "nodes": [1, 2, 4]}
    path = toy(tmp_path, grid=grid, mode="measured")
    words = ["--nodes=2", "--exclusive", "--ntasks-per-node=2", sys.executable, "-m", "frontier", "sweep", path]
    done = cluster.run(
        "salloc", *words, "--out", out, "--no-report", "--srun-args", STAND_IN, PYTHONPATH=environment()["PYTHONPATH"]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "takes 4 nodes, this allocation has 2; passed over" in done.stdout
    found = {row["nodes"]: row["status"] for row in json.loads((out / "rows.json").read_text())["rows"]}
    assert found == {1: "done", 2: "done", 4: "pending"}, logs(out)


def test_ranks_are_discovered_under_srun(tmp_path: Path, cluster: Cluster) -> None:
    """Steps of several shapes, among them nodes with unequal numbers of ranks."""
    code = "from frontier.launch.ranks import *; r = discover(); print(r.rank, r.world_size, r.local_rank, r.local_world_size, r.nodes, *rendezvous(r))"
    hosts = tmp_path / "hosts"
    hosts.write_text("n1\nn2\nn2\n")
    for words, want in (
        (["-wn1,n2", "-n4", "--ntasks-per-node=2"], ["0 4 0 2 2 n1", "1 4 1 2 2 n1", "2 4 0 2 2 n1", "3 4 1 2 2 n1"]),
        (["-wn1,n2", "-n3", "--ntasks-per-node=2"], ["0 3 0 2 2 n1", "1 3 1 2 2 n1", "2 3 0 1 2 n1"]),
        (["-N1", "-n2"], ["0 2 0 2 1 127.0.0.1", "1 2 1 2 1 127.0.0.1"]),
        (["-n3", "--distribution=arbitrary"], ["0 3 0 1 2 n1", "1 3 0 2 2 n1", "2 3 1 2 2 n1"]),
    ):
        more = {"SLURM_HOSTFILE": str(hosts)} if "--distribution=arbitrary" in words else {}
        found = cluster.run("srun", *words, f"--chdir={ROOT}", sys.executable, "-c", code, **more)
        assert found.returncode == 0, found.stderr
        lines = sorted(found.stdout.splitlines())
        assert [line.rsplit(" ", 1)[0] for line in lines] == want
        assert len({line.rsplit(" ", 1)[1] for line in lines}) == 1  # one port


@pytest.mark.slow  # a limit of Slurm is at least a minute
def test_the_time_limit_of_slurm(tmp_path: Path, cluster: Cluster) -> None:
    """A job that ends the first point that it ran: a timeout. One that had ended another before: that point runs again."""
    out, path = tmp_path / "out", toy(tmp_path, time_limit_s=300)
    submit(cluster, path, out, "--sbatch-args", "--time=1", ddp="done", full_shard="sleep", hybrid_1="done")
    before = job(out, DDP)
    assert cluster.wait(before, seconds=150) == "TIMEOUT"
    submit(cluster, path, out, "--sbatch-args", "--time=1", full_shard="sleep")
    assert statuses(out) == {"ddp": "done", "full_shard": "pending", "hybrid_1": "pending"}
    after = job(out, FULL)
    assert after != before and job(out, HYBRID) == after
    assert cluster.wait(after, seconds=150) == "TIMEOUT"
    submit(cluster, path, out, "--collect")
    assert statuses(out) == {"ddp": "done", "full_shard": "timeout", "hybrid_1": "pending"}
    assert f"job {after} reached its time limit" in status(out, FULL)["reason"]


@pytest.mark.slow
def test_training_by_srun(tmp_path: Path, cluster: Cluster) -> None:
    """vit_debug on 1 and 2 nodes with 2 ranks each, in one job a number of nodes, then a job a point; kill -9 of a rank."""
    changes = {
        "grid": {"model": "vit_debug", "strategy": ["ddp", "full_shard"], "nodes": [1, 2], "micro_batch": 4},
        "config": {"data": {"image_size": 32}, "parallel": {"timeout_s": 120}},
        "steps": 3, "time_limit_s": 600, "threads": 1,
    }  # fmt: skip
    losses = []
    for jobs in ("one", "many"):
        out, path = tmp_path / jobs, toy(tmp_path, **changes)
        done = sweep(path, "--out", out, "--jobs-per-study", jobs, **clean(cluster))
        assert done.returncode == 0, done.stderr
        ids = [f"vit_debug-{strategy}-n{nodes}" for strategy in ("ddp", "full_shard") for nodes in (1, 2)]
        numbers = [job(out, point) for point in ids]
        assert len(set(numbers)) == (2 if jobs == "one" else 4)
        assert [cluster.wait(number, seconds=600) for number in numbers] == ["COMPLETED"] * 4, logs(out)
        assert sweep(path, "--out", out, "--collect", **clean(cluster)).returncode == 0
        rows = json.loads((out / "rows.json").read_text())["rows"]
        assert [row["status"] for row in rows] == ["done"] * 4 and all(row["images_per_s"] > 0 for row in rows)
        start = read_jsonl(out / "points" / ids[3] / "run" / "starts.jsonl")[0]
        assert (start["world_size"], start["nodes"]) == (4, 2)
        losses.append([curve(out / "points" / point / "run") for point in ids])
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx(losses[0][2]) and losses[0][1] == pytest.approx(losses[0][3])


@pytest.mark.slow
def test_a_rank_of_a_training_job_is_killed(tmp_path: Path, cluster: Cluster) -> None:
    """kill -9 of one of four training ranks: the step ends, the point has failed, and its words name the signal."""
    out = tmp_path / "out"
    changes = {
        "grid": {"model": "vit_debug", "strategy": "full_shard", "nodes": 2, "micro_batch": 4},
        "config": {"data": {"image_size": 32}, "parallel": {"timeout_s": 120}},
        "steps": 100_000, "time_limit_s": 900, "threads": 1,
    }  # fmt: skip
    path = toy(tmp_path, **changes)
    assert sweep(path, "--out", out, **clean(cluster)).returncode == 0
    number, metrics = job(out, FULL), out / "points" / FULL / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 0, 300, lambda: logs(out))

    def is_third(process: psutil.Process) -> bool:
        rank = process.environ().get("SLURM_PROCID")
        return rank == "3" and "pretrain" in process.cmdline() and process.name().startswith("python")

    victim = cluster.processes(is_third)[0]
    os.kill(victim.pid, signal.SIGKILL)
    assert cluster.wait(number) == "FAILED"
    done = sweep(path, "--out", out, "--collect", **clean(cluster))
    assert done.returncode == 75 and statuses(out) == {"full_shard": "failed"}
    assert "task 3: Killed" in status(out, FULL)["reason"], status(out, FULL)["reason"]
